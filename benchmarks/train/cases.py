"""What the benchmark compares: cases, each a data set with settings, run by several variants."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

OURS = "ours"
TRL = "trl"

#: A variant's program and what it changes in the job. The first of a case is what the others are
#: compared with.
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        OURS: ("ours.py", {}),
        "ours_lowrank": ("ours.py", {"private": True, "head": "lowrank"}),
        "ours_full": ("ours.py", {"private": True, "head": "full"}),
        TRL: ("rival.py", {}),
        "trl_precompute": ("rival.py", {"precompute": True}),
    }
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. `last_layers` 0 puts LoRA into all layers."""

    name: str
    data: str
    batch_pairs: int
    epochs: int
    variants: tuple[str, ...]
    last_layers: int = 0

    @property
    def title(self) -> str:
        """The case with its epochs, which names it among all."""
        return f"{self.name}/{self.epochs}"


def _compared(name: str, data: str, batch_pairs: int, last_layers: int = 0) -> list[Case]:
    """A case for 1 and 3 epochs."""
    return [
        Case(
            name=name,
            data=data,
            batch_pairs=batch_pairs,
            epochs=epochs,
            last_layers=last_layers,
            variants=(OURS, TRL, "trl_precompute"),
        )
        for epochs in (1, 3)
    ]


def _private(name: str, data: str, batch_pairs: int) -> Case:
    variants = (OURS, "ours_lowrank", "ours_full")
    return Case(name=name, data=data, batch_pairs=batch_pairs, epochs=1, variants=variants)


CASES = (
    *_compared("long_all", "long", 4),
    *_compared("short_all", "short", 8),
    *_compared("short_last8", "short", 8, last_layers=8),
    _private("long_private", "long", 4),
    _private("short_private", "short", 8),
)

#: The case that the results' `speedup` and `memory_ratio` are of.
MAIN = "long_all/3"


def order(case: Case, *, repeats: int) -> list[str]:
    """Which variants run one after another: ours before each rival, and at least twice."""
    rivals = [name for name in case.variants if not name.startswith(OURS)]
    own = [name for name in case.variants if name.startswith(OURS)]
    if not rivals:
        return own * max(2, repeats)
    return [name for rival in rivals for name in (*own, rival)] * repeats
