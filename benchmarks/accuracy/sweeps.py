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


@dataclass(frozen=True)
class Point:
    """An answer's combined accuracy after aggregation, by setting, and the error over seeds."""

    by_setting: dict[str, float]
    error: float

    @property
    def mean(self) -> float:
        """Over the settings."""
        return fmean(self.by_setting.values())


def sweep_points(found: dict[str, Any]) -> dict[str, dict[str, Point]]:
    """Each question's answers that were run in all settings with all seeds."""
    points: dict[str, dict[str, Point]] = {}
    for question, answers in SWEEPS.items():
        for name, changed in answers.items():
            cells = [
                sweep_cell(setting, seed, changed)
                for setting, seeds in SWEPT_IN.items()
                for seed in seeds
            ]
            if all(cell.key in found for cell in cells):
                shares = {
                    setting: [mean_accuracy(found[cell.key], "after")
                              for cell in cells if cell.setting == setting]
                    for setting in SWEPT_IN
                }  # fmt: skip
                errors = [standard_error(some) for some in shares.values()]
                error = sum(one**2 for one in errors) ** 0.5 / len(errors)
                by_setting = {setting: fmean(some) for setting, some in shares.items()}
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
                    rate = chosen_rate(found, ROWS[method])
                except BenchmarkError:
                    continue
                key = Cell(setting, method, 0, rounds, rate=rate).key
                if key in found:
                    shares[method] = mean_accuracy(found[key], "local")
            if len(shares) == len(GROWTH_METHODS):
                points.setdefault(axis, {})[name] = shares
    return points
