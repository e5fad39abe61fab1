"""What each encoding of deltas costs: held-out accuracy of the demo's federation, and bytes.

Runs the demo once for each encoding, with LoRA in the last 8 layers: a real server, four clients, a
real small model and real pairs. Writes OUT/encodings.json after each run.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from fedpdpo.common.run import MethodSettings
from machine import setting
from report import RESULTS, ROOT, BenchmarkError, Report, console, exit_code

LAYERS = "last-8"
PACKAGES = ("torch", "transformers", "peft", "fedpdpo")

#: A run's name, and the server's settings that make it.
RUNS: dict[str, dict[str, str]] = {
    "float32": {"ENCODING": "float32"},
    "float32 + zstd": {"ENCODING": "float32", "ZSTD": "true"},
    "bfloat16": {"ENCODING": "bfloat16"},
    "int8": {"ENCODING": "int8"},
    "int8 + zstd": {"ENCODING": "int8", "ZSTD": "true"},
    "topk, 10 %": {"ENCODING": "topk", "TOPK_SHARE": "0.1"},
    "topk, 1 %": {"ENCODING": "topk", "TOPK_SHARE": "0.01"},
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
    report = Report(args.out / "encodings.json", runs={})
    report.of(method=MethodSettings().model_dump(mode="json"), lora_layers=LAYERS)
    for name in args.runs:
        runs = report.content["runs"] | {name: run(name, rounds=args.rounds)}
        report.content |= {"setting": setting(PACKAGES),
                           "runs": {one: runs[one] for one in RUNS if one in runs}}  # fmt: skip
        report.write()
    console.print(table(report.content["runs"]))


def run(name: str, *, rounds: int) -> dict[str, Any]:
    """Run the demo with one encoding. Raises BenchmarkError where it fails."""
    folder = ROOT / "runs" / "encodings" / name.replace(" ", "").replace("%", "")
    settings = {"LORA__LAYERS": LAYERS, **RUNS[name]}
    environment = {f"FEDPDPO_SERVER_{key}": value for key, value in settings.items()}
    command = [sys.executable, str(ROOT / "deploy/demo/run.py"), "--out", str(folder),
               "--rounds", str(rounds)]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{name}: {done.stderr[-2000:]}")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    with closing(sqlite3.connect(folder / "server" / "run.sqlite")) as database:
        received = "SELECT SUM(bytes_received) FROM clients"
        (arrived,) = database.execute(received).fetchone()
    clients = summary["clients"].values()
    found = {
        "accuracy": summary["mean_accuracy_after"],
        "global_accuracy": fmean(client["after_without_private_parts"] for client in clients),
        "held_out_pairs": sum(client["num_held_out_pairs"] for client in clients),
        "rounds": summary["rounds"],
        "kib_a_delta": arrived / 1024 / len(clients) / summary["rounds"],
        "wall_s": summary["wall_s"],
    }
    accuracy, size = 100 * found["accuracy"], found["kib_a_delta"]
    console.print(f"{name}: {accuracy:.2f} %, {size:.0f} KiB a delta")
    return found


def table(runs: dict[str, Any]) -> Table:
    """Every encoding with its cost."""
    shown = Table(title="what an encoding of deltas costs", box=SIMPLE)
    shown.add_column("encoding", no_wrap=True)
    for column in ("accuracy %", "global model %", "KiB a delta", "of float32"):
        shown.add_column(column, justify="right")
    whole = runs.get("float32", {}).get("kib_a_delta")
    for name, found in runs.items():
        shown.add_row(
            name,
            f"{100 * found['accuracy']:.2f}",
            f"{100 * found['global_accuracy']:.2f}",
            f"{found['kib_a_delta']:.0f}",
            f"{found['kib_a_delta'] / whole:.3f}" if whole else "",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
