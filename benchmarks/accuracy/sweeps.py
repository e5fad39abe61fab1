"""What the sweeps and the cells of growth come to, on tune."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cell import Cell
from compare import standard_error
from plan import (
    GROWTH,
    GROWTH_METHODS,
    ROWS,
    SWEEPS,
    SWEPT_IN,
    chosen_rate,
    mean_accuracy,
    sweep_cell,
)
from report import BenchmarkError

#: Accuracies by setting, one a seed.
Shares = dict[str, list[float]]


@dataclass(frozen=True)
class Point:
    """An answer's combined accuracy after aggregation, by setting.

    error: the standard error, over seeds, of its difference from the question's first answer.
    """

    by_setting: dict[str, float]
    error: float

    @property
    def mean(self) -> float:
        """Over the settings."""
        return fmean(self.by_setting.values())


def sweep_points(found: dict[str, Any]) -> dict[str, dict[str, Point]]:
    """Each question's answers that were run in all settings, where there are two or more."""
    points: dict[str, dict[str, Point]] = {}
    for question, answers in SWEEPS.items():
        told = {name: _shares(found, changed) for name, changed in answers.items()}
        whole = {name: shares for name, shares in told.items() if shares}
        if len(whole) > 1:
            first = next(iter(whole.values()))
            points[question] = {name: _point(shares, first) for name, shares in whole.items()}
    return points


def _shares(found: dict[str, Any], changed: dict[str, Any]) -> Shares:
    """An answer's accuracies by setting and seed; none where one was not run."""
    shares: Shares = {}
    for setting, seeds in SWEPT_IN.items():
        keys = [sweep_cell(setting, seed, changed).key for seed in seeds]
        if any(key not in found for key in keys):
            return {}
        shares[setting] = [mean_accuracy(found[key], "after") for key in keys]
    return shares


def _point(shares: Shares, first: Shares) -> Point:
    errors = [
        standard_error([one - other for one, other in zip(some, first[setting], strict=True)])
        for setting, some in shares.items()
    ]
    by_setting = {setting: fmean(some) for setting, some in shares.items()}
    return Point(by_setting, sum(error**2 for error in errors) ** 0.5 / len(errors))


def growth_points(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Along each axis the accuracies of those methods that were run, after a local epoch."""
    points: dict[str, dict[str, dict[str, float]]] = {}
    for axis, places in GROWTH.items():
        for name, (setting, rounds) in places.items():
            shares = {}
            for method in GROWTH_METHODS:
                try:
                    rate = chosen_rate(found, ROWS[method])
                except BenchmarkError:
                    continue
                key = Cell(setting, method, 0, rounds, rate=rate).key
                if key in found:
                    shares[method] = mean_accuracy(found[key], "local")
            if len(shares) == len(GROWTH_METHODS):
                points.setdefault(axis, {})[name] = shares
    return points
