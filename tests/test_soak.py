"""Two hundred rounds with eight clients: the server holds no more at the end than at the start."""

import sys
from pathlib import Path

import psutil
import pytest

import untrained
from processes import Stage, stage, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

ROUNDS = 200
SETTLED = 20
CLIENTS = 8
MOST_GROWTH = 1.05


def test_a_server_holds_no_more_after_200_rounds_than_after_20(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        server, port = on.server("--min-clients", CLIENTS, "--rounds", ROUNDS)
        command = (untrained.__file__, port, 1, tmp_path, 0, CLIENTS)
        clients = on.start(sys.executable, *command, log="clients")
        process = psutil.Process(server.process.pid)
        early = held_at(process, SETTLED, on)
        late = held_at(process, ROUNDS, on)
        print(f"after {SETTLED} rounds {early}, after {ROUNDS} rounds {late}")
        assert clients.ends() == 0, clients.output
        assert server.ends() == 0, server.output
    assert late["memory"] < MOST_GROWTH * early["memory"]
    assert late["files"] <= early["files"]
    assert late["threads"] <= early["threads"]


def held_at(process: psutil.Process, version: int, on: Stage) -> dict[str, int]:
    """What the server holds right after it published an adapter."""
    adapter = on.folder / "server" / "adapters" / f"version-{version:05d}.safetensors"
    until(adapter.exists, f"version {version}", patience_s=600)
    with process.oneshot():
        return {
            "memory": process.memory_info().rss,
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }
