"""Makes docs/results.md and its pictures from results/accuracy.json."""

import json
import sys
from collections import Counter
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from compare import Line, best_baseline, lines_of
from partitions import SETTINGS, warm_shares
from pictures import draw_growth, draw_sweeps, draw_table
from plan import (
    GROWTH,
    HANDED_DOWN,
    HANDED_TO,
    ROUNDS,
    ROWS,
    SEEDS,
    SWEEPS,
    SWEPT_IN,
    handed,
    judged_stage,
    mean_accuracy,
    sweep_cell,
)
from report import RESULTS, ROOT, BenchmarkError, console
from said import SAID
from sweeps import growth_points, sweep_points
from tabular import percent, table, with_error
from verdict import OURS, PROBE, aims, apart, by_setting, headline, overview, policies

PAGE = ROOT / "docs" / "results.md"
TEXT = Path(__file__).with_name("page.md")

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
        "by_setting": by_setting(lines),
        "overview": overview(lines),
        "ceiling": " and ".join(ceiling(num) for num in (3, 10)),
        "tables": "\n\n".join(accuracies(name, some) for name, some in lines.items()),
        "apart": apart(found, lines),
        "policies": policies(lines),
        "aims": aims(found, lines),
        "sweeps": sweeps(found),
        **{kind: swept_from(found, kind) for kind in ("explicit", "implicit")},
        "handed": handed_down(found),
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
    lines_told = [line.rstrip() for line in "\n## ".join(told).splitlines()]
    page.write_text("\n".join(lines_told) + "\n", encoding="utf-8")


def accuracies(setting: str, lines: dict[str, Line]) -> str:
    """All rows of a setting."""
    best = best_baseline(lines).row.name
    rows = []
    for name, line in lines.items():
        bold = "**" if name in (OURS.name, best) else ""
        shown = {
            stage: with_error(percent(some["combined"]), line.error[stage])
            for stage, some in line.accuracy.items()
        }
        shown[line.stage] = f"**{shown[line.stage]}**"
        rows.append([
            f"{bold}{line.row}{bold}",
            *shown.values(),
            "" if line.row is PROBE else percent(line.accuracy[line.stage]["implicit"]),
            percent(line.accuracy[line.stage]["explicit"]),
            percent(line.worst),
            f"{line.chosen_shift:+.2f}",
            f"{line.bytes_a_round / 2**20:.1f}",
            f"{line.seconds:.0f}",
        ])  # fmt: skip
    head = ["method", "after aggregation, %", "after a local epoch, %", "implicit", "explicit",
            "worst client", "chosen, nats/token", "MiB a client and round", "seconds"]  # fmt: skip
    title = SETTINGS[setting].title
    return f"### {title[0].upper()}{title[1:]}\n\n{table(head, rows)}"


def sweeps(found: dict[str, Any]) -> str:
    """Each question with its answers' accuracies on tune."""
    parts = []
    for question, answers in sweep_points(found).items():
        rows = [
            [name + " *" * point.exact, percent(point.mean),
             *map(percent, point.by_setting.values()), percent(point.implicit),
             "" if point.chosen_shift is None else f"{point.chosen_shift:+.2f}"]
            for name, point in answers.items()
        ]  # fmt: skip
        first = next(iter(answers.values()))
        head = [question, "mean, %", *(SETTINGS[one].title for one in first.by_setting),
                "implicit alone", "chosen, nats/token"]  # fmt: skip
        parts += [
            f"**{question[0].upper()}{question[1:]}.** {SAID[question]}",
            table(head, rows),
        ]
    return "\n\n".join(parts)


