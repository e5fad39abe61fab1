"""A client's pairs, ready to train on: tokens, reference margins, what the frozen trunk makes.

Shapes: P pairs, T tokens of a pack, H hidden size.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedpdpo.client.packing import Pack, grouped, pack
from fedpdpo.client.policy import Policy
from fedpdpo.client.tokens import PairTokens
from fedpdpo.common.files import whole_file
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

Progress = Callable[[int], None]


@dataclass
class PairSet:
    """Pairs with what never changes about them.

    reference_margins: (P,), log pi_ref(chosen) - log pi_ref(rejected) in nats, on the CPU.
    entering: by pair, (T, H), the trunk's hidden states on the CPU; empty where not kept.
    """

    pairs: Sequence[PairTokens]
    reference_margins: Tensor
    tokens_per_pack: int
    entering: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def kept_bytes(self) -> int:
        """Memory that the trunk's states take."""
        return sum(part.numel() * part.element_size() for part in self.entering)

    def packs(
        self, indices: Sequence[int], *, device: torch.device
    ) -> list[tuple[Pack, Tensor | None]]:
        """The pairs with these numbers in packs, with the trunk's states where they are kept."""
        groups = grouped(self.pairs, indices, tokens_per_pack=self.tokens_per_pack)
        return [(pack(self.pairs, group, device=device), self._entering(group, device))
                for group in groups]  # fmt: skip

    def _entering(self, group: Sequence[int], device: torch.device) -> Tensor | None:
        if not self.entering:
            return None
        return torch.cat([self.entering[index] for index in group]).to(device)


def prepare(
    policy: Policy,
    pairs: Sequence[PairTokens],
    *,
    tokens_per_pack: int,
    trunk_cache_bytes: int,
    reference_file: Path,
    reference_key: str,
    advance: Progress,
) -> PairSet:
    """Run the frozen trunk and the reference once over the pairs.

    The trunk's states are kept in memory where they fit into `trunk_cache_bytes`, and computed
    anew in every pass where they do not. The reference margins are kept in `reference_file` and
    taken from there when its key is `reference_key`, which must name everything that they depend
    on. `advance` is called with the number of pairs done. Raises StorageFull.
    """
    known = _read_margins(reference_file, reference_key, len(pairs))
    keeps = policy.decoder.num_trunk_layers > 0 and _bytes(policy, pairs) <= trunk_cache_bytes
    entering: list[Tensor] = [torch.empty(0)] * len(pairs) if keeps else []
    margins = torch.zeros(len(pairs)) if known is None else known
    for group in grouped(pairs, range(len(pairs)), tokens_per_pack=tokens_per_pack):
        if known is not None and not keeps:
            break
        batch = pack(pairs, group, device=policy.device)
        states = policy.entering(batch)
        if keeps and states is not None:
            parts = torch.split(states.cpu(), [len(pairs[index]) for index in group])
            for index, part in zip(group, parts, strict=True):
                entering[index] = part.clone()
        if known is None:
            scores = policy.reference_scores(batch, states)
            margins[group] = (scores.chosen_logps - scores.rejected_logps).cpu()
        advance(len(group))
    if known is None:
        with whole_file(reference_file) as partial:
            save_file({"margins": margins}, partial, metadata={"key": reference_key})
    prepared = PairSet(pairs, margins, tokens_per_pack, entering)
    log.info(fields("prepared", pairs=len(pairs), reference_known=known is not None,
                    trunk_cache_mib=prepared.kept_bytes / 2**20))  # fmt: skip
    return prepared


def _bytes(policy: Policy, pairs: Sequence[PairTokens]) -> int:
    hidden = policy.peft_model.config.get_text_config().hidden_size
    size = torch.empty((), dtype=policy.dtype).element_size()
    return int(sum(len(pair) for pair in pairs) * hidden * size)


def _read_margins(path: Path, key: str, num_pairs: int) -> Tensor | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            margins: Tensor = file.get_tensor("margins")
    except SafetensorError as error:
        log.warning(fields("reference_unreadable", file=path, error=error))
        return None
    whole = margins.shape == (num_pairs,) and bool(torch.isfinite(margins).all())
    return margins if whole else None
