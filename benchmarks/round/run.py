"""The round benchmark: federated rounds without training, beside Flower and bare gRPC.

Every system runs every case in turn, each with its server and clients as processes of their own.
Writes OUT/round.json after each run, and OUT/round.svg.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES, ENGINE, FLOWER, ROUNDS, SYSTEMS, Case
from crowd import crowd
from picture import draw
from programs import Look, programs
from report import RESULTS, BenchmarkError, console, exit_code
from results import Results
from systems import FLOWER_BIN
from systems import SYSTEMS as STARTED_BY
from table import crowd_table, ratios_table

FLOWER_VERSION = "flwr==1.41.0"
CROWD = "crowd"
PATIENCE_S = 240.0


def main() -> int:
    """Run the command line; gives the exit code."""
    args = parsed()
    return exit_code(lambda: bench(args))


def parsed() -> argparse.Namespace:
    """The command line's options."""
    titles = [*(case.title for case in CASES), CROWD]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=titles, default=titles, metavar="CASE",
                        help=f"which to run, of {', '.join(titles)}")  # fmt: skip
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="SYSTEM",
                        help=f"which to compare, of {', '.join(SYSTEMS)}")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=2,
                        help="runs of each system, save Flower's deployment engine")  # fmt: skip
    parser.add_argument("--crowd", type=int, default=1000, help="clients of the crowd")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def bench(args: argparse.Namespace) -> None:
    """Measure what the options ask for, case by case."""
    if {FLOWER, ENGINE} & set(args.systems):
        install_flower()
    results = Results(args.out / "round.json")
    for case in CASES:
        if case.title not in args.cases:
            continue
        runs: list[dict[str, Any]] = []
        for again in range(args.repeats):
            for system in args.systems:
                if system == ENGINE and again:
                    continue
                runs.append(one_run(case, system))
        results.put_case(case, runs)
    if CROWD in args.cases:
        with tempfile.TemporaryDirectory() as folder:
            results.put_crowd(crowd(Path(folder), clients=args.crowd))
    draw(results.content, args.out / "round.svg")
    console.print(ratios_table(results.content["cases"]))
    if CROWD in results.content:
        console.print(crowd_table(results.content[CROWD]))


def install_flower() -> None:
    """Make an environment of Flower's own, unless it is there."""
    if (FLOWER_BIN / "flwr").exists():
        return
    console.print(f"installing {FLOWER_VERSION} into {FLOWER_BIN.parent}")
    shutil.rmtree(FLOWER_BIN.parent, ignore_errors=True)
    venv.create(FLOWER_BIN.parent, with_pip=True)
    pip = [str(FLOWER_BIN / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, FLOWER_VERSION], check=False).returncode:
        shutil.rmtree(FLOWER_BIN.parent)
        raise BenchmarkError(f"{FLOWER_VERSION} cannot be installed")


def one_run(case: Case, system: str) -> dict[str, Any]:
    """Run one system on a case, and give what a round of it took.

    A system that does not end its rounds is a result too: `failed` says what it said.
    """
    rounds = 1 + ROUNDS[system]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "PATH": f"{FLOWER_BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": folder,
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        with programs(Path(folder), environment) as started:
            federation = STARTED_BY[system](case, rounds, started)
            try:
                federation.start()
                looks = started.watch(
                    lambda: len(federation.ends()) >= rounds,
                    federation.servers,
                    patience_s=PATIENCE_S,
                )
            except BenchmarkError as error:
                console.print(f"{case.title} {system}: {error}", style="yellow", markup=False)
                return {"system": system, "failed": str(error).splitlines()[0]}
            found = figures(federation.ends(), looks)
            found["server_peak_mib"] = federation.servers[0].peak_mib
    console.print(
        f"{case.title} {system}: {found['round_s']:.2f} s a round, "
        f"{found['cpu_s']:.2f} CPU s, {found['moved_mib']:.0f} MiB, "
        f"server {found['server_peak_mib']:.0f} MiB"
    )
    return {"system": system, **found}


def figures(ends: list[float], looks: list[Look]) -> dict[str, Any]:
    """What a round took, from the end of the first one on: median seconds, and means of the rest.

    CPU seconds are those of the whole machine, bytes those of its loopback.
    """
    seconds = [after - before for before, after in pairwise(ends)]
    first = min(looks, key=lambda look: abs(look.at_s - ends[0]))
    last = min(looks, key=lambda look: abs(look.at_s - ends[-1]))
    return {
        "round_s": median(seconds),
        "rounds_s": seconds,
        "cpu_s": (last.busy_s - first.busy_s) / len(seconds),
        "moved_mib": (last.loopback_bytes - first.loopback_bytes) / len(seconds) / 2**20,
    }


if __name__ == "__main__":
    sys.exit(main())
