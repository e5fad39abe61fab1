"""What a local round leaves for the server: its delta, and how training went."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingReport:
    """How a local round went; the field names are those of the wire's TrainingReport."""

    loss: float
    accuracy: float
    num_steps: int
    seconds: float


@dataclass(frozen=True)
class TrainedRound:
    """A round that the client has trained; `delta` is the file as it is sent."""

    number: int
    num_pairs: int
    report: TrainingReport
    delta: Path
