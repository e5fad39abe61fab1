"""The arithmetic of rounds: who is asked, and when a round may close."""

import math
import random
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a run is. The names are those of the wire's Phase."""

    WAITING = "WAITING"
    TRAINING = "TRAINING"
    EVALUATING = "EVALUATING"
    FINISHED = "FINISHED"
    STOPPED = "STOPPED"


def _share(fraction: float, number: int) -> int:
    """ceil(fraction * number), at least one; 0.07 of 100 is 7, though 0.07 * 100 > 7 in floats."""
    return max(1, math.ceil(round(fraction * number, 9)))


def num_asked(num_here: int, *, fraction: float, number: int) -> int:
    """How many clients a round asks: `number` where it is not 0, else a share; all at most."""
    return min(num_here, number) if number else _share(fraction, num_here)


def sample(clients: Collection[str], *, num_drawn: int, seed: int, round_number: int) -> list[str]:
    """Draw so many clients, sorted.

    The same clients, seed and round give the same draw, in whatever order the clients come.
    """
    drawn = random.Random(f"{seed}/{round_number}").sample(sorted(clients), num_drawn)  # noqa: S311
    return sorted(drawn)


def staleness_weight(staleness: int, *, power: float) -> float:
    """What a delta from an adapter `staleness` versions old counts: (1 + staleness)^-power.

    FedBuff (Nguyen et al. 2022, arXiv:2106.06639) takes a power of 1/2.
    """
    return float((1 + staleness) ** -power)


@dataclass(frozen=True)
class Turnout:
    """The clients asked in a round, those whose delta came, and those not waited for.

    `gone` have left, or show no progress. `arrived` deltas count in the round: those of the asked,
    and late ones of earlier rounds.
    """

    sampled: frozenset[str]
    pushed: frozenset[str]
    gone: frozenset[str]
    arrived: int

    @property
    def awaited(self) -> list[str]:
        """Clients whose delta may still come, sorted."""
        return sorted(self.sampled - self.pushed - self.gone)

    def required(self, quorum: float) -> int:
        """How many deltas a round needs: ceil(quorum * asked), at least one."""
        return _share(quorum, len(self.sampled))

    def may_close(self, *, quorum: float, close_after: int, overdue: bool) -> bool:
        """Whether enough deltas came: `close_after` where it is not 0, or a quorum and no more.

        No more come once nobody is awaited or the deadline is past.
        """
        if close_after and self.arrived >= close_after:
            return True
        return len(self.pushed) >= self.required(quorum) and (overdue or not self.awaited)
