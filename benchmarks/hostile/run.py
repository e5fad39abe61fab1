"""What one hostile client of eight does to the other seven, with and without a bound on norms.

The demo's pairs, each client's halved, make eight clients; the last one is hostile. Everything is
real: server, clients, model, pairs. Writes OUT/hostile.json after each run.
"""

import argparse
import os
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from federation import Federation, Member
from fedpdpo.common.run import MethodSettings
from machine import setting
from model import get_model
from preferences import get_preferences
from report import RESULTS, ROOT, Report, console, exit_code
from summary import summarize

PACKAGES = ("torch", "transformers", "peft", "fedpdpo")
HERE = Path(__file__).parent

#: A run's name: what the hostile client does, and whether the server bounds norms.
RUNS: dict[str, tuple[str, bool]] = {
    "nobody is hostile": ("", True),
    "scaled by 100": ("scaled", True),
    "sign flipped": ("flipped", True),
    "random": ("random", True),
    "scaled by 100, no bound": ("scaled", False),
    "random, no bound": ("random", False),
}


def main() -> int:
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN",
                        help=f"which to make, of {', '.join(RUNS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    return exit_code(lambda: bench(args))


def bench(args: argparse.Namespace) -> None:
    """Measure what the options ask for, run by run."""
    report = Report(args.out / "hostile.json", runs={})
    report.of(method=MethodSettings().model_dump(mode="json"))
    for name in args.runs:
        runs = report.content["runs"] | {name: run(name, rounds=args.rounds)}
        report.content |= {"setting": setting(PACKAGES),
                           "runs": {one: runs[one] for one in RUNS if one in runs}}  # fmt: skip
        report.write()
    console.print(table(report.content["runs"]))


def run(name: str, *, rounds: int) -> dict[str, Any]:
    """Run eight clients of which the last one does what the run's name says."""
    how, bounded = RUNS[name]
    folder = ROOT / "runs" / "hostile" / name.replace(" ", "-").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ["FEDPDPO_SERVER_NORM_BOUND"] = "3.0" if bounded else "0.0"
    model = str(get_model(ROOT / ".cache" / "smollm2-135m-instruct"))
    federation = Federation(folder, model=model, members=members(folder, how), rounds=rounds,
                            threads=1)  # fmt: skip
    federation.run()
    summary = summarize(folder, wall_s=0.0)
    *honest, last = sorted(summary["clients"])
    with closing(sqlite3.connect(folder / "server" / "run.sqlite")) as database:
        held_back = "SELECT COUNT(*) FROM events WHERE kind IN ('delta_clipped', 'delta_refused')"
        (bounds,) = database.execute(held_back).fetchone()
    found = {
        "hostile": last if how else "",
        "rounds": rounds,
        "norm_bound": 3.0 if bounded else 0.0,
        "accuracy_of_seven": fmean(summary["clients"][one]["after"]["combined"] for one in honest),
        "worst_of_seven": min(summary["clients"][one]["after"]["combined"] for one in honest),
        "held_back": bounds,
    }
    console.print(f"{name}: {100 * found['accuracy_of_seven']:.2f} %, {bounds} held back")
    return found


def members(folder: Path, how: str) -> list[Member]:
    """Two clients from each of the demo's, with every other pair each."""
    found = []
    for name, source in get_preferences(ROOT / ".cache" / "preferences").items():
        lines = (source / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
        for half in (0, 1):
            data = folder / f"{name}-{half + 1}.jsonl"
            data.write_text("".join(lines[half::2]), encoding="utf-8")
            found.append(Member(f"{name}-{half + 1}", data, source / "eval.jsonl"))
    found.sort(key=lambda member: member.name)
    if how:
        program = ("python", str(HERE / "client.py"), how)
        found[-1] = Member(found[-1].name, found[-1].data, found[-1].eval_data, program)
    return found


def table(runs: dict[str, Any]) -> Table:
    """Every run, and how far the seven are from the run in which nobody is hostile."""
    shown = Table(title="one hostile client of eight", box=SIMPLE)
    shown.add_column("the hostile one's deltas", no_wrap=True)
    for column in ("mean of the seven, %", "less", "worst of the seven, %", "held back"):
        shown.add_column(column, justify="right")
    usual = runs.get("nobody is hostile", {}).get("accuracy_of_seven")
    for name, found in runs.items():
        shown.add_row(
            name,
            f"{100 * found['accuracy_of_seven']:.2f}",
            f"{100 * (usual - found['accuracy_of_seven']):.2f}" if usual else "",
            f"{100 * found['worst_of_seven']:.2f}",
            str(found["held_back"]),
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