def handed_down(found: dict[str, Any]) -> str:
    """What baselines would rank with other settings than FedPDPO's."""
    rows = []
    for name in HANDED_TO:
        row = ROWS[name]
        try:
            cells = [handed(found, row, changed) for changed in HANDED_DOWN.values()]
            stage = judged_stage(found, row)
            shares = [fmean(mean_accuracy(found[cell.key], stage) for cell in some)
                      for some in cells]  # fmt: skip
        except (BenchmarkError, KeyError):
            continue
        rows.append([str(row), *map(percent, shares)])
    return table(["on tune, %", *HANDED_DOWN], rows) if rows else ""


def ceiling(num_clients: int) -> str:
    """What the more frequent preference of each film client gives, the mean over seeds."""
    shares = [max(one, 1 - one) for seed in SEEDS for one in warm_shares(seed, num_clients)]
    return percent(fmean(shares))


def swept_from(found: dict[str, Any], kind: str) -> str:
    """One reward's accuracy in each cell that the sweeps start from."""
    keys = [sweep_cell(name, seed, {}).key for name, seeds in SWEPT_IN.items() for seed in seeds]
    shares = [mean_accuracy(found[key], "after", kind) for key in keys if key in found]
    told = [f"{100 * share:.0f}" for share in shares]
    return " and ".join(filter(None, (", ".join(told[:-1]), *told[-1:])))


def growth(found: dict[str, Any]) -> str:
    """Each axis of growth with its methods' accuracies."""
    parts = []
    for axis, points in growth_points(found).items():
        methods = list(next(iter(points.values())))
        rows = [[name, *(percent(some[one]) for one in methods)] for name, some in points.items()]
        parts.append(table([axis, *(str(ROWS[one]) for one in methods)], rows))
    return "\n\n".join(parts)


def newcomers(results: dict[str, Any]) -> str:
    """A newcomer's accuracy with the shared LoRA and alone, by pairs."""
    if not results:
        return ""
    runs = list(results.values())
    rows = [
        [num, *(percent(fmean(run["accuracy"][start][num][kind] for run in runs))
                for kind in ("combined", "implicit") for start in ("shared", "alone"))]
        for num in runs[0]["accuracy"]["shared"]
    ]  # fmt: skip
    head = ["pairs", "from the federation's last adapter, %", "alone, %",
            "its policy, from the last adapter, %", "its policy, alone, %"]  # fmt: skip
    return table(head, rows)


def written(results: dict[str, Any]) -> str:
    """What models write: words and sentiment."""
    if not results:
        return ""
    rows: list[list[str]] = []
    for one in sorted(results.values(), key=lambda one: one["cell"]["rounds"]):
        rounds = one["cell"]["rounds"]
        for name, told in one["models"].items():
            base = name == "base"
            if base and rows:
                continue
            rows.append([
                name,
                "0" if base else f"{rounds}",
                f"{told['words']:.1f}",
                f"{told['sentiment']:+.3f}",
                "" if base else f"{told['change']:+.3f} ± {told['change_error']:.3f}",
                escape(told["first"][0], quote=False).replace("|", " ").replace("\n", " "),
            ])  # fmt: skip
    head = ["model", "rounds", "words", "sentiment", "change", "for example"]
    return table(head, rows)


def processes(results: dict[str, Any]) -> str:
    """Whether real processes gave the same bits."""
    if not results:
        return " "
    told = next(iter(results.values()))
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
        f"{len(SWEEPS)} questions, {len(GROWTH)} axes. {precisions(results['cells'])}"
    )


def precisions(found: dict[str, Any]) -> str:
    """Whether rows that are compared were computed in the same precision."""
    kinds: dict[tuple[str, int], set[str]] = {}
    for one in found.values():
        cell = one["cell"]
        if cell["split"] == "test" and ROWS[cell["method"]].method.trains:
            kinds.setdefault((cell["setting"], cell["seed"]), set()).add(one["dtype"])
    mixed = sum(len(some) > 1 for some in kinds.values())
    return (
        f"In {len(kinds) - mixed} of {len(kinds)} settings and seeds of the table all rows that "
        "train were computed in the same precision."
    )


if __name__ == "__main__":
    sys.exit(main())
