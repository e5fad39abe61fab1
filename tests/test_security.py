"""A real server under attack: what it answers, what it holds, and whether honest clients go on.

Writes what came of each case to the file that FEDPDPO_SECURITY names, if it is set.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from admitted import Consortium, channel_of
from attacks.cases import CASES, Case
from attacks.siege import SESSION_S, Siege
from conftest import ATTACKS
from fedpdpo.common.identity import Role
from fedpdpo.v1 import operator_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from processes import Program, stage, until
from report import memory_bytes
from serving import Client, tensors

pytestmark = pytest.mark.system

MOST_MIB = 64


class Honest(threading.Thread):
    """A client that takes part in every round, at a calm pace."""

    def __init__(self, channel: grpc.Channel, name: str, stopping: threading.Event) -> None:
        super().__init__(daemon=True)
        self._client = Client(FederationServiceStub(channel), name)
        self._stopping = stopping
        self._client.join()

    def run(self) -> None:
        while not self._stopping.wait(0.05):
            with suppress(grpc.RpcError):
                task = self._client.task()
                match task.WhichOneof("task"):
                    case "evaluate":
                        self._client.report(task.evaluate.adapter_version)
                    case "train":
                        self._client.push(task.train.round, tensors(0.001))


class Besieged:
    """A server process, its honest clients and its attacker."""

    def __init__(self, siege: Siege, server: Program) -> None:
        self.siege = siege
        self._server = server
        self.told: list[dict[str, Any]] = []
        self.goes_on()

    @property
    def version(self) -> int:
        """The newest adapter."""
        status = self.siege.operator.GetStatus
        for _ in range(3):
            with suppress(grpc.RpcError):
                return status(operator_pb2.GetStatusRequest(), timeout=10).adapter_version
        raise AssertionError(f"the server is gone: {self._server.process.poll()}")

    def goes_on(self) -> None:
        """Wait until the honest clients have finished a round, with eve or without her."""
        before = self.version
        until(lambda: self.version > before, "another round", patience_s=60)

    def undergo(self, case: Case) -> None:
        """Let an attack happen, and tell what came of it."""
        pid = self._server.process.pid
        before, rounds = memory_bytes("VmRSS", pid), self.version
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        begun = time.monotonic()
        code, words = case.attack(self.siege)
        during = self.version - rounds
        self.goes_on()
        grown_mib = (memory_bytes("VmHWM", pid) - before) / 2**20
        found = {
            "case": case.name,
            "status": code,
            "message": words[:200],
            "seconds": round(time.monotonic() - begun, 2),
            "server_grew_mib": round(grown_mib, 1),
            "honest_rounds_meanwhile": during,
            "honest_go_on": True,
        }
        self.told.append(found)
        assert code in case.codes, found
        assert case.words in words, found
        assert grown_mib < MOST_MIB, found


@contextmanager
def besieged(folder: Path, *, by_token: bool) -> Iterator[Besieged]:
    """Start a server that takes certificates, or tokens, and its clients."""
    consortium = Consortium(folder)
    made = consortium.token if by_token else consortium.certificate
    names = ("ada", "bea", "cleo", "eve")
    people = {name: made(name) for name in names} | {"root": made("root", Role.OPERATOR)}
    tokens = ("--tokens", consortium.tokens, "--session-s", SESSION_S) if by_token else ()
    stopping = threading.Event()
    with ExitStack() as closing:
        on = closing.enter_context(stage(folder / "on"))
        server, port = on.server(
            "--host", "localhost", "--tls", consortium.server, "--min-clients", 3,
            "--rounds", 100_000, "--model", "tiny", "--stall-timeout-s", 3,
            "--progress-deadline-s", 1, "--client-timeout-s", 30, *tokens,
        )  # fmt: skip
        channels = {
            name: closing.enter_context(channel_of(port, access)) for name, access in people.items()
        }
        honest = [Honest(channels[name], name, stopping) for name in names[:-1]]
        eve = Client(FederationServiceStub(channels["eve"]), "eve")
        eve.join()
        for one in honest:
            one.start()
            closing.callback(one.join, timeout=30)  # before its channel is closed
        closing.callback(stopping.set)
        token = people["eve"].token_file
        yield Besieged(
            Siege(
                consortium,
                port,
                channels["eve"],
                eve,
                OperatorServiceStub(channels["root"]),
                folder,
                token.read_text().strip() if token else "",
            ),
            server,
        )


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[dict[bool, Besieged]]:
    """Both kinds of server under siege, by whether they take tokens."""
    folder = tmp_path_factory.mktemp("siege")
    with (
        besieged(folder / "certificates", by_token=False) as by_certificate,
        besieged(folder / "tokens", by_token=True) as by_token,
    ):
        by_token.told = by_certificate.told
        pytestconfig.stash[ATTACKS] = by_certificate.told
        yield {False: by_certificate, True: by_token}
    if path := os.environ.get("FEDPDPO_SECURITY"):
        told = json.dumps(by_certificate.told, indent=1)
        Path(path).write_text(f"{told}\n", encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_attack_is_answered_and_honest_clients_go_on(
    servers: dict[bool, Besieged], case: Case
) -> None:
    servers[case.by_token].undergo(case)
