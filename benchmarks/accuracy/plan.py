"""Which cells a run of the benchmark has, in which order, and what guards the test pairs.

Everything that is chosen is chosen on tune: first the sweeps, from which the product's defaults
are set, then each method's learning rates, with the same budget for all. The test pairs of a
setting, method and seed are opened for one configuration only; see `Opened`.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any, Literal

from cell import Cell
from methods import METHODS, Method
from partitions import SETTINGS
from report import BenchmarkError

ROUNDS = 4
SEEDS = (1, 2, 3)

#: What each method's rates are multiplied by on tune, and in which settings: the same budget for
#: all: one where tastes differ, one where they are opposite, one where people agree in the main.
#: What is best over all together is taken everywhere. The product's rates are the least of them: in
#: so few steps LoRA alone has hardly moved with these. `FURTHER` is tried too for a row that is
#: best at the largest.
RATES = (1.0, 3.0, 10.0)
FURTHER = 30.0
TUNED_IN = ("film-3", "conflict-4", "people-4")

#: Right after the last average, or after a local epoch more.
Stage = Literal["after", "local"]


@dataclass(frozen=True)
class Row:
    """A row of the table: what is trained, and where it is judged.

    A `fixed` row is judged at its stage, as that is its point: FedAvg as it comes from the server,
    FedAvg-FT after a local epoch. The others are judged where they are better on tune; see
    `choice`.
    """

    name: str
    method: Method
    stage: Stage = "local"
    title: str = ""
    fixed: bool = False

    def __str__(self) -> str:
        return self.title or self.method.title


ROWS = {
    row.name: row
    for row in (
        Row("base", METHODS["base"], "after", fixed=True),
        Row("local", METHODS["local"]),
        Row("fedavg", METHODS["fedavg"], "after", fixed=True),
        Row("fedavg-ft", METHODS["fedavg"], title="FedAvg-DPO, then a local epoch (FedAvg-FT)",
            fixed=True),
        *(Row(name, METHODS[name]) for name in METHODS if name not in ("base", "local", "fedavg")),
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


#: The settings that each sweep starts from and changes one of.
SWEPT_FROM: dict[str, Any] = {
    "objective": "combined", "alpha": 1.0, "beta": 0.1, "schedule": "joint", "head": "lowrank",
    "bottleneck": 64, "lora_moments": "restart", "lora_lr": 2e-4, "head_lr": 2.5e-5,
    "bottleneck_lr": 5e-4, "reward_lr": 5e-3, "batch_pairs": 8, "anchor": 0.0,
}  # fmt: skip

#: A question, and the changes that answer it; the first of each is no change.
SWEEPS: dict[str, dict[str, dict[str, Any]]] = {
    "objective": {
        f"{objective}, alpha {alpha:g}": {"objective": objective, "alpha": alpha}
        for objective, alpha in (
            ("combined", 1.0),
            ("combined", 0.3),
            ("combined", 3.0),
            ("separate", 1.0),
        )
    },
    "rate of the reward head": {f"{lr:g}": {"reward_lr": lr} for lr in (5e-3, 1e-3, 2e-2)},
    "rate of LoRA": {f"{lr:g}": {"lora_lr": lr} for lr in (2e-4, 8e-4, 3e-3)},
    "rate of the head": {f"{lr:g}": {"head_lr": lr} for lr in (2.5e-5, 2e-4, 1e-3)},
    "rate of the adapter": {f"{lr:g}": {"bottleneck_lr": lr} for lr in (5e-4, 3e-3)},
    "pairs a step": {f"{pairs}": {"batch_pairs": pairs} for pairs in (8, 4, 2)},
    "beta": {f"{beta:g}": {"beta": beta} for beta in (0.1, 0.01, 0.03, 0.3)},
    "objective and beta": {
        f"{objective}, {beta:g}": {"objective": objective, "beta": beta}
        for objective in ("combined", "separate")
        for beta in (0.1, 0.03)
    },
    "objective and anchor": {
        f"{objective}, {anchor:g}": {"objective": objective, "anchor": anchor}
        for objective, anchor in (
            ("combined", 0.0),
            ("combined", 0.05),
            ("combined", 0.2),
            ("separate", 0.0),
            ("separate", 0.05),
            ("separate", 0.1),
            ("separate", 0.2),
        )
    },
    "rate of LoRA, separate, anchor 0.1": {
        f"{lr:g}": {"objective": "separate", "anchor": 0.1, "lora_lr": lr}
        for lr in (2e-4, 6e-4, 2e-3)
    },
    "rates of adapter and head, separate, anchor 0.1": {
        told: {"objective": "separate", "anchor": 0.1} | rates
        for told, rates in {
            "0.0005, 2.5e-05": {"bottleneck_lr": 5e-4, "head_lr": 2.5e-5},
            "0.0002, 0.0002": {"bottleneck_lr": 2e-4, "head_lr": 2e-4},
            "0.0001, 0.0002": {"bottleneck_lr": 1e-4, "head_lr": 2e-4},
            "no adapter, 0.0002": {"bottleneck": 0, "head_lr": 2e-4},
            "0.0001, 2.5e-05": {"bottleneck_lr": 1e-4, "head_lr": 2.5e-5},
        }.items()
    },
    "rate of LoRA, adapter 0.0001, head 0.0002": {
        told: {"objective": "separate", "anchor": 0.1, "bottleneck_lr": 1e-4, "head_lr": 2e-4}
        | changes
        for told, changes in {
            "0.0002": {"lora_lr": 2e-4},
            "0.002": {"lora_lr": 2e-3},
            "0.002, proximal 0.1": {"lora_lr": 2e-3, "proximal": 0.1},
        }.items()
    },
    "adapter width, separate, beta 0.03": {
        f"{width}": {"objective": "separate", "beta": 0.03, "bottleneck": width}
        for width in (64, 0)
    },
    "schedule": {one: {"schedule": one} for one in ("joint", "private_then_shared")},
    "head": {one: {"head": one} for one in ("lowrank", "full", "frozen")},
    "adapter width": {f"{width}": {"bottleneck": width} for width in (64, 0, 256)},
    "averaging": {one: {"averaging": one} for one in ("factors", "products")},
    "moments of LoRA": {one: {"lora_moments": one} for one in ("restart", "keep")},
}

#: Where they are tried: settings, and seeds of each; those named here in more.
SWEPT_IN = {"film-10": (0, 1), "cross-3": (0,)}
SWEPT_WIDEST = {
    "people-4": (0,),
    "conflict-4": (0,),
    "film-3": (0,),
    "people-16-tune": (0,),
} | SWEPT_IN
SWEPT_WIDER = {
    "objective and anchor": SWEPT_IN | {"film-3": (0,), "conflict-4": (0,)},
    "rate of LoRA, separate, anchor 0.1": SWEPT_IN
    | {"film-3": (0,), "conflict-4": (0,), "people-4": (0,)},
    "rates of adapter and head, separate, anchor 0.1": SWEPT_WIDEST,
    "rate of LoRA, adapter 0.0001, head 0.0002": SWEPT_WIDEST,
}

#: How accuracy grows: the settings or rounds along each axis, and the rows compared.
GROWTH_ROWS = ("fedavg-ft", "less-sharing", "fedpdpo")
GROWTH: dict[str, dict[str, tuple[str, int]]] = {
    "clients": {f"{k}": (f"film-{k}-of-24", ROUNDS) for k in (2, 5, 10, 20)},
    "rounds": {f"{rounds}": ("film-3", rounds) for rounds in (1, 2, 4, 8)},
    "pairs a client": {f"{pairs}": (f"film-5-of-{pairs}", ROUNDS) for pairs in (8, 16, 32, 64)},
    "one-sidedness": {f"{a:g}": (f"film-5-dirichlet-{a:g}", ROUNDS) for a in (0.1, 0.3, 1.0, 10.0)},
}


#: What was chosen for FedPDPO and the baselines have too, and what they are tried with instead.
HANDED_DOWN: dict[str, dict[str, Any]] = {
    "as in the table": {}, "no anchor": {"anchor": 0.0}, "beta 0.03": {"beta": 0.03},
}  # fmt: skip
HANDED_TO = ("local", "fedavg", "fedavg-ft")


def sweep_cells(questions: Collection[str] = ()) -> Iterator[Cell]:
    """Each answer to each of these questions, or to all of them, on tune."""
    for question in questions or SWEEPS:
        for changed in SWEEPS[question].values():
            for setting, seeds in swept_in(question).items():
                for seed in seeds:
                    yield sweep_cell(setting, seed, changed)


def swept_in(question: str) -> dict[str, tuple[int, ...]]:
    """The settings in which a question's answers are tried, and the seeds of each."""
    return SWEPT_WIDER.get(question, SWEPT_IN)


