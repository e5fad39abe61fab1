"""What `fedpdpo status` shows of a run."""

import io
import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from fedpdpo.client.tool.operator import ServerAddress, show_status, watch_status
from fedpdpo.server import Server
from fedpdpo.server.onlookers import MOST_S, Onlookers
from fedpdpo.v1 import operator_pb2
from processes import until
from serving import Client, connected, running, settings


def console() -> Console:
    return Console(record=True, width=120, force_terminal=True, file=io.StringIO())


def begun(target: Callable[..., None], *arguments: object, **named: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, kwargs=named, daemon=True)
    thread.start()
    return thread


def stopped_with_a_client(port: int, seen: Console) -> None:
    """A client comes, the run is stopped, and both are seen before the client leaves."""
    with connected(port) as (stub, operator):
        client = Client(stub, "ada")
        client.join()
        until(lambda: "ada" in seen.export_text(clear=False), "the client in the table")
        operator.StopRun(operator_pb2.StopRunRequest())
        until(lambda: "phase stopped" in seen.export_text(clear=False), "the end")
        client.leave()


def test_status_is_shown_again_until_the_run_has_ended(tmp_path: Path) -> None:
    seen = console()
    with running(settings(tmp_path / "server")) as port:
        to = ServerAddress(server=f"localhost:{port}")
        show_status(to, seen)
        assert "waiting for 2 more clients" in seen.export_text()
        watching = begun(watch_status, to, seen, every_s=0.05)
        stopped_with_a_client(port, seen)
        watching.join(120)
        assert not watching.is_alive()


def test_a_server_that_went_away_is_waited_for_a_while(tmp_path: Path) -> None:
    seen = console()
    with running(settings(tmp_path / "server")) as port:
        to = ServerAddress(server=f"localhost:{port}")
        watching = begun(watch_status, to, seen, every_s=0.05, patience_s=120.0)
        until(lambda: "waiting" in seen.export_text(clear=False), "the table")
    until(lambda: "is away" in seen.export_text(clear=False), "word that it is away")
    with running(settings(tmp_path / "server", port=port)):
        stopped_with_a_client(port, seen)
        watching.join(30)
        assert not watching.is_alive()


def test_one_who_looks_seldom_sees_the_end_too(tmp_path: Path) -> None:
    seen = console()
    with Server(settings(tmp_path / "server")) as server:
        to = ServerAddress(server=server.address)
        watching = begun(watch_status, to, seen, every_s=2.0, patience_s=0.0)
        until(lambda: "waiting" in seen.export_text(clear=False), "the table")
        with connected(server.port) as (stub, operator):
            client = Client(stub, "ada")
            client.join()
            operator.StopRun(operator_pb2.StopRunRequest())
            client.leave()
        watching.join(60)
        assert not watching.is_alive()
        assert "phase stopped" in seen.export_text(clear=False)
        assert server.wait(60)


def test_an_onlooker_who_does_not_come_back_is_not_waited_for() -> None:
    now = [0.0]
    onlookers = Onlookers(lambda: now[0])
    onlookers.looked("ada", again_in_s=1e9, ended=False)
    onlookers.looked("bea", again_in_s=0.0, ended=False)
    now[0] = MOST_S
    assert onlookers.awaited
    onlookers.looked("cid", again_in_s=2.0, ended=False)
    now[0] += 4.0
    assert onlookers.awaited
    onlookers.looked("cid", again_in_s=2.0, ended=True)
    assert not onlookers.awaited


def test_onlookers_on_ever_new_connections_are_forgotten_while_the_run_goes_on() -> None:
    now = [0.0]
    onlookers = Onlookers(lambda: now[0])
    for number in range(1000):
        onlookers.looked(f"ipv4:127.0.0.1:{number}", again_in_s=2.0, ended=False)
        now[0] += 1.0
    assert len(onlookers) < 10
