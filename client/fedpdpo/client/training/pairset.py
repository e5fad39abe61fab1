"""A client's pairs, ready to train on: tokens, reference margins, what the frozen trunk makes.

Shapes: P pairs, T tokens of a pack, H hidden size.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedpdpo.client.data.tokens import PairTokens
from fedpdpo.client.model.packing import Pack, grouped, pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.training.reference import ReferenceCache
from fedpdpo.client.training.trunk import TrunkCache
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

Progress = Callable[[int], None]

_SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class PairSet:
    """Pairs with what never changes about them.

    reference_logps: (P, 2), log pi_ref(chosen) and log pi_ref(rejected) in nats, on the CPU.
    trunk: the trunk's states of those pairs that fit into its budget.
    """

    pairs: Sequence[PairTokens]
    reference_logps: Tensor
    tokens_per_step: int
    trunk: TrunkCache | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def reference_margins(self) -> Tensor:
        """Log pi_ref(chosen) - log pi_ref(rejected) in nats: (P,), float32, on the CPU."""
        return (self.reference_logps[:, 0] - self.reference_logps[:, 1]).float()

    @property
    def num_chosen_tokens(self) -> Tensor:
        """Tokens of each chosen answer: (P,), float64, on the CPU."""
        return torch.tensor([len(pair.chosen) for pair in self.pairs], dtype=torch.float64)

    def packs(
        self, indices: Sequence[int], *, device: torch.device
    ) -> Iterator[tuple[Pack, Tensor | None]]:
        """The pairs with these numbers in packs, with the trunk's states where they are kept."""
        kept = [index for index in indices if self._entering(index) is not None]
        others = [index for index in indices if self._entering(index) is None]
        for some in (kept, others):
            for group in grouped(self.pairs, some, tokens_per_step=self.tokens_per_step):
                batch = pack(self.pairs, group, device=device)
                yield batch, self._joined(batch) if some is kept else None

    def _entering(self, index: int) -> Tensor | None:
        return None if self.trunk is None else self.trunk.get(self.pairs[index])

    def _joined(self, batch: Pack) -> Tensor:
        parts = [self._entering(index) for index in batch.indices]
        kept = [part for part in parts if part is not None]
        states = kept[0].new_empty(len(batch.token_ids), kept[0].shape[1])
        for rows, part in zip(batch.rows, kept, strict=True):
            states[rows] = part
        return states.to(batch.token_ids.device)


def keep_trunk(
    policy: Policy,
    pairs: Sequence[PairTokens],
    trunk: TrunkCache,
    *,
    tokens_per_step: int,
    budget_bytes: int,
    advance: Progress,
) -> None:
    """Run the frozen trunk over the pairs that fit into the budget and are not kept yet.

    `advance` is called with the number of pairs done. Raises StorageFull.
    """

    def compute(numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        for group in grouped(pairs, numbers, tokens_per_step=tokens_per_step):
            batch = pack(pairs, group, device=policy.device)
            states = policy.entering(batch).cpu()
            for index, rows in zip(group, batch.rows, strict=True):
                yield index, states[rows]
            advance(len(group))

    trunk.keep(pairs, budget_bytes=budget_bytes, compute=compute)


def prepare(
    policy: Policy,
    pairs: Sequence[PairTokens],
    *,
    tokens_per_step: int,
    reference: ReferenceCache,
    trunk: TrunkCache | None = None,
    advance: Progress = lambda _: None,
) -> PairSet:
    """Score with the reference those pairs that it has not scored yet.

    `advance` is called with the number of pairs done. Raises StorageFull.
    """
    unknown = [number for number, pair in enumerate(pairs) if not reference.known(pair)]
    advance(len(pairs) - len(unknown))
    prepared = PairSet(pairs, torch.zeros(0, 2), tokens_per_step, trunk)
    saved = time.monotonic()
    for batch, entering in prepared.packs(unknown, device=policy.device):
        scores = policy.reference_scores(batch, entering)
        found = zip(scores.chosen_logps.tolist(), scores.rejected_logps.tolist(), strict=True)
        for index, (chosen, rejected) in zip(batch.indices, found, strict=True):
            reference.put(pairs[index], chosen=chosen, rejected=rejected)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            reference.save()
            saved = time.monotonic()
        advance(len(batch.indices))
    if unknown:
        reference.save()
    log.info(fields("prepared", pairs=len(pairs), newly_scored=len(unknown)))
    return replace(prepared, reference_logps=reference.logps(pairs))
