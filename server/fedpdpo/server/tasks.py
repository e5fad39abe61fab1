"""What a client may be asked to do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wait:
    """Nothing to do for now; `Federation.waiting_for` says why."""


@dataclass(frozen=True)
class Evaluate:
    """Measure the adapter of this version."""

    version: int


@dataclass(frozen=True)
class Train:
    """Train this round from the adapter of the round before."""

    round_number: int


@dataclass(frozen=True)
class Finish:
    """The run has ended with the adapter of this version."""

    version: int
    stopped: bool


Task = Wait | Evaluate | Train | Finish
