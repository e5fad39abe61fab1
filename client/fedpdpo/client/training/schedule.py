"""The steps of a local round: which pairs each takes, what it trains, and at what rate."""

import math
from dataclasses import dataclass

import torch

from fedpdpo.common.run import MethodSettings


@dataclass(frozen=True)
class Step:
    """One optimizer step: its pairs' numbers, and the parts that it trains.

    `last_epoch` tells whether it belongs to the round's last pass over the pairs.
    """

    pairs: tuple[int, ...]
    shared: bool
    private: bool
    last_epoch: bool


def steps_of_round(
    method: MethodSettings, *, num_pairs: int, seed: int, round_number: int
) -> list[Step]:
    """All steps of a round; the order of pairs follows from seed and round.

    `joint` trains all parts together for `local_epochs`; `private_then_shared` first the private
    parts, then LoRA, for as many epochs each.
    """
    phases = [(True, True)] if method.schedule == "joint" else [(False, True), (True, False)]
    steps = []
    for phase, (shared, private) in enumerate(phases):
        for epoch in range(method.local_epochs):
            order = torch.Generator().manual_seed(_mixed(seed, round_number, phase, epoch))
            shuffled = torch.randperm(num_pairs, generator=order).tolist()
            last = phase == len(phases) - 1 and epoch == method.local_epochs - 1
            steps += [
                Step(tuple(shuffled[start : start + method.batch_pairs]), shared, private, last)
                for start in range(0, num_pairs, method.batch_pairs)
            ]
    return steps


def rate_factor(method: MethodSettings, *, rounds_done: float, num_rounds: int) -> float:
    """What the learning rates are multiplied by after so many rounds of the run, and their parts.

    They rise linearly over the first `warmup_rounds`; then they stay, or fall along half a cosine
    to zero at the run's end.
    """
    if rounds_done < method.warmup_rounds:
        return rounds_done / method.warmup_rounds
    if method.lr_schedule == "constant":
        return 1.0
    left = num_rounds - method.warmup_rounds
    share = (rounds_done - method.warmup_rounds) / left if left > 0 else 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def _mixed(*numbers: int) -> int:
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return mixed
