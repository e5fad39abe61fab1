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
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedpdpo.common.files import whole_file
from machine import setting

ROOT = Path(__file__).parents[2]
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

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 100)


def main() -> int:
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN",
                        help=f"which to make, of {', '.join(RUNS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    path = args.out / "encodings.json"
    content: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"runs": {}}
    for name in args.runs:
        found = run(name, rounds=args.rounds)
        if found is None:
            return 1
        runs = content["runs"] | {name: found}
        content = {"setting": setting(PACKAGES), "lora_layers": LAYERS,
                   "runs": {one: runs[one] for one in RUNS if one in runs}}  # fmt: skip
        with whole_file(path) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(table(content["runs"]))
    return 0


def run(name: str, *, rounds: int) -> dict[str, Any] | None:
    """Run the demo with one encoding; None, having said why, where it fails."""
    folder = ROOT / "runs" / "encodings" / name.replace(" ", "").replace("%", "")
    settings = {"LORA__LAYERS": LAYERS, **RUNS[name]}
    environment = {f"FEDPDPO_SERVER_{key}": value for key, value in settings.items()}
    command = [sys.executable, str(ROOT / "deploy/demo/run.py"), "--out", str(folder),
               "--rounds", str(rounds)]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        console.print(f"{name}: {done.stderr[-2000:]}", style="red", markup=False)
        return None
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    with closing(sqlite3.connect(folder / "server" / "run.sqlite")) as database:
        received = "SELECT SUM(bytes_received) FROM clients"
        (arrived,) = database.execute(received).fetchone()
    clients = summary["clients"].values()
    found = {
        "accuracy": summary["mean_accuracy_after"],
        "global_accuracy": mean(client["after_without_private_parts"] for client in clients),
        "held_out_pairs": sum(client["num_held_out_pairs"] for client in clients),
        "rounds": summary["rounds"],
        "kib_a_delta": arrived / 1024 / len(clients) / summary["rounds"],
        "wall_s": summary["wall_s"],
    }
    accuracy, size = 100 * found["accuracy"], found["kib_a_delta"]
    console.print(f"{name}: {accuracy:.2f} %, {size:.0f} KiB a delta")
    return found


def mean(values: Any) -> float:
    """The mean of some numbers."""
    every = list(values)
    return float(sum(every) / len(every))


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
