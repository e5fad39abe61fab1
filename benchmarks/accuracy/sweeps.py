"""What the sweeps and the cells of growth come to, on tune."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cell import Cell
from compare import standard_error
from plan import (
    GROWTH,
    GROWTH_METHODS,
    ROUNDS,
    ROWS,
    SWEEP_SEEDS,
    SWEEPS,
    SWEPT_IN,
    chosen_rate,
    mean_accuracy,
)
from report import BenchmarkError


@dataclass(frozen=True)
class Point:
    """An answer's combined accuracy after a local epoch, by setting, and the error over seeds."""

    by_setting: dict[str, float]
    error: float

    @property
    def mean(self) -> float:
        """Over the settings."""
        return fmean(self.by_setting.values())


def sweep_points(found: dict[str, Any]) -> dict[str, dict[str, Point]]:
    """Each question's answers that were run in all settings."""
    points: dict[str, dict[str, Point]] = {}
    for question, answers in SWEEPS.items():
        for name, changed in answers.items():
            by_seed = [
                [Cell(setting, "fedpdpo", seed, ROUNDS, changed=changed).key
                 for setting in SWEPT_IN] for seed in SWEEP_SEEDS
            ]  # fmt: skip
            if all(key in found for keys in by_seed for key in keys):
                shares = [[mean_accuracy(found[key], "local") for key in keys] for keys in by_seed]
                by_setting = {
                    setting: fmean(row[number] for row in shares)
                    for number, setting in enumerate(SWEPT_IN)
                }
                error = standard_error([fmean(row) for row in shares])
                points.setdefault(question, {})[name] = Point(by_setting, error)
    return points


def growth_points(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Along each axis the accuracies of those methods that were run, after a local epoch."""
    points: dict[str, dict[str, dict[str, float]]] = {}
    for axis, places in GROWTH.items():
        for name, (setting, rounds) in places.items():
            shares = {}
            for method in GROWTH_METHODS:
                try:
                    rate = chosen_rate(found, ROWS[method], setting)
                except BenchmarkError:
                    continue
                key = Cell(setting, method, 0, rounds, rate=rate).key
                if key in found:
                    shares[method] = mean_accuracy(found[key], "local")
            if len(shares) == len(GROWTH_METHODS):
                points.setdefault(axis, {})[name] = shares
    return points
