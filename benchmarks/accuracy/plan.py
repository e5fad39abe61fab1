"""Which cells a run of the benchmark has, in which order, and what guards the test pairs.

Everything that is chosen is chosen on tune: first the sweeps, from which the product's defaults
are set, then each method's learning rates, with the same budget for all. The test pairs of a
setting, method and seed are opened for one configuration only; see `Opened`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from cell import Cell
from methods import METHODS, Method
from partitions import SETTINGS
from report import BenchmarkError

ROUNDS = 4
SEEDS = (0, 1, 2)

#: What each method's rates are multiplied by on tune; the same budget for all.
RATES = (0.5, 1.0, 2.0)

#: A row of the table: what is trained, and the moment at which it is judged and tuned. FedAvg is
#: judged as it comes from the server, FedAvg-FT after a local epoch.
Stage = Literal["after", "local"]


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str
    method: Method
    stage: Stage = "local"
    title: str = ""

    def __str__(self) -> str:
        return self.title or self.method.title


ROWS = {
    row.name: row
    for row in (
        *(Row(name, method, "after" if name in ("base", "fedavg") else "local")
          for name, method in METHODS.items()),
        Row("fedavg-ft", METHODS["fedavg"], title="FedAvg-DPO, then a local epoch (FedAvg-FT)"),
    )
}  # fmt: skip


class Opened:
    """Remembers for which configuration a cell's test pairs were opened.

    The same configuration gives the same numbers, so it may be run again after an interruption;
    another one, chosen after the first was seen, is refused.
    """

    def __init__(self, kept: dict[str, str]) -> None:
        self._kept = kept

    def open(self, row: Row, cell: Cell) -> None:
        """Note that a row is about to see a cell's test pairs. Raises BenchmarkError."""
        place = f"{cell.setting} {row.name} seed={cell.seed}"
        if self._kept.setdefault(place, cell.key) != cell.key:
            raise BenchmarkError(
                f"the test pairs of {place} were opened for {self._kept[place]}, not "
                f"{cell.key}; remove accuracy.json to begin anew"
            )


#: A question, and the changes of FedPDPO's settings that answer it; the first is the default.
SWEEPS: dict[str, dict[str, dict[str, Any]]] = {
    "objective": {
        f"{objective}, alpha {alpha:g}": {"objective": objective, "alpha": alpha}
        for objective in ("combined", "separate")
        for alpha in (0.3, 1.0, 3.0)
    },
    "rate of the reward head": {f"{lr:g}": {"reward_lr": lr} for lr in (1e-3, 5e-3, 2e-2)},
    "rate of LoRA": {f"{lr:g}": {"lora_lr": lr} for lr in (5e-5, 2e-4, 8e-4)},
    "beta": {f"{beta:g}": {"beta": beta} for beta in (0.03, 0.1, 0.3)},
    "schedule": {one: {"schedule": one} for one in ("joint", "private_then_shared")},
    "head": {one: {"head": one} for one in ("full", "lowrank", "frozen")},
    "adapter width": {f"{width}": {"bottleneck": width} for width in (0, 16, 64, 256)},
    "averaging": {one: {"averaging": one} for one in ("factors", "products")},
    "moments of LoRA": {one: {"lora_moments": one} for one in ("restart", "keep")},
}
SWEPT_IN = ("film-3", "conflict-4", "cross-6")
SWEEP_SEEDS = (0, 1)

#: How accuracy grows: the settings or rounds along each axis, and the methods compared.
GROWTH_METHODS = ("fedavg", "less-sharing", "fedpdpo")
GROWTH: dict[str, dict[str, tuple[str, int]]] = {
    "clients": {f"{k}": (f"film-{k}-of-24", ROUNDS) for k in (2, 5, 10, 20)},
    "rounds": {f"{rounds}": ("film-3", rounds) for rounds in (1, 2, 4, 8)},
    "pairs a client": {f"{pairs}": (f"film-5-of-{pairs}", ROUNDS) for pairs in (8, 16, 32, 64)},
    "one-sidedness": {f"{a:g}": (f"film-5-dirichlet-{a:g}", ROUNDS) for a in (0.1, 0.3, 1.0, 10.0)},
}


def sweep_cells(questions: Collection[str] = ()) -> Iterator[Cell]:
    """Each answer to each of these questions, or to all of them, on tune."""
    for question in questions or SWEEPS:
        for changed in SWEEPS[question].values():
            for setting in SWEPT_IN:
                for seed in SWEEP_SEEDS:
                    yield Cell(setting, "fedpdpo", seed, ROUNDS, changed=changed)


def tune_cells() -> Iterator[Cell]:
    """Each method with each rate in the settings that others take their rates from."""
    families = dict.fromkeys(setting.family for setting in SETTINGS.values() if setting.in_table)
    for method in METHODS.values():
        for family in families:
            for rate in RATES if method.trains else RATES[:1]:
                yield Cell(family, method.name, 0, ROUNDS, rate=rate)


def growth_cells(found: dict[str, Any]) -> Iterator[Cell]:
    """Along each axis, on tune, at the rates tuned for the film sentences."""
    for points in GROWTH.values():
        for setting, rounds in points.values():
            for name in GROWTH_METHODS:
                rate = chosen_rate(found, ROWS[name], setting)
                yield Cell(setting, name, 0, rounds, rate=rate)


def table_cells(found: dict[str, Any], opened: Opened) -> Iterator[Cell]:
    """The table, on test. Raises BenchmarkError before all rates are chosen."""
    for seed in SEEDS:
        for setting in SETTINGS.values():
            for row in ROWS.values() if setting.in_table else ():
                cell = table_cell(found, row, setting.name, seed)
                opened.open(row, cell)
                yield cell


def table_cell(found: dict[str, Any], row: Row, setting: str, seed: int) -> Cell:
    """A row's cell. Raises BenchmarkError before its rate is chosen."""
    rate = chosen_rate(found, row, setting)
    return Cell(setting, row.method.name, seed, ROUNDS, rate=rate, split="test")


def chosen_rate(found: dict[str, Any], row: Row, setting: str) -> float:
    """The factor that was best on tune. Raises BenchmarkError where a factor was not tried."""
    if not row.method.trains:
        return 1.0
    family = SETTINGS[setting].family
    tried = {rate: Cell(family, row.method.name, 0, ROUNDS, rate=rate).key for rate in RATES}
    missing = [key for key in tried.values() if key not in found]
    if missing:
        raise BenchmarkError(f"rates are chosen before test is opened; not tried yet: {missing[0]}")
    return max(tried, key=lambda rate: mean_accuracy(found[tried[rate]], row.stage))


def mean_accuracy(result: dict[str, Any], stage: str, kind: str = "combined") -> float:
    """The mean over clients."""
    return fmean(client[stage][kind] for client in result["clients"].values())
