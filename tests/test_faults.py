"""Every fault survived: killed anywhere, cut off, slowed down; the run ends with the same bits.

Writes what came of each fault to the file that FEDPDPO_FAULTS names, if it is set.
"""

import functools
import json
import os
import shutil
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import faulty
from conftest import FAULTS
from processes import BIN, Program, Stage, stage, status, until
from proxy import proxied
from repeater import repeated
from serving import small_disk
from storage import Database, ObjectStore
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

CLIENTS = ("ada", "bea")
ROUNDS = 2
HERE = Path(__file__).parent
RECEIVED = "select message from events where kind = 'delta_received'"


class Place:
    """What all runs have in common, and what the undisturbed one ended with."""

    def __init__(self, folder: Path) -> None:
        self.model = save_tiny_model(folder / "model")
        self.data = {
            name: write_preferences(folder / f"{name}.jsonl", seed=seed, num=24, taste="warm")
            for seed, name in enumerate(CLIENTS)
        }
        self.told: list[dict[str, Any]] = []
        self.folder = folder / "undisturbed"
        with stage(self.folder) as on:
            server, port = on.server(*self.settings())
            clients = [on.client(name, port, self.data[name]) for name in CLIENTS]
            for program in (*clients, server):
                assert program.ends() == 0, program.output
        self.final = final(self.folder)

    def settings(self) -> tuple[object, ...]:
        return ("--model", self.model, "--min-clients", len(CLIENTS), "--rounds", ROUNDS,
                "--lora.layers", "last-2", "--lora.rank", 4)  # fmt: skip

    def tell(self, fault: str, where: str, folder: Path) -> None:
        """Note what a fault came to, and hold it against the undisturbed run."""
        with closing(sqlite3.connect(folder / "server/run.sqlite")) as database:
            self.hold(fault, where, final(folder), deltas(database.execute(RECEIVED)))

    def hold(self, fault: str, where: str, last: bytes, received: list[tuple[int, str]]) -> None:
        """The same of the last adapter and the deltas that were entered."""
        counted = Counter(received)
        expected = {(number, name) for number in range(1, ROUNDS + 1) for name in CLIENTS}
        same = last == self.final
        found = {
            "fault": fault,
            "where": where,
            "outcome": "the run ended" + ("" if same else " with other bits"),
            "same_bits": same,
            "lost": len(expected - counted.keys()),
            "double_counted": sum(number - 1 for number in counted.values()),
        }
        self.told.append(found)
        assert found["same_bits"], found
        assert (found["lost"], found["double_counted"]) == (0, 0), found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Place]:
    built = Place(tmp_path_factory.mktemp("faults"))
    pytestconfig.stash[FAULTS] = built.told
    yield built
    if path := os.environ.get("FEDPDPO_FAULTS"):
        Path(path).write_text(json.dumps(built.told, indent=1) + "\n", encoding="utf-8")


def final(folder: Path) -> bytes:
    return (folder / f"server/adapters/version-{ROUNDS:05}.safetensors").read_bytes()


def deltas(rows: Iterable[tuple[str]]) -> list[tuple[int, str]]:
    """Each time that the server entered a delta, by the messages of its events."""
    told = [dict(part.split("=", 1) for part in row[0].split()) for row in rows]
    return [(int(row["round"]), row["client"]) for row in told]


def armed(on: Stage, point: str, script: str, *arguments: object, log: str) -> Program:
    """A console script that will kill itself at a point."""
    marker = on.folder / "killed"
    return on.start(
        sys.executable, HERE / "faulty.py", point, marker, BIN / script, *arguments, log=log
    )


def killed(program: Program, marker: Path) -> None:
    assert program.ends() == -signal.SIGKILL, program.output
    assert marker.exists()
    marker.unlink()


def chains(points: Iterable[str], length: int = 4) -> list[tuple[str, ...]]:
    """The points in their order, a few for each run."""
    names = tuple(points)
    return [names[at : at + length] for at in range(0, len(names), length)]


@pytest.mark.parametrize("points", chains(faulty.SERVER_POINTS), ids="+".join)
def test_a_server_that_is_killed_again_and_again_goes_on(
    place: Place, tmp_path: Path, points: tuple[str, ...]
) -> None:
    clients: list[Program] = []
    port = 0
    with stage(tmp_path) as on:
        state = ("--state-dir", tmp_path / "server")
        for point in points:
            server = armed(
                on, point, "fedpdpo-server", "--port", port, *state, *place.settings(), log="server"
            )
            if not clients:
                port = int(server.says(r"serving address=\S+:(\d+)").group(1))
                clients = [on.client(name, port, place.data[name]) for name in CLIENTS]
            killed(server, tmp_path / "killed")
        server, _ = on.server(*place.settings(), port=port)
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    for point in points:
        place.tell("SIGKILL of the server", point, tmp_path)


