"""The real console scripts as processes, for system tests."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from fedpdpo.v1 import operator_pb2 as pb
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub

BIN = Path(sys.executable).parent
PATIENCE_S = 120.0

# A limit set by the new process itself: this process has gRPC's threads, which a fork that runs
# Python before it execs may leave hanging.
LIMITED = (
    "import os, resource, sys; limit = int(sys.argv[1]);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)); os.execv(sys.argv[2], sys.argv[2:])"
)


class Program:
    """A console script that runs, with its output in a file."""

    def __init__(
        self, program: str, arguments: Sequence[object], log: Path, *, max_file_bytes: int | None
    ) -> None:
        self.log = log
        self._launches = program == "torchrun"
        self._offset = log.stat().st_size if log.exists() else 0
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [str(BIN / program), *map(str, arguments)]
        if max_file_bytes is not None:
            command = [sys.executable, "-c", LIMITED, str(max_file_bytes), *command]
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    @property
    def output(self) -> str:
        """What it said so far."""
        return self.log.read_bytes()[self._offset :].decode(errors="replace")

    def says(self, pattern: str) -> re.Match[str]:
        """Wait until a line matches, and give the match."""
        until(
            lambda: self._found(pattern) or not self.runs, lambda: f"{pattern!r} in\n{self.output}"
        )
        found = self._found(pattern)
        assert found, f"it ended without {pattern!r}:\n{self.output}"
        return found

    def _found(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.output)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def ends(self) -> int:
        """Wait for the end, and give the exit code."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.output}") from None

    def kill(self) -> None:
        """Send it SIGKILL, as a power cut would end it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """End it; a launcher is asked to, so that it ends the processes that it launched."""
        if self._launches:
            self.terminate()
        else:
            self.kill()

    def terminate(self) -> None:
        """Send it SIGTERM, as a service manager would, and wait for its end."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)


class Stage:
    """Starts programs under a folder and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._programs: list[Program] = []

    def start(
        self, program: str, *arguments: object, log: str, max_file_bytes: int | None = None
    ) -> Program:
        """Start a console script with its output in LOG.log."""
        started = Program(
            program, arguments, self.folder / f"{log}.log", max_file_bytes=max_file_bytes
        )
        self._programs.append(started)
        return started

    def server(self, *arguments: object, port: int = 0) -> tuple[Program, int]:
        """Start a server and wait for its port."""
        program = self.start(
            "fedpdpo-server", "--port", port, "--state-dir", self.folder / "server", *arguments,
            log="server",
        )  # fmt: skip
        return program, int(program.says(r"serving address=\S+:(\d+)").group(1))

    def client(
        self,
        name: str,
        port: int,
        data: Path,
        *arguments: object,
        launched_by: Sequence[object] = (),
    ) -> Program:
        """Start a client, or several processes of it by a launcher."""
        program, *before = map(str, (*launched_by, BIN / "fedpdpo-client"))
        return self.start(
            program, *before, "--server", f"localhost:{port}", "--client-id", name, "--data", data,
            "--state-dir", self.folder / name, "--threads", 1, "--heartbeat-s", 0.05, *arguments,
            log=name,
        )  # fmt: skip

    def end(self) -> None:
        """Kill what still runs."""
        for program in self._programs:
            if program.runs:
                program.end()


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """A stage that is cleared at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    built = Stage(folder)
    try:
        yield built
    finally:
        built.end()


def done(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a console script to its end."""
    command = [str(BIN / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def until(
    holds: Callable[[], object], what: str | Callable[[], str], *, patience_s: float = PATIENCE_S
) -> None:
    """Look again and again until something holds; `what` may look too, once it is given up."""
    give_up_at = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > give_up_at:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {patience_s:.0f} s for {told}")
        time.sleep(0.02)


def status(port: int) -> pb.GetStatusResponse:
    """The status that a server tells its operator."""
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        return OperatorServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=10)


def is_amid_training(port: int, client_id: str, *, round_number: int, least: float = 0.05) -> bool:
    """Whether a client trains that round and is neither at its beginning nor near its end."""
    for client in status(port).clients:
        if client.client_id == client_id:
            training = client.activity == f"training round {round_number}"
            return training and least < client.progress < 0.8
    return False
