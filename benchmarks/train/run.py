"""The training benchmark: FedPDPO's engine and TRL's DPOTrainer on the same tokens.

Every run is a process of its own with all cores, ours and TRL's in turn. Writes OUT/train.json
after each case, and OUT/train.svg.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cases import CASES, VARIANTS, Case, order
from data import Data, get_data, token_counts
from fedpdpo.client.machine import available_cores
from growth import growth
from job import Job
from machine import QUIET, setting
from measure import matmul_rate, rate_during, run_job
from picture import draw
from report import RESULTS, ROOT, console, exit_code
from results import Results
from table import growth_table, ratios_table

GROWTH = "growth"
QUICK_PAIRS = 8
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "fedpdpo")


def main() -> int:
    """Run the command line; gives the exit code."""
    args = parsed()
    return exit_code(lambda: bench(args, (args.model or packaged_model()).resolve()))


def parsed() -> argparse.Namespace:
    """The command line's options."""
    names = [*dict.fromkeys(case.name for case in CASES), GROWTH]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder instead of the packaged SmolLM2-135M")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT.parent / "shared" / "data",
        help="folder of the real pairs; without them random tokens of the same lengths are taken",
    )
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE",
                        help=f"which to run, of {', '.join(names)}")  # fmt: skip
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 3], help="1, 3 or both")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each variant of TRL's")
    parser.add_argument("--again", type=int, default=1,
                        help="repeats of a run that other processes disturb")  # fmt: skip
    parser.add_argument("--out", type=Path, help="by default benchmarks/results")
    parser.add_argument(
        "--quick", action="store_true", help="8 pairs and 1 epoch; OUT is runs/bench-train"
    )
    args = parser.parse_args()
    args.out = args.out or (ROOT / "runs" / "bench-train" if args.quick else RESULTS)
    return args


def packaged_model() -> Path:
    """The demo's model, from a package index unless it is there already."""
    sys.path.append(str(ROOT / "deploy" / "demo"))
    from model import get_model

    return get_model(ROOT / ".cache" / "smollm2-135m-instruct")


def bench(args: argparse.Namespace, model: Path) -> None:
    """Measure what the options ask for, case by case."""
    begun = time.monotonic()
    threads = available_cores()
    data = get_data(args.data, model)
    results = Results(args.out / "train.json")
    cases = [case for case in CASES if case.name in args.cases and case.epochs in args.epochs]
    if args.quick:
        cases = [case for case in cases if case.epochs == 1]
    for case in cases:
        measured = measure(case, model, data, threads=threads, args=args)
        results.put_case(case, measured)
        draw(results.content, args.out / "train.svg", epochs=1 if args.quick else 3)
    if GROWTH in args.cases:
        results.put_growth(
            growth(
                str(model),
                threads=threads,
                again=args.again,
                quick=args.quick,
                done=console.print,
            )
        )
    console.print(ratios_table(results.content["cases"]))
    if GROWTH in results.content:
        console.print(growth_table(results.content[GROWTH]))
    console.print(f"{time.monotonic() - begun:.0f} s; {args.out}/train.json holds every figure")


def measure(
    case: Case, model: Path, data: Data, *, threads: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Run a case's variants in turn, with a look at the machine's rate between any two."""
    pairs = data.pairs[case.data][: QUICK_PAIRS if args.quick else None]
    job = Job(
        model=str(model),
        pairs=pairs,
        batch_pairs=case.batch_pairs,
        epochs=case.epochs,
        threads=threads,
        last_layers=case.last_layers,
    )
    runs: list[dict[str, Any]] = []
    before = matmul_rate(threads=threads)
    for variant in order(case, repeats=args.repeats):
        done = _runs(case, variant, job, again=args.again)
        after = matmul_rate(threads=threads)
        runs += [figures | rate_during(before, after, figures) for figures in done]
        before = after
    return {
        "data_source": data.source,
        **token_counts(pairs),
        "model": model.name,
        "setting": {**setting(PACKAGES), "threads": threads},
        "runs": runs,
    }


def _runs(case: Case, variant: str, job: Job, *, again: int) -> list[dict[str, Any]]:
    program, changes = VARIANTS[variant]
    runs = run_job(program, replace(job, **changes), again=again)
    for figures in runs:
        console.print(
            f"{case.title} {variant}: {figures['wall_s']:.1f} s, "
            f"{figures['pairs_per_s']:.2f} pairs/s, peak {figures['peak_mib']:.0f} MiB, "
            f"loss {figures['loss']:.4f}"
        )
        if figures["others_share"] > QUIET:
            share = f"{100 * figures['others_share']:.0f} %"
            console.print(f"  other processes took {share} of the cores meanwhile", style="yellow")
    return [{"variant": variant, **figures} for figures in runs]


if __name__ == "__main__":
    sys.exit(main())
