"""FedPDPO beside its baselines on real preferences that differ from client to client.

    run.py quick     a few methods in one setting with one seed: minutes
    run.py full      sweeps, tuning, the table, growth, newcomers, generations: hours

Goes on where it was left: results/accuracy.json holds every cell. Settings whose data are not in
--data are left out, with word of where each can be had; what comes after the tuning needs those of
all settings that rates are chosen in. `page.py` makes the page from the results.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from bench import Bench
from by_wire import same_bits
from cell import Cell
from fedpdpo.client.machine import available_cores
from generations import LONGER, generations, generations_cell
from machine import setting as machine_setting
from model import get_model
from newcomer import newcomer, newcomer_cell
from partitions import SETTINGS
from plan import (
    ROUNDS,
    ROWS,
    SEEDS,
    SWEEPS,
    TUNED_IN,
    Opened,
    chosen_rate,
    further_cells,
    growth_cells,
    handed_cells,
    mean_accuracy,
    sweep_cells,
    table_cells,
    tune_cells,
)
from report import RESULTS, ROOT, BenchmarkError, Report, console, exit_code
from worlds import ORIGINS, at_hand

PACKAGES = ("torch", "transformers", "peft", "fedpdpo")
PHASES = ("sweeps", "tune", "table", "baselines", "growth", "newcomer", "generation", "processes")
QUICK = ("base", "local", "fedavg", "fedpdpo", "less-sharing")

_bench: Bench | None = None


def main() -> int:
    """Run the command line; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extent", nargs="?", choices=("quick", "full"), default="quick")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES),
                        help="of the full run; all by default")  # fmt: skip
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=[], metavar="QUESTION",
                        help=f"of {', '.join(SWEEPS)}; all by default")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=0.0,
                        help="begin no cell after so many minutes; 0: no limit")  # fmt: skip
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", type=Path, help="a folder instead of the packaged SmolLM2-135M")
    parser.add_argument("--device", default="cpu",
                        help="cuda: the workers share a GPU, in bfloat16")  # fmt: skip
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--out", type=Path,
                        help="benchmarks/results; for quick runs/bench-accuracy")  # fmt: skip
    args = parser.parse_args()
    return exit_code(lambda: bench(args))


def bench(args: argparse.Namespace) -> None:
    """Run what is not there yet."""
    args.model = args.model or get_model(ROOT / ".cache" / "smollm2-135m-instruct")
    out = args.out or (RESULTS if args.extent == "full" else ROOT / "runs" / "bench-accuracy")
    runs = Runs(args, Report(out / "accuracy.json", cells={}, opened={}))
    if args.extent == "quick":
        runs.cells([Cell("film-3", method, 0, 2) for method in QUICK])
        return
    runs.check(args.phases)
    for phase in args.phases:
        runs.phase(phase)


