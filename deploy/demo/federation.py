"""Starts a server and its clients as processes of this machine, and watches them to the end."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from rich.live import Live

from fedpdpo.common.log import console
from fedpdpo.common.table import status_table
from fedpdpo.v1 import operator_pb2 as pb
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from package import DemoError

BIN = Path(sys.executable).parent
START_S = 60.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Member:
    """A client: its name, where its pairs lie, and its program with what comes before options."""

    name: str
    data: Path
    eval_data: Path
    program: tuple[str, ...] = ("fedpdpo-client",)


class Federation:
    """One server and one process a member; all logs and states lie under `out`."""

    def __init__(
        self, out: Path, *, model: str, members: Sequence[Member], rounds: int, threads: int
    ) -> None:
        self._out = out
        self._model = model
        self._members = members
        self._rounds = rounds
        self._threads = threads
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> None:
        """Run to the end of the last round. Raises DemoError where a process fails."""
        with self._ended():
            server = self._start(
                "server", "fedpdpo-server", "--port", "0", "--model", self._model,
                "--rounds", str(self._rounds), "--min-clients", str(len(self._members)),
                "--state-dir", str(self._out / "server"),
            )  # fmt: skip
            address = self._address(server)
            for member in self._members:
                self._start(
                    member.name, *member.program, "--server", address,
                    "--client-id", member.name, "--data", str(member.data),
                    "--eval-data", str(member.eval_data), "--threads", str(self._threads),
                    "--state-dir", str(self._out / member.name),
                )  # fmt: skip
            console.print(
                f"server at {address}, {len(self._members)} clients, {self._rounds} rounds; "
                f"logs are {self._out}/*.log"
            )
            self._watch(address)

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log(name).open("wb") as log:
            process = subprocess.Popen([BIN / program, *arguments], stdout=log, stderr=log)
        self._processes[name] = process
        return process

    def _log(self, name: str) -> Path:
        return self._out / f"{name}.log"

    def _address(self, server: subprocess.Popen[bytes]) -> str:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            found = re.search(r"serving address=(\S+)", self._log("server").read_text())
            if found:
                return found.group(1)
            if server.poll() is not None:
                break
            time.sleep(LOOK_EVERY_S)
        raise DemoError(f"the server did not start: {self._last_words('server')}")

    def _watch(self, address: str) -> None:
        last_event = 0
        with (
            grpc.insecure_channel(address) as channel,
            Live(console=console, auto_refresh=False, transient=True) as live,
        ):
            stub = OperatorServiceStub(channel)
            while any(process.poll() is None for process in self._processes.values()):
                self._check()
                try:
                    if console.is_terminal:
                        status = stub.GetStatus(pb.GetStatusRequest(), timeout=5)
                        live.update(status_table(status), refresh=True)
                    else:
                        for event in stub.WatchEvents(pb.WatchEventsRequest(after=last_event)):
                            console.print(f"{event.kind} {event.message}", soft_wrap=True)
                            last_event = event.number
                except grpc.RpcError:
                    pass  # the server has ended; its exit code tells how
                time.sleep(LOOK_EVERY_S)
        self._check()

    def _check(self) -> None:
        for name, process in self._processes.items():
            if process.poll():
                raise DemoError(
                    f"{name} ended with exit code {process.returncode}: {self._last_words(name)}"
                )

    def _last_words(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").strip().splitlines()
        return (lines[-1] if lines else "it said nothing") + f" (see {self._log(name)})"

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """Leave no process behind, however the block ends."""
        try:
            yield
        finally:
            for process in self._processes.values():
                if process.poll() is None:
                    process.terminate()
            for process in self._processes.values():
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
