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


def sample(clients: Collection[str], *, fraction: float, seed: int, round_number: int) -> list[str]:
    """Draw ceil(fraction * number) clients, at least one, sorted.

    The same clients, seed and round give the same draw, in whatever order the clients come.
    """
    num_drawn = _share(fraction, len(clients))
    drawn = random.Random(f"{seed}/{round_number}").sample(sorted(clients), num_drawn)  # noqa: S311
    return sorted(drawn)


@dataclass(frozen=True)
class Turnout:
    """The clients asked in a round, those whose delta came, and those that left since."""

    sampled: frozenset[str]
    pushed: frozenset[str]
    gone: frozenset[str]

    @property
    def awaited(self) -> list[str]:
        """Clients whose delta may still come, sorted."""
        return sorted(self.sampled - self.pushed - self.gone)

    def required(self, quorum: float) -> int:
        """How many deltas a round needs: ceil(quorum * asked), at least one."""
        return _share(quorum, len(self.sampled))

    def may_close(self, *, quorum: float, overdue: bool) -> bool:
        """Whether there is a quorum, and either nobody to wait for or the deadline is past."""
        return len(self.pushed) >= self.required(quorum) and (overdue or not self.awaited)
