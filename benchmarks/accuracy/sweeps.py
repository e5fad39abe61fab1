"""What the sweeps and the cells of growth come to, on tune."""

from dataclasses import dataclass
from math import isnan
from statistics import fmean
from typing import Any

from compare import standard_error
from plan import (
    GROWTH,
    GROWTH_ROWS,
    ROWS,
    SWEEPS,
    growth_cell,
    judged_stage,
    mean_accuracy,
    sweep_cell,
    swept_in,
)
from report import BenchmarkError

#: An answer's results by setting, one a seed.
Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Point:
    """An answer's accuracies after aggregation: the combined one by setting, the implicit one.

    chosen_shift: nats a token; None where it was not measured yet. error: the standard error, over
    the seeds of the settings that have several, of the combined one's difference from the
    question's first answer. exact: run in float32 instead of bfloat16.
    """

    by_setting: dict[str, float]
    implicit: float
    chosen_shift: float | None
    error: float
    exact: bool

    @property
    def mean(self) -> float:
        """Over the settings."""
        return fmean(self.by_setting.values())


def sweep_points(found: dict[str, Any]) -> dict[str, dict[str, Point]]:
    """Each question's answers that were run in all its settings, where there are two or more."""
    points: dict[str, dict[str, Point]] = {}
    for question, answers in SWEEPS.items():
        told = {name: _results(found, question, changed) for name, changed in answers.items()}
        whole = {name: results for name, results in told.items() if results}
        if len(whole) > 1:
            first = next(iter(whole.values()))
            points[question] = {name: _point(results, first) for name, results in whole.items()}
    return points


def _results(found: dict[str, Any], question: str, changed: dict[str, Any]) -> Results:
    """An answer's results by setting and seed; none where one was not run."""
    keys = {
        setting: [sweep_cell(setting, seed, changed).key for seed in seeds]
        for setting, seeds in swept_in(question).items()
    }
    if any(key not in found for some in keys.values() for key in some):
        return {}
    return {setting: [found[key] for key in some] for setting, some in keys.items()}


def _point(results: Results, first: Results) -> Point:
    combined = {setting: _shares(some) for setting, some in results.items()}
    errors = [
        standard_error(
            [one - other for one, other in zip(some, _shares(first[setting]), strict=True)]
        )
        for setting, some in combined.items()
    ]
    return Point(
        {setting: fmean(some) for setting, some in combined.items()},
        fmean(fmean(_shares(some, "implicit")) for some in results.values()),
        _chosen_shift(results),
        sum(error**2 for error in errors if not isnan(error)) ** 0.5 / len(errors),
        any(one["dtype"] == "float32" for some in results.values() for one in some),
    )


def _shares(results: list[dict[str, Any]], kind: str = "combined") -> list[float]:
    return [mean_accuracy(one, "after", kind) for one in results]


def _chosen_shift(results: Results) -> float | None:
    """The mean over settings; None where a result is from before it was measured."""
    clients = [
        client for some in results.values() for one in some for client in one["clients"].values()
    ]
    if any("chosen_shift" not in client["after"] for client in clients):
        return None
    return fmean(fmean(_shares(some, "chosen_shift")) for some in results.values())


def growth_points(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Along each axis the accuracies of its rows at the stage where each is judged."""
    points: dict[str, dict[str, dict[str, float]]] = {}
    for axis, places in GROWTH.items():
        for name, (setting, rounds) in places.items():
            shares = {}
            for row in (ROWS[one] for one in GROWTH_ROWS):
                try:
                    key = growth_cell(found, row, setting, rounds).key
                except BenchmarkError:
                    continue
                if key in found:
                    shares[row.name] = mean_accuracy(found[key], judged_stage(found, row))
            if len(shares) == len(GROWTH_ROWS):
                points.setdefault(axis, {})[name] = shares
    return points