class Runs:
    """Runs cells in processes, one a core, and keeps each result as it comes."""

    def __init__(self, args: argparse.Namespace, report: Report) -> None:
        self._args = args
        self._report = report
        self._ends_at = time.time() + 60 * args.minutes if args.minutes else float("inf")
        report.content["setting"] = machine_setting(PACKAGES)

    @property
    def found(self) -> dict[str, Any]:
        """All cells by key."""
        cells: dict[str, Any] = self._report.content["cells"]
        return cells

    def check(self, phases: Iterable[str]) -> None:
        """Raises BenchmarkError where a phase needs rates and lacks data to choose them by."""
        told = ", ".join(phase for phase in phases if phase not in ("sweeps", "tune"))
        ready = [self._has_data(name) for name in TUNED_IN] if told else []
        if not all(ready):
            raise BenchmarkError(
                f"without these data no rates can be chosen, and {told} cannot run; get the data, "
                "or ask for --phases sweeps"
            )

    def phase(self, name: str) -> None:
        """Run a phase of the full benchmark. Raises BenchmarkError where an earlier one lacks."""
        match name:
            case "sweeps":
                self.cells(sweep_cells(self._args.sweeps))
            case "tune":
                self.cells(tune_cells())
                if all(cell.key in self.found for cell in tune_cells()):
                    self.cells(further_cells(self.found))
            case "growth":
                self.cells(growth_cells(self.found))
            case "baselines":
                self.cells(handed_cells(self.found))
            case "table":
                opened = Opened(self._report.content["opened"])
                self.cells(table_cells(self.found, opened))
            case _:
                self._extra(name)

    def cells(self, wanted: Iterable[Cell]) -> None:
        """Run those cells that were not run yet."""
        by_key = {cell.key: cell for cell in wanted}
        self._report.write()
        new = [cell for key, cell in by_key.items() if key not in self.found]
        ready = {name: self._has_data(name) for name in dict.fromkeys(one.setting for one in new)}
        with self._pool() as pool:
            waiting = {
                pool.submit(_run, cell, self._ends_at): cell for cell in new if ready[cell.setting]
            }
            for number, (cell, result) in enumerate(_as_they_come(waiting), start=1):
                if result is not None:
                    self.found[cell.key] = result
                    self._report.write()
                    console.print(f"{number}/{len(waiting)} {_told(cell, result)}")

    def _extra(self, name: str) -> None:
        """What is not a cell: newcomers, generations, one row through processes."""
        rate = chosen_rate(self.found, ROWS["fedpdpo"])
        job, cells = {
            "newcomer": (_newcomer, [newcomer_cell(seed, ROUNDS, rate) for seed in SEEDS]),
            "generation": (
                _generations,
                [generations_cell(times * ROUNDS, rate) for times in (1, LONGER)],
            ),
            "processes": (_same_bits, [Cell("film-3", "fedpdpo", 0, 2, rate=rate)]),
        }[name]
        before = self._report.content.get(name, {})
        kept = {cell.key: before[cell.key] for cell in cells if cell.key in before}
        self._report.content[name] = kept
        with self._pool() as pool:
            waiting = {pool.submit(job, cell): cell for cell in cells if cell.key not in kept}
            for cell, result in _as_they_come(waiting):
                kept[cell.key] = result
                self._report.write()
                console.print(f"{name} {cell.key}: done")

    def _pool(self) -> ProcessPoolExecutor:
        args = self._args
        given = (str(args.model), args.data, ROOT / ".cache" / "accuracy", args.device)
        context = get_context("spawn")
        return ProcessPoolExecutor(args.workers, context, initializer=_begin, initargs=given)

    def _has_data(self, setting: str) -> bool:
        names = SETTINGS[setting].pools
        if at_hand(set(names), self._args.data):
            return True
        console.print(f"{setting} is left out; {self._args.data} lacks some of: "
                      + "; ".join(ORIGINS[name] for name in sorted(names)))  # fmt: skip
        return False


def _as_they_come(waiting: Mapping[Future[Any], Cell]) -> Iterator[tuple[Cell, Any]]:
    """Each cell with its result; those that failed are told when all others are done."""
    failed = {}
    for done in as_completed(waiting):
        if error := done.exception():
            failed[waiting[done].key] = error
        else:
            yield waiting[done], done.result()
    for key, error in failed.items():
        raise BenchmarkError(
            f"{len(failed)} of {len(waiting)} failed, the others are kept. {key}: {error!r}"
        ) from error


# --- in a process of the pool ---------------------------------------------------------------------


def _begin(model: str, data: Path, cache: Path, device: str) -> None:
    global _bench
    os.environ["HF_HUB_OFFLINE"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _bench = Bench(model=model, data=data, cache=cache, device=device)


def _end_with_parent() -> None:
    """A parent that is killed takes nobody along, and what is left would hold its memory."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _here() -> Bench:
    if _bench is None:
        raise BenchmarkError("this process was not begun")
    return _bench


def _run(cell: Cell, ends_at: float) -> dict[str, Any] | None:
    return None if time.time() > ends_at else _here().run(cell)


def _newcomer(cell: Cell) -> dict[str, Any]:
    return newcomer(_here(), cell)


def _generations(cell: Cell) -> dict[str, Any]:
    return generations(_here(), cell)


def _same_bits(cell: Cell) -> dict[str, Any]:
    return same_bits(_here(), cell)


def _told(cell: Cell, result: dict[str, Any]) -> str:
    shares = [
        f"{stage} " + " ".join(f"{100 * mean_accuracy(result, stage, kind):.1f}"
                               for kind in ("implicit", "explicit", "combined"))
        for stage in (("after", "local") if cell.local else ("after",))
    ]  # fmt: skip
    told = f"{cell.key} rate={cell.rate:g} {cell.changed or ''}"
    return f"{told}: {', '.join(shares)}, {result['seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
