"""What a cell of the results is: a method in a setting with a seed, and on which pairs."""

from dataclasses import asdict, dataclass, field
from typing import Any

from methods import METHODS, Configured

#: Letters that stand for a pair in the results: enough for the hundreds of a setting.
ID_CHARS = 6


@dataclass(frozen=True)
class Cell:
    """`rate` multiplies all learning rates; `changed` are settings other than the defaults.

    Without `local` it ends right after the last average; else a local epoch follows.
    """

    setting: str
    method: str
    seed: int
    rounds: int
    rate: float = 1.0
    split: str = "tune"
    local: bool = True
    changed: dict[str, Any] = field(default_factory=dict)

    @property
    def configured(self) -> Configured:
        """All settings that the cell is run with."""
        return METHODS[self.method].configured(self.changed, rate=self.rate)

    @property
    def key(self) -> str:
        """The cell's name among the results. Other settings, or other defaults, give another."""
        return (f"{self.split} {self.setting} {self.method} seed={self.seed} "
                f"rounds={self.rounds}{'+1' * self.local} {self.configured.digest}")  # fmt: skip

    def told(self) -> dict[str, Any]:
        """The cell as the results keep it."""
        return asdict(self)