def sweep_cell(setting: str, seed: int, changed: dict[str, Any]) -> Cell:
    """An answer in a setting: it is judged right after the last average."""
    return Cell(setting, "fedpdpo", seed, ROUNDS, local=False, changed=SWEPT_FROM | changed)


def tune_cells() -> Iterator[Cell]:
    """Each method that trains, with each rate."""
    for method in METHODS.values():
        for rate in RATES if method.trains else ():
            yield from tried(method, rate)


def further_cells(found: dict[str, Any]) -> Iterator[Cell]:
    """A rate beyond the others for each row that is best at the largest of them.

    Raises BenchmarkError where one was not tried.
    """
    for row in ROWS.values():
        if row.method.trains and _best(found, row, RATES)[0] == RATES[-1]:
            yield from tried(row.method, FURTHER)


def tried(method: Method, rate: float) -> list[Cell]:
    """The cells by which a rate of a method is judged."""
    return [Cell(setting, method.name, 0, ROUNDS, rate=rate) for setting in TUNED_IN]


def growth_cells(found: dict[str, Any]) -> Iterator[Cell]:
    """Along each axis, on tune."""
    for points in GROWTH.values():
        for setting, rounds in points.values():
            for name in GROWTH_ROWS:
                yield growth_cell(found, ROWS[name], setting, rounds)


