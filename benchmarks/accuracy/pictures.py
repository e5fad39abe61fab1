"""The results as pictures, in colours that the colour-blind tell apart (Okabe and Ito 2008)."""

from math import isnan
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from compare import Line, best_baseline
from partitions import SETTINGS
from plan import ROWS
from sweeps import Point

COLOURS = {"baseline": "#999999", "ours": "#0072B2", "ablation": "#56B4E9"}
BEST = "#E69F00"
TITLE_CHARS = 32
ROW_COLOURS = {"fedavg-ft": "#999999", "less-sharing": "#E69F00", "fedpdpo": "#0072B2"}
MARKERS = {"fedavg-ft": "s", "less-sharing": "^", "fedpdpo": "o"}

mpl.rcParams |= {"svg.hashsalt": "fedpdpo", "font.size": 9, "axes.titlesize": 10}


def draw_table(lines: dict[str, dict[str, Line]], path: Path) -> None:
    """A panel a setting: each row's accuracy with its standard error."""
    if not lines:
        return
    columns = min(3, len(lines))
    rows = -(-len(lines) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(2.6 * columns + 2, 3.6 * rows), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes in panels.flat[len(lines) :]:
        axes.set_visible(False)
    for axes, (setting, some) in zip(panels.flat, lines.items(), strict=False):
        best = best_baseline(some).row.name
        names = [name for name in ROWS if name in some][::-1]
        for place, name in enumerate(names):
            line = some[name]
            colour = BEST if name == best else COLOURS[line.row.method.kind]
            share, error = 100 * line.judged, 100 * line.error[line.stage]
            error = 0.0 if isnan(error) else error
            axes.barh(place, share, xerr=error, color=colour, height=0.75, ecolor="#333333")
            axes.text(share + error + 0.7, place, f"{share:.1f}", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), [str(ROWS[name]) for name in names])
        axes.axvline(50, color="#333333", linewidth=0.8, linestyle=":")
        axes.set(title=SETTINGS[setting].title, xlim=(25, 112), xlabel="accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def draw_sweeps(questions: dict[str, dict[str, Point]], path: Path) -> None:
    """A panel a question: each answer's mean accuracy, with the error of its difference."""
    if not questions:
        return
    columns = 3
    rows = -(-len(questions) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(11, 2.1 * rows), layout="constrained", squeeze=False, sharex=True
    )
    for axes in panels.flat[len(questions) :]:
        axes.set_visible(False)
    for axes, (question, answers) in zip(panels.flat, questions.items(), strict=False):
        names = list(answers)[::-1]
        best = max(answers, key=lambda name: answers[name].mean)
        for place, name in enumerate(names):
            share, error = 100 * answers[name].mean, 100 * answers[name].error
            colour = BEST if name == best else COLOURS["ours"]
            axes.errorbar(share, place, xerr=error, fmt="o", color=colour, capsize=3)
            axes.text(share, place + 0.16, f"{share:.1f}", ha="center", fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.5, len(names) - 0.3)
        axes.set_title(fill(question, TITLE_CHARS))
        axes.tick_params(labelbottom=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("accuracy on tune after aggregation, %")
    _save(figure, path)


def draw_growth(axes_of: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A panel an axis: accuracy of each method along it."""
    if not axes_of:
        return
    figure, panels = plt.subplots(
        1, len(axes_of), figsize=(3 * len(axes_of), 3), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, (axis, points) in zip(panels[0], axes_of.items(), strict=True):
        for method, colour in ROW_COLOURS.items():
            shares = [100 * some[method] for some in points.values()]
            axes.plot(list(points), shares, marker=MARKERS[method], color=colour,
                      label=str(ROWS[method]))  # fmt: skip
        axes.set(title=axis)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("accuracy on tune, %")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
