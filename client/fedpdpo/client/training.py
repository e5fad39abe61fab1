"""The local step of a round: personalised DPO from the global LoRA [7, 8]."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpdpo.client.objective import (
    combined_margin,
    explicit_margin,
    implicit_margin,
    pair_losses,
)
from fedpdpo.client.optimizer import forget_shared
from fedpdpo.client.pairset import PairSet
from fedpdpo.client.policy import Policy
from fedpdpo.common.run import MethodSettings


@dataclass(frozen=True)
class TrainingReport:
    """How a local round went; the field names are those of the wire's TrainingReport."""

    loss: float
    accuracy: float
    num_steps: int
    seconds: float


@dataclass
class _Tally:
    loss: float = 0.0
    right: float = 0.0
    pairs: int = 0


def train_round(
    policy: Policy,
    pairs: PairSet,
    method: MethodSettings,
    optimizer: torch.optim.AdamW,
    *,
    seed: int,
    round_number: int,
    advance: Callable[[int], None] = lambda _: None,
) -> TrainingReport:
    """Train from the policy's present LoRA; the order of pairs follows from seed and round.

    `joint` trains all parts together for `local_epochs`; `private_then_shared` first the private
    parts, then LoRA, for as many epochs each.
    """
    begun = time.perf_counter()
    forget_shared(optimizer, policy)
    num_steps = 0
    tally = _Tally()
    for phase, (shared, private) in enumerate(_phases(method)):
        _enable(policy, shared=shared, private=private)
        for epoch in range(method.local_epochs):
            tally = _Tally()
            order = torch.Generator().manual_seed(_mixed(seed, round_number, phase, epoch))
            shuffled = torch.randperm(len(pairs), generator=order).tolist()
            for start in range(0, len(pairs), method.batch_pairs):
                batch = shuffled[start : start + method.batch_pairs]
                _step(policy, pairs, method, optimizer, batch, tally)
                num_steps += 1
                advance(len(batch))
    _enable(policy, shared=True, private=True)
    return TrainingReport(
        loss=tally.loss / tally.pairs,
        accuracy=tally.right / tally.pairs,
        num_steps=num_steps,
        seconds=time.perf_counter() - begun,
    )


def num_pair_visits(method: MethodSettings, num_pairs: int) -> int:
    """How many pairs a local round goes over, counting repeats."""
    return len(_phases(method)) * method.local_epochs * num_pairs


def _phases(method: MethodSettings) -> list[tuple[bool, bool]]:
    return [(True, True)] if method.schedule == "joint" else [(False, True), (True, False)]


def _enable(policy: Policy, *, shared: bool, private: bool) -> None:
    for parameter in policy.lora():
        parameter.requires_grad_(shared)
    for name, part in policy.private.named_parameters():
        frozen_head = name == "head.weight" and not policy.trains_whole_head
        part.requires_grad_(private and not frozen_head)


def _mixed(*numbers: int) -> int:
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed


def _step(
    policy: Policy,
    pairs: PairSet,
    method: MethodSettings,
    optimizer: torch.optim.AdamW,
    indices: list[int],
    tally: _Tally,
) -> None:
    optimizer.zero_grad(set_to_none=True)
    for batch, entering in pairs.packs(indices, device=policy.device):
        scores = policy.scores(batch, policy.hidden(batch, entering))
        reference = pairs.reference_margins[list(batch.indices)].to(policy.device)
        implicit = implicit_margin(scores, reference, beta=method.beta)
        explicit = explicit_margin(scores)
        losses = pair_losses(implicit, explicit, alpha=method.alpha, objective=method.objective)
        (losses.sum() / len(indices)).backward()  # type: ignore[no-untyped-call]
        combined = combined_margin(implicit, explicit, alpha=method.alpha)
        _count(tally, losses, combined)
    trained = [part for group in optimizer.param_groups for part in group["params"]]
    torch.nn.utils.clip_grad_norm_(
        [part for part in trained if part.grad is not None], method.max_grad_norm
    )
    optimizer.step()


def _count(tally: _Tally, losses: Tensor, margins: Tensor) -> None:
    tally.loss += float(losses.detach().sum())
    tally.right += float((margins > 0).sum() + 0.5 * (margins == 0).sum())
    tally.pairs += len(losses)
