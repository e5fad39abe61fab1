"""A server that is told to stay serves on after the run's end."""

import subprocess
import urllib.request
from pathlib import Path

import pytest

from fedpdpo.v1 import operator_pb2
from processes import Program, stage
from serving import Client, connected
from watched import free_port

LONGER_THAN_A_TICK_S = 3.0


def stays(server: Program) -> bool:
    """Whether it still runs when one that does not stay would have ended."""
    try:
        server.process.wait(LONGER_THAN_A_TICK_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def page(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize("stay", [True, False])
def test_a_server_told_to_stay_serves_until_it_is_told_to_end(tmp_path: Path, stay: bool) -> None:
    site = free_port()
    settings = ("--dashboard-port", site, *["--stay"] * stay)
    with stage(tmp_path) as on:
        server, port = on.server(*settings)
        with connected(port) as (stub, operator):
            client = Client(stub, "ada")
            client.join()
            operator.StopRun(operator_pb2.StopRunRequest())
            client.leave()
        if not stay:
            assert server.ends() == 0, server.output
            again, _ = on.server(*settings)
            assert again.ends() == 0, again.output
            assert "run_ended" in again.output
            assert "another --state-dir begins a new run" in again.output
            return
        assert stays(server), server.output
        server.terminate()
        assert server.ends() == 0, server.output
        server, port = on.server(*settings)
        assert stays(server), server.output
        assert 'fedpdpo_phase{phase="stopped"} 1.0' in page(site, "metrics").decode()
        kept = tmp_path / "server" / "adapters" / "version-00000.safetensors"
        assert page(site, "adapters/0.safetensors") == kept.read_bytes()
        server.terminate()
        assert server.ends() == 0, server.output