def test_a_server_that_dies_is_replaced_by_another_with_the_same_two_urls(
    place: Place,
    tmp_path: Path,
    object_store: ObjectStore,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    bucket, name = object_store.bucket(), database.new()
    clients: list[Program] = []
    state = ("--state-dir", f"s3://{bucket}/run", "--database", database.url(name))
    points = ("after-join", "after-keep", "after-commit-of-a-delta", "after-publish",
              "after-commit-of-an-adapter", "")  # fmt: skip
    port = 0
    with stage(tmp_path) as on:
        for point in points:
            begin = functools.partial(armed, on, point) if point else on.start
            given = ("--port", port, *state, *place.settings())
            server = begin("fedpdpo-server", *given, log="server")
            if not clients:
                port = int(server.says(r"serving address=\S+:(\d+)").group(1))
                clients = [on.client(name, port, place.data[name]) for name in CLIENTS]
            if point:
                killed(server, tmp_path / "killed")
                for copies in tmp_path.glob("fedpdpo-server-*"):
                    shutil.rmtree(copies)
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    client = object_store.client()
    listed = client.list_objects_v2(Bucket=bucket, Prefix=f"run/adapters/version-{ROUNDS:05}")
    (last,) = listed["Contents"]
    content = client.get_object(Bucket=bucket, Key=last["Key"])["Body"].read()
    with database.connect(name) as connection:
        received = deltas(connection.execute(RECEIVED))
    place.hold("SIGKILL of the server, another one goes on", "S3, PostgreSQL", content, received)


@pytest.mark.parametrize("points", chains(faulty.CLIENT_POINTS), ids="+".join)
def test_a_client_that_is_killed_again_and_again_goes_on(
    place: Place, tmp_path: Path, points: tuple[str, ...]
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(*place.settings())
        other = on.client("bea", port, place.data["bea"])
        for point in points:
            ada = armed(on, point, "fedpdpo-client", *client_arguments(on, port, place), log="ada")
            killed(ada, tmp_path / "killed")
        again = on.client("ada", port, place.data["ada"])
        for program in (other, again, server):
            assert program.ends() == 0, program.output
    for point in points:
        place.tell("SIGKILL of a client", point, tmp_path)


def client_arguments(on: Stage, port: int, place: Place) -> tuple[object, ...]:
    return ("--server", f"localhost:{port}", "--client-id", "ada", "--data", place.data["ada"],
            "--state-dir", on.folder / "ada", "--threads", 1, "--heartbeat-s", 0.05)  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("connections cut after 20 kB upward", {"cut_up_after": 20_000}),
        ("connections cut after 20 kB downward", {"cut_down_after": 20_000}),
        ("every piece 50 ms late", {"delay_s": 0.05}),
        ("20 kB/s", {"bytes_per_s": 20_000.0}),
    ],
)
def test_a_run_over_a_bad_link_ends_the_same(
    place: Place, tmp_path: Path, fault: str, rule: dict[str, Any]
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(*place.settings())
        with proxied(port) as proxy:
            for name, value in rule.items():
                setattr(proxy, name, value)
            clients = [on.client(name, proxy.port, place.data[name]) for name in CLIENTS]
            for program in (*clients, server):
                assert program.ends() == 0, program.output
            if fault.startswith("connections cut"):
                assert proxy.num_connections > len(CLIENTS)
    place.tell(fault, "proxy", tmp_path)


def test_a_network_that_repeats_every_call_changes_nothing(place: Place, tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(*place.settings())
        with repeated(port) as (repeater, near):
            clients = [on.client(name, near, place.data[name]) for name in CLIENTS]
            for program in (*clients, server):
                assert program.ends() == 0, program.output
            assert repeater.num_repeated > 20
    place.tell("every call made twice", "the whole run", tmp_path)


@pytest.mark.parametrize("point", ["clock+86400", "clock-86400"])
def test_a_clock_that_is_set_changes_nothing(place: Place, tmp_path: Path, point: str) -> None:
    with stage(tmp_path) as on:
        state = ("--state-dir", tmp_path / "server")
        server = armed(
            on, point, "fedpdpo-server", "--port", 0, *state, *place.settings(), log="server"
        )
        port = int(server.says(r"serving address=\S+:(\d+)").group(1))
        clients = [on.client(name, port, place.data[name]) for name in CLIENTS]
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    (tmp_path / "killed").unlink()
    place.tell("the server's clock is set by a day", point, tmp_path)


def test_a_full_disk_is_waited_for(place: Place, tmp_path: Path) -> None:
    with small_disk(tmp_path / "server", size="3m") as disk, stage(tmp_path) as on:
        server, port = on.server(*place.settings())
        clients = [on.client(name, port, place.data[name]) for name in CLIENTS]
        until(lambda: status(port).round == 1, "round 1")
        filler = disk / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        until(lambda: any("disk is full" in one.output or "waiting_for_space" in one.output
                          for one in (server, *clients)), "a word of the full disk")  # fmt: skip
        filler.unlink()
        for program in (*clients, server):
            assert program.ends() == 0, program.output
        place.tell("the server's disk is full for a while", "round 1", tmp_path)


@pytest.mark.parametrize("part", ["private", "optimizer", "delta"])
def test_a_damaged_state_is_named_and_goes_on_from_the_round_before(
    place: Place, tmp_path: Path, part: str
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(*place.settings())
        other = on.client("bea", port, place.data["bea"])
        first = armed(
            on, "after-save", "fedpdpo-client", *client_arguments(on, port, place), log="ada"
        )
        killed(first, tmp_path / "killed")
        damaged = tmp_path / f"ada/rounds/round-00001/{part}.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        second = on.client("ada", port, place.data["ada"])
        assert second.ends() != 0
        assert f"{part}.safetensors is damaged or missing" in second.output
        shutil.rmtree(damaged.parent)
        third = on.client("ada", port, place.data["ada"])
        for program in (other, third, server):
            assert program.ends() == 0, program.output
    place.tell("a file of a client's state is cut short", part, tmp_path)