def growth_cell(found: dict[str, Any], row: Row, setting: str, rounds: int) -> Cell:
    """A row's cell along an axis. Raises BenchmarkError before its rate is chosen."""
    return Cell(setting, row.method.name, 0, rounds, rate=chosen_rate(found, row))


def handed_cells(found: dict[str, Any]) -> Iterator[Cell]:
    """Baselines with other settings than FedPDPO's, on tune."""
    for name in HANDED_TO:
        for changed in HANDED_DOWN.values():
            yield from handed(found, ROWS[name], changed)


def handed(found: dict[str, Any], row: Row, changed: dict[str, Any]) -> list[Cell]:
    """A baseline's cells with some settings changed. Raises BenchmarkError before its rate is."""
    rate = chosen_rate(found, row)
    return [
        Cell(setting, row.method.name, 0, ROUNDS, rate=rate, changed=changed)
        for setting in TUNED_IN
    ]


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
    rate = chosen_rate(found, row)
    return Cell(setting, row.method.name, seed, ROUNDS, rate=rate, split="test")


def chosen_rate(found: dict[str, Any], row: Row) -> float:
    """The factor of a row's learning rates; see `choice`."""
    return choice(found, row)[0]


def judged_stage(found: dict[str, Any], row: Row) -> Stage:
    """Whether a row's clients deploy what they have after the last average or train once more."""
    return choice(found, row)[1]


def choice(found: dict[str, Any], row: Row) -> tuple[float, Stage]:
    """The factor and the stage that are best on tune together.

    The stage is given where a row is one or the other by its name. Raises BenchmarkError where a
    factor was not tried.
    """
    if not row.method.trains:
        return 1.0, row.stage
    best = _best(found, row, RATES)
    return best if best[0] < RATES[-1] else _best(found, row, (*RATES, FURTHER))


def _best(found: dict[str, Any], row: Row, rates: tuple[float, ...]) -> tuple[float, Stage]:
    stages: tuple[Stage, ...] = (row.stage,) if row.fixed else ("local", "after")
    return max(product(rates, stages), key=lambda one: on_tune(found, row, *one))


def on_tune(found: dict[str, Any], row: Row, rate: float, stage: Stage) -> float:
    """A row's accuracy over the settings for tuning. Raises BenchmarkError if it was not tried."""
    keys = [cell.key for cell in tried(row.method, rate)]
    if missing := [key for key in keys if key not in found]:
        raise BenchmarkError(f"rates are chosen before test is opened; not tried yet: {missing[0]}")
    return fmean(mean_accuracy(found[key], stage) for key in keys)


def mean_accuracy(result: dict[str, Any], stage: str, kind: str = "combined") -> float:
    """The mean over clients."""
    return fmean(client[stage][kind] for client in result["clients"].values())
