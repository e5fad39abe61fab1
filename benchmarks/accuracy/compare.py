"""What the cells come to: means, standard errors, the worst client, paired bootstrap."""

from dataclasses import dataclass
from itertools import chain
from math import nan
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cell import ID_CHARS
from plan import ROWS, SEEDS, Row, Stage, judged_stage, mean_accuracy, table_cell
from report import BenchmarkError

STAGES = ("after", "local")
KINDS = ("implicit", "explicit", "combined")
DRAWS = 10_000

_POINTS = {"1": 1.0, "0": 0.0, "h": 0.5}


@dataclass(frozen=True)
class Line:
    """A row's numbers in a setting: means over seeds of means over clients, as shares.

    stage is the one at which the row is judged. accuracy[stage][kind]; error[stage] is the standard
    error over seeds of the combined one; worst is the mean over seeds of the worst one,
    chosen_shift how much likelier chosen answers became in nats a token, both at the row's stage;
    seconds is the median over seeds, which a busy machine does not move.
    """

    row: Row
    stage: Stage
    accuracy: dict[str, dict[str, float]]
    error: dict[str, float]
    worst: float
    chosen_shift: float
    bytes_a_round: float
    seconds: float

    @property
    def judged(self) -> float:
        """The combined accuracy at the row's stage."""
        return self.accuracy[self.stage]["combined"]


def cells_of(found: dict[str, Any], row: Row, setting: str) -> dict[int, dict[str, Any]]:
    """The row's results in a setting by seed; fewer where some were not run."""
    keys = {seed: table_cell(found, row, setting, seed).key for seed in SEEDS}
    return {seed: found[key] for seed, key in keys.items() if key in found}


def line(row: Row, stage: Stage, results: list[dict[str, Any]]) -> Line:
    """Sum a row's results up. An adapter travels down and a delta up in every round."""
    clients = [client for result in results for client in result["clients"].values()]
    shared = row.method.shares and row.method.trains
    return Line(
        row,
        stage,
        {one: {kind: fmean(mean_accuracy(result, one, kind) for result in results)
               for kind in KINDS} for one in STAGES},
        {one: standard_error([mean_accuracy(result, one) for result in results])
         for one in STAGES},
        fmean(min(client[stage]["combined"] for client in result["clients"].values())
              for result in results),
        fmean(mean_accuracy(result, stage, "chosen_shift") for result in results),
        2.0 * fmean(client["adapter_bytes"] for client in clients) * shared,
        median(result["seconds"] for result in results),
    )  # fmt: skip


def standard_error(values: list[float]) -> float:
    """Of a mean over seeds; not a number for a single seed."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else nan


def best_baseline(lines: dict[str, Line]) -> Line:
    """The baseline that is ahead of the others on test, whichever stage it is judged at."""
    baselines = [one for one in lines.values() if one.row.method.kind == "baseline"]
    return max(baselines, key=lambda one: one.judged)


def paired_bootstrap(
    ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]], *, stages: tuple[str, str]
) -> tuple[float, float, float]:
    """Difference of two rows' mean accuracies, and the middle 95 % of what resampling gives.

    Pairs are drawn anew from all that were tested on, the same for both rows and for every client
    and seed: where these share pairs, more of them are not more pairs. Clients and seeds stay.
    Raises BenchmarkError where the rows have no seed in common.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise BenchmarkError("the two rows have no seed in common")
    apart = [
        (_names(one["ids"]), _points(one[stages[0]]["right"]) - _points(two[stages[1]]["right"]))
        for seed in seeds
        for one, two in zip(*(some[seed]["clients"].values() for some in (ours, theirs)),
                            strict=True)
    ]  # fmt: skip
    different = sorted({*chain.from_iterable(names for names, _ in apart)})
    places = {name: place for place, name in enumerate(different)}
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(places), [1 / len(places)] * len(places), DRAWS)
    differences = np.full((len(apart), DRAWS), nan)
    for row, (names, points) in zip(differences, apart, strict=True):
        weights = times[:, [places[name] for name in names]]
        total = weights.sum(axis=1)
        np.divide(weights @ points, total, out=row, where=total > 0)
    low, high = np.quantile(np.nanmean(differences, axis=0), (0.025, 0.975))
    return fmean(float(points.mean()) for _, points in apart), float(low), float(high)


def _points(marks: str) -> NDArray[np.float64]:
    return np.array([_POINTS[mark] for mark in marks])


def _names(ids: str) -> list[str]:
    """The pairs' names, one after the other: see `bench.ids`."""
    return [ids[at : at + ID_CHARS] for at in range(0, len(ids), ID_CHARS)]


def lines_of(found: dict[str, Any], setting: str) -> dict[str, Line]:
    """All rows of a setting whose rates were chosen and that have a result."""
    lines = {}
    for name, row in ROWS.items():
        try:
            results = list(cells_of(found, row, setting).values())
        except BenchmarkError:
            continue
        if results:
            lines[name] = line(row, judged_stage(found, row), results)
    return lines
