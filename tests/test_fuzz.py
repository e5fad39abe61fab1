"""Inputs that a fuzzer makes, against the decoder and a real server: no crash, no hang, no growth.

FEDPDPO_FUZZ says how many for each of the two; `make test-security` takes 100,000.
"""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fuzz.service import Fuzzer
from processes import stage
from report import memory_bytes
from serving import BACKBONE, TOKENIZER, Client, tensors

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

INPUTS = int(os.environ.get("FEDPDPO_FUZZ", "3000"))
THREADS = 4
MOST_MIB = 64


def test_the_decoder_takes_or_refuses_whatever_comes(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    program = Path(__file__).parent / "fuzz" / "decoder.py"
    limits = ("-max_len=4096", "-rss_limit_mb=512", "-timeout=5", "-seed=1")
    command = (sys.executable, str(program), f"-runs={INPUTS}", *limits)
    # By a shell that forks: what is executed by this process itself inherits its peak memory.
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {INPUTS} runs" in done.stderr


def test_a_server_stays_as_it_was_whatever_is_sent(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(
            "--min-clients", 1, "--rounds", 100_000, "--model", "tiny",
            "--stall-timeout-s", 2,
        )  # fmt: skip
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            ada = Client(FederationServiceStub(channel), "ada")
            ada.join()
            names = {
                "run_id": ada.run_id,
                "client_id": "ada",
                "backbone_fingerprint": BACKBONE,
                "tokenizer_fingerprint": TOKENIZER,
            }
            fuzz(port, names, 500)
            before = memory_bytes("VmRSS", server.process.pid)
            codes = fuzz(port, names, INPUTS)
            grown_mib = (memory_bytes("VmHWM", server.process.pid) - before) / 2**20
            assert server.runs, server.output[-3000:]
            assert sum(codes.values()) >= INPUTS - THREADS
            assert {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"} <= codes.keys(), codes
            assert not {"UNAVAILABLE", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL"} & codes.keys(), (
                codes
            )
            assert "failed method=" not in server.output
            assert grown_mib < MOST_MIB
            ada.join()
            for _ in range(3):
                task = ada.task()
                if task.WhichOneof("task") == "train":
                    ada.push(task.train.round, tensors(0.5))
                    break
                ada.report(task.evaluate.adapter_version)
            else:
                raise AssertionError(f"ada is not asked to train: {task}")
        print(f"{sum(codes.values())} calls, {dict(codes)}, {grown_mib:.1f} MiB more")


def fuzz(port: int, names: dict[str, str], num: int) -> Counter[str]:
    """So many calls from several threads; counts of what was answered."""

    def one(seed: int) -> Counter[str]:
        fuzzer = Fuzzer(seed, names)
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            for _ in range(num // THREADS):
                fuzzer.call(channel)
        return fuzzer.codes

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(one, range(THREADS)), Counter())
