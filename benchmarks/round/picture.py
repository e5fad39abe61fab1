"""The results as one picture: seconds a round, and the server's peak memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from cases import ENGINE, FLOOR, FLOWER, OURS, SECURED

NAMES = {
    FLOOR: "bare gRPC (no disk, no checks)",
    OURS: "FedPDPO",
    SECURED: "FedPDPO, mutual TLS",
    FLOWER: "Flower, gRPC server",
    ENGINE: "Flower, deployment engine",
}
COLOURS = {
    FLOOR: "#8d99ae",
    OURS: "#2a6f97",
    SECURED: "#61a5c2",
    FLOWER: "#dda15e",
    ENGINE: "#bc6c25",
}
WIDTH = 0.17


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write the picture of all cases; nothing where there are none."""
    cases = {title: case["medians"] for title, case in results["cases"].items()}
    if not cases:
        return
    mpl.rcParams |= {"svg.hashsalt": "fedpdpo", "font.size": 9, "axes.titlesize": 11}
    figure, (seconds, memory) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    _bars(seconds, cases, "round_s", "{:.2g}")
    seconds.set(title="Seconds a round, logarithmic  (less is better)", yscale="log")
    _bars(memory, cases, "server_peak_mib", "{:.0f}")
    memory.set(title="Peak memory of the server, MiB, logarithmic  (less is better)", yscale="log")
    handles, labels = seconds.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bars(axes: Any, cases: Mapping[str, Any], figure: str, form: str) -> None:
    """Groups of bars, a case each, with their values on top."""
    for column, (system, name) in enumerate(NAMES.items()):
        there = [
            (row, medians[system][figure])
            for row, medians in enumerate(cases.values())
            if system in medians
        ]
        bars = axes.bar(
            [row + (column - 2) * WIDTH for row, _ in there],
            [value for _, value in there],
            width=0.92 * WIDTH,
            color=COLOURS[system],
            label=name,
        )
        axes.bar_label(bars, fmt=form, padding=2, fontsize=8)
    axes.set_xticks(
        range(len(cases)), [title.replace("x", " clients\nx ") + " MiB" for title in cases]
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.12)
