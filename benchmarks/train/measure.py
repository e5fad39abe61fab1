"""Runs the benchmark's programs, each as a process of its own, and gathers what they measured."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedpdpo.client.machine import available_cores
from job import Job
from machine import QUIET, busy_s
from report import BenchmarkError

HERE = Path(__file__).parent


def run_job(program: str, job: Job, *, again: int) -> list[dict[str, Any]]:
    """Train by one of the programs and give what it measured.

    A run that other processes disturb is repeated up to `again` times: there may be several.
    """
    visits = len(job.pairs) * job.epochs
    runs = []
    for _ in range(1 + again):
        found = run_program(program, asdict(job))
        runs.append({**found, "pairs_per_s": visits / found["wall_s"]})
        if found["others_share"] <= QUIET:
            break
    return runs


def run_program(program: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run a program of this folder: JSON in, a JSON file out.

    Adds `others_share`, how much of all cores other processes took meanwhile: figures are worth
    something only where it is near 0. Raises BenchmarkError where the program fails, with the end
    of what it said.
    """
    begun, busy, own = time.perf_counter(), _busy_s(), _children_s()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, str(HERE / program), str(result)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        )
        if done.returncode or not result.exists():
            said = "\n".join(done.stderr.strip().splitlines()[-12:]) or "nothing on stderr"
            raise BenchmarkError(f"{program} failed with exit status {done.returncode}:\n{said}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    others_s = (_busy_s() - busy) - (_children_s() - own)
    share = others_s / (time.perf_counter() - begun) / available_cores()
    return {**found, "others_share": max(0.0, share)}


def matmul_rate(*, threads: int) -> dict[str, Any]:
    """The machine's rate of matrix products at this moment, in GFLOP/s."""
    return run_program("rate.py", {"threads": threads})


def rate_during(
    before: Mapping[str, Any], after: Mapping[str, Any], figures: Mapping[str, Any]
) -> dict[str, float]:
    """The machine's rate as it was around a run, and which share of it the run made use of.

    The rate swings by half within minutes, so the mean of the two looks next to a run is taken.
    """
    rate = (before["machine"] + after["machine"]) / 2
    found = {
        "machine_gflop_rate": rate,
        "rate_others_share": max(before["others_share"], after["others_share"]),
    }
    if "flops" in figures:
        found["share_of_matmul_rate"] = figures["flops"] / figures["wall_s"] / (rate * 1e9)
    return found


def _busy_s() -> float:
    """CPU seconds of all processes; only of this one's children where more is not told."""
    busy = busy_s()
    return _children_s() if busy is None else busy


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
