"""Makes docs/results.md and its pictures from results/accuracy.json."""

import json
import sys
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from compare import Line, best_baseline, cells_of, lines_of, paired_bootstrap
from partitions import SETTINGS
from pictures import draw_growth, draw_sweeps, draw_table
from plan import GROWTH, ROUNDS, ROWS, SEEDS, SWEEPS, Row, judged_stage
from report import RESULTS, ROOT, console
from said import SAID
from sweeps import growth_points, sweep_points

PAGE = ROOT / "docs" / "results.md"
TEXT = Path(__file__).with_name("page.md")
OURS = "fedpdpo"

#: Stands for what no cell tells yet; a section that has it is left out.
NOT_RUN = "\0"


def main() -> int:
    """Write the page; gives the exit code."""
    results = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    write(results, PAGE)
    console.print(f"wrote {PAGE}")
    return 0


def write(results: dict[str, Any], page: Path) -> None:
    """Write the page of these results, and its pictures beside it."""
    found = results["cells"]
    settings = [one.name for one in SETTINGS.values() if one.in_table]
    lines = {name: lines_of(found, name) for name in settings}
    lines = {name: some for name, some in lines.items() if some.keys() == ROWS.keys()}
    pictures = page.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    draw_table(lines, pictures / "table.svg")
    draw_sweeps(sweep_points(found), pictures / "sweeps.svg")
    draw_growth(growth_points(found), pictures / "growth.svg")
    parts = {
        "headline": headline(found, lines),
        "tables": "\n\n".join(table(SETTINGS[name].title, some) for name, some in lines.items()),
        "apart": apart(found, lines),
        "sweeps": sweeps(found),
        "growth": growth(found),
        "newcomer": newcomers(results.get("newcomer", {})),
        "generation": written(results.get("generation", {})),
        "processes": processes(results.get("processes", {})),
        "compute": compute(results),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, content in parts.items():
        text = text.replace(f"{{{{{name}}}}}", content or NOT_RUN)
    told = [part for part in text.split("\n## ") if NOT_RUN not in part]
    page.write_text("\n## ".join(told), encoding="utf-8")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table, its first column to the left."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def percent(share: float) -> str:
    """A share as per cent with one decimal."""
    return f"{100 * share:.1f}"


def table(title: str, lines: dict[str, Line]) -> str:
    """All rows of a setting."""
    best = best_baseline(lines).row.name
    rows = []
    for name, line in lines.items():
        bold = "**" if name in (OURS, best) else ""
        shown = {
            stage: f"{percent(some['combined'])} ± {percent(line.error[stage])}"
            for stage, some in line.accuracy.items()
        }
        shown[line.stage] = f"**{shown[line.stage]}**"
        rows.append([
            f"{bold}{line.row}{bold}",
            *shown.values(),
            percent(line.accuracy[line.stage]["implicit"]),
            percent(line.accuracy[line.stage]["explicit"]),
            percent(line.worst),
            f"{line.chosen_shift:+.2f}",
            f"{line.bytes_a_round / 2**20:.1f}",
            f"{line.seconds:.0f}",
        ])  # fmt: skip
    head = ["method", "after aggregation, %", "after a local epoch, %", "implicit", "explicit",
            "worst client", "chosen, nats/token", "MiB a client and round", "seconds"]  # fmt: skip
    return f"### {title[0].upper()}{title[1:]}\n\n{markdown(head, rows)}"


def gap(found: dict[str, Any], setting: str, ours: Row, other: Row) -> tuple[float, float, float]:
    """By how much a row is ahead of another, and the middle 95 % of the bootstrap."""
    stages = judged_stage(found, ours), judged_stage(found, other)
    cells = cells_of(found, ours, setting), cells_of(found, other, setting)
    return paired_bootstrap(*cells, stages=stages)


def apart(found: dict[str, Any], lines: dict[str, dict[str, Line]]) -> str:
    """FedPDPO beside the best baseline and each row less a part, setting by setting."""
    rows: list[list[str]] = []
    if not lines:
        return ""
    for setting, some in lines.items():
        best = best_baseline(some)
        cells = [SETTINGS[setting].title, str(best.row)]
        others = (best.row, *(row for row in ROWS.values() if row.method.kind == "ablation"))
        for row in others:
            mean, low, high = gap(found, setting, ROWS[OURS], row)
            cells.append(f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        rows.append(cells)
    parts = [str(row) for row in ROWS.values() if row.method.kind == "ablation"]
    return markdown(["setting", "best baseline", "ahead of it", *parts], rows)


def headline(found: dict[str, Any], lines: dict[str, dict[str, Line]]) -> str:
    """FedPDPO ahead of the best baseline, averaged over the settings."""
    if not lines:
        return "The table was not run yet."
    ahead = [
        gap(found, name, ROWS[OURS], best_baseline(some).row)[0] for name, some in lines.items()
    ]
    ours = fmean(some[OURS].judged for some in lines.values())
    theirs = fmean(best_baseline(some).judged for some in lines.values())
    return (
        f"Averaged over {len(lines)} settings FedPDPO ranks {percent(ours)} % of held-out pairs as "
        f"their owners do, the best baseline of each setting {percent(theirs)} %: "
        f"{100 * fmean(ahead):+.1f} points.{missing(found, lines)}"
    )


def missing(found: dict[str, Any], lines: dict[str, dict[str, Line]]) -> str:
    """A warning while the table has fewer cells than it is to have."""
    wanted = len(ROWS) * len(SEEDS) * sum(one.in_table for one in SETTINGS.values())
    run = sum(len(cells_of(found, row, name)) for name in lines for row in ROWS.values())
    if run == wanted:
        return ""
    return (
        f" So far {run} of {wanted} rows and seeds are in; with fewer than {len(SEEDS)} seeds a "
        "row's standard error is too small, or none."
    )


def sweeps(found: dict[str, Any]) -> str:
    """Each question with its answers' accuracies on tune."""
    parts = []
    for question, answers in sweep_points(found).items():
        rows = [
            [name, percent(point.mean), *map(percent, point.by_setting.values()),
             percent(point.implicit),
             "" if point.chosen_shift is None else f"{point.chosen_shift:+.2f}"]
            for name, point in answers.items()
        ]  # fmt: skip
        first = next(iter(answers.values()))
        head = [question, "mean, %", *(SETTINGS[one].title for one in first.by_setting),
                "implicit alone", "chosen, nats/token"]  # fmt: skip
        parts += [
            f"**{question[0].upper()}{question[1:]}.** {SAID[question]}",
            markdown(head, rows),
        ]
    return "\n\n".join(parts)


def growth(found: dict[str, Any]) -> str:
    """Each axis of growth with its methods' accuracies."""
    parts = []
    for axis, points in growth_points(found).items():
        methods = list(next(iter(points.values())))
        rows = [[name, *(percent(some[one]) for one in methods)] for name, some in points.items()]
        parts.append(markdown([axis, *(str(ROWS[one]) for one in methods)], rows))
    return "\n\n".join(parts)


def newcomers(results: dict[str, Any]) -> str:
    """A newcomer's accuracy with the shared LoRA and alone, by pairs."""
    if not results:
        return ""
    runs = list(results.values())
    rows = [
        [num, *(percent(fmean(run["accuracy"][start][num]["combined"] for run in runs))
                for start in ("shared", "alone"))]
        for num in runs[0]["accuracy"]["shared"]
    ]  # fmt: skip
    return markdown(["pairs", "from the federation's last adapter, %", "alone, %"], rows)


def written(results: dict[str, Any]) -> str:
    """What models write: words and sentiment."""
    if not results:
        return ""
    rows = [
        [name, f"{told['words']:.1f}", f"{told['sentiment']:+.3f} ± {told['sentiment_error']:.3f}",
         told["first"][0].replace("|", " ").replace("\n", " ")]
        for name, told in results["models"].items()
    ]  # fmt: skip
    return markdown(["model", "words", "sentiment", "for example"], rows)


def processes(results: dict[str, Any]) -> str:
    """Whether real processes gave the same bits."""
    if not results:
        return " "
    (told,) = results.values()
    return (
        " One row was repeated through `fedpdpo-server` and `fedpdpo-client` processes and gRPC: "
        f"{len(told['digests'])} adapters and private parts, all to the same bits."
    )


def compute(results: dict[str, Any]) -> str:
    """What the table took."""
    cells = results["cells"].values()
    hours = {
        split: sum(one["seconds"] + one["prepare_s"] for one in cells
                   if one["cell"]["split"] == split) / 3600
        for split in ("tune", "test")
    }  # fmt: skip
    machine = results["setting"]
    kinds = Counter(f"{one['dtype']} on the {one['device']}" for one in cells)
    told = " and ".join(f"{count} in {kind}" for kind, count in kinds.most_common())
    return (
        f"{len(cells)} cells: {hours['tune']:.1f} core hours to choose and sweep, "
        f"{hours['test']:.1f} for the table ({len(SEEDS)} seeds, {ROUNDS} rounds), a core a cell, "
        f"on {machine['cpu']} ({machine['cores']} cores), torch {machine['torch']}, {told}; "
        f"{len(SWEEPS)} questions, {len(GROWTH)} axes."
    )


if __name__ == "__main__":
    sys.exit(main())
