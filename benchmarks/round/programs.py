"""The benchmark's processes: started, watched, and ended with all that they started."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from fedpdpo.common.errors import FedPDPOError
from machine import busy_s

_LOOPBACK = Path("/sys/class/net/lo/statistics/rx_bytes")
_LOOK_EVERY_S = 0.05
_TAIL_CHARS = 2000


class BenchmarkError(FedPDPOError):
    """The benchmark cannot go on; the message says why."""


@dataclass(frozen=True)
class Look:
    """The machine at one moment: CPU seconds taken, bytes that went over the loopback."""

    at_s: float
    busy_s: float
    loopback_bytes: int


@dataclass
class Program:
    """A process whose output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path
    peaks: dict[int, int] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """What it said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def note_memory(self) -> None:
        """Remember the peak memory of the process and of those that it started."""
        try:
            whole = psutil.Process(self.process.pid)
            for one in (whole, *whole.children(recursive=True)):
                self.peaks[one.pid] = _peak_bytes(one.pid) or self.peaks.get(one.pid, 0)
        except psutil.NoSuchProcess:
            return

    @property
    def peak_mib(self) -> float:
        """The peaks of all its processes together."""
        return sum(self.peaks.values()) / 2**20


class Programs:
    """Starts programs with logs in a folder; leaving it ends them all."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = os.environ | environment
        self._all: list[Program] = []

    def start(self, name: str, *command: object, cwd: Path | None = None) -> Program:
        """Start a command."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=cwd,
            )
        self._all.append(Program(process, log))
        return self._all[-1]

    def watch(
        self, done: Callable[[], bool], servers: Sequence[Program], *, patience_s: float
    ) -> list[Look]:
        """Look at the machine until something is done. Raises BenchmarkError if it never is."""
        looks: list[Look] = []
        begun = time.monotonic()
        while not done():
            failed = [program for program in self._all if program.process.poll()]
            if failed or time.monotonic() - begun > patience_s:
                program = failed[0] if failed else servers[0]
                what = "failed" if failed else f"was not done after {patience_s:.0f} s"
                said = program.output[-_TAIL_CHARS:]
                raise BenchmarkError(f"{program.log.stem} {what}; it said:\n{said}")
            looks.append(Look(time.time(), busy_s() or 0.0, int(_LOOPBACK.read_text())))
            if len(looks) % 4 == 0:
                for program in servers:
                    program.note_memory()
            time.sleep(_LOOK_EVERY_S)
        looks.append(Look(time.time(), busy_s() or 0.0, int(_LOOPBACK.read_text())))
        for program in servers:
            program.note_memory()
        return looks

    def __enter__(self) -> "Programs":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        started: list[psutil.Process] = []
        for program in self._all:
            try:
                whole = psutil.Process(program.process.pid)
                started += [*whole.children(recursive=True), whole]
            except psutil.NoSuchProcess:
                continue
        for one in started:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        for program in self._all:
            program.process.wait()


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(found[0].split()[1]) if found else 0
