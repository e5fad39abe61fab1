"""Clients on one machine share its cores; signals end a process at a good moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.machine import CoreShare, Neighbours, available_cores, threads_for

ANOTHER = """
import sys
from pathlib import Path
from fedpdpo.client.machine import Neighbours
with Neighbours(Path(sys.argv[1])).present():
    print("present", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "clients", "threads"), [(16, 1, 16), (16, 3, 5), (2, 4, 1), (1, 1, 1)]
)
def test_cores_are_divided_evenly_and_nobody_gets_none(
    cores: int, clients: int, threads: int
) -> None:
    assert threads_for(num_cores=cores, num_clients=clients) == threads


def test_only_cores_that_the_process_may_run_on_count() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cores() == len(allowed)


def test_clients_that_live_are_counted_and_those_that_were_killed_are_not(tmp_path: Path) -> None:
    neighbours = Neighbours(tmp_path)
    assert neighbours.count() == 1
    command = [sys.executable, "-c", ANOTHER, str(tmp_path)]
    with neighbours.present():
        assert neighbours.count() == 1
        others = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"present\n"
        assert neighbours.count() == 3
        for other in others:
            other.kill()
            other.communicate()
        assert neighbours.count() == 1


def test_a_folder_that_others_may_write_to_is_left_alone(tmp_path: Path) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    victim.write_text("precious")
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "1.lock").symlink_to(victim)
    linked = tmp_path / "linked"
    linked.symlink_to(shared)
    for folder in (shared, linked):
        neighbours = Neighbours(folder)
        with neighbours.present():
            assert neighbours.count() == 1
    assert victim.read_text() == "precious"
    assert [path.name for path in shared.iterdir()] == ["1.lock"]


def test_a_share_follows_the_neighbours_unless_it_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbours = Neighbours(tmp_path)
    monkeypatch.setattr("fedpdpo.client.machine.available_cores", lambda: 6)
    monkeypatch.setattr(neighbours, "count", lambda: 2)
    assert CoreShare(0, neighbours).take() == torch.get_num_threads() == 3
    assert CoreShare(0, neighbours).take(like=2) == torch.get_num_threads() == 2
    assert CoreShare(1, neighbours).take(like=2) == torch.get_num_threads() == 1


def test_a_signal_ends_the_process_at_once_or_when_it_is_ready() -> None:
    interruption = Interruption()
    before = signal.getsignal(signal.SIGTERM)
    with interruption.handled():
        with pytest.raises(SystemExit, match="143"), interruption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert interruption.wanted == signal.SIGTERM
            with pytest.raises(SystemExit, match="143"):
                interruption.end()
            with pytest.raises(SystemExit, match="143"):
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit, match="130"):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_nobody_looked_for_in_time_ends_the_process_with_the_block() -> None:
    interruption, passed = Interruption(), []
    with interruption.handled(), pytest.raises(SystemExit) as ended:
        with interruption.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            passed.append("the block")
        passed.append("what follows")
    assert passed == ["the block"]
    assert ended.value.code == 128 + signal.SIGTERM
