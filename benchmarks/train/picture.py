"""The results as one picture: pairs a second, peak memory, and where the time goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from cases import OURS, TRL

NAMES = {OURS: "FedPDPO", TRL: "TRL", "trl_precompute": "TRL, reference first"}
COLOURS = {OURS: "#2a6f97", TRL: "#bc6c25", "trl_precompute": "#dda15e"}
PARTS = {
    "reference_s": ("reference", "#8d99ae"),
    "forward_s": ("forward and rest", "#74a57f"),
    "backward_s": ("backward", "#2f5d50"),
    "optimizer_s": ("optimizer", "#d4a017"),
}
LABELS = {
    "long_all": "long pairs,\nall layers",
    "short_all": "short pairs,\nall layers",
    "short_last8": "short pairs,\nlast 8 layers",
}
WIDTH = 0.27


def draw(results: Mapping[str, Any], path: Path, *, epochs: int) -> None:
    """Write the picture of the compared cases with so many epochs; nothing where there are none."""
    cases = {
        name: results["cases"][f"{name}/{epochs}"]["medians"]
        for name in LABELS
        if f"{name}/{epochs}" in results["cases"]
    }
    if not cases:
        return
    mpl.rcParams |= {"svg.hashsalt": "fedpdpo", "font.size": 9, "axes.titlesize": 11}
    figure, (speed, memory, time) = plt.subplots(
        1, 3, figsize=(13, 4.2), width_ratios=(1, 1, 1.35), layout="constrained"
    )
    _bars(speed, cases, "pairs_per_s", "{:.2g}")
    speed.set(title="Pairs trained per second  (more is better)", ylabel="pairs per second")
    _bars(memory, cases, "peak_mib", "{:.1f}", scale=1 / 1024)
    memory.set(title="Peak memory of the process  (less is better)", ylabel="GiB")
    _split(time, cases)
    word = "epoch" if epochs == 1 else "epochs"
    time.set(title=f"Where the seconds of {epochs} {word} go", ylabel="seconds")
    handles, labels = speed.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False)
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(
    axes: Any, cases: Mapping[str, Any], figure: str, form: str, *, scale: float = 1.0
) -> None:
    """Groups of bars, a case each, with their values on top."""
    for column, name in enumerate(NAMES):
        there = [(row, scale * medians[name][figure]) for row, medians in enumerate(cases.values())]
        bars = axes.bar(
            [row + (column - 1) * WIDTH for row, _ in there],
            [value for _, value in there],
            width=0.92 * WIDTH,
            color=COLOURS[name],
            label=NAMES[name],
        )
        axes.bar_label(bars, fmt=form, padding=2, fontsize=8)
    axes.set_xticks(range(len(cases)), [LABELS[name] for name in cases])
    _tidy(axes)


def _split(axes: Any, cases: Mapping[str, Any]) -> None:
    """One stacked bar for each variant of each case."""
    places, ticks, bottoms = [], [], []
    for row, medians in enumerate(cases.values()):
        for column, name in enumerate(NAMES):
            places.append(row + (column - 1) * WIDTH)
            ticks.append(NAMES[name].replace(", ", ",\n"))
            bottoms.append(medians[name])
    heights = [0.0] * len(places)
    for part, (label, colour) in PARTS.items():
        values = [figures[part] for figures in bottoms]
        axes.bar(places, values, bottom=heights, width=0.92 * WIDTH, color=colour, label=label)
        heights = [height + value for height, value in zip(heights, values, strict=True)]
    for place, height in zip(places, heights, strict=True):
        axes.annotate(
            f"{height:.0f}", (place, height), (0, 2), textcoords="offset points", ha="center",
            fontsize=8,
        )  # fmt: skip
    axes.set_xticks(places, ticks, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    for row, name in enumerate(cases):
        axes.annotate(
            LABELS[name], (row, 0.94), xycoords=("data", "axes fraction"), ha="center", va="top"
        )
    axes.set_ylim(0, 1.45 * max(heights))
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
