"""The benchmark's processes: started, watched, and ended with all that they started."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from machine import busy_s
from report import BenchmarkError, memory_bytes

_LOOPBACK = Path("/sys/class/net/lo/statistics/rx_bytes")
_LOOK_EVERY_S = 0.05
_TAIL_CHARS = 2000


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
                self.peaks[one.pid] = memory_bytes("VmHWM", one.pid) or self.peaks.get(one.pid, 0)
        except psutil.NoSuchProcess:
            return

    @property
    def peak_mib(self) -> float:
        """The peaks of all its processes together."""
        return sum(self.peaks.values()) / 2**20


class Programs:
    """Starts programs with logs in a folder."""

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

    def end(self) -> None:
        """Kill all that was started, and what that has started."""
        started: list[psutil.Process] = []
        for program in self._all:
            with suppress(psutil.NoSuchProcess):
                whole = psutil.Process(program.process.pid)
                started += [*whole.children(recursive=True), whole]
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        for program in self._all:
            program.process.wait()


@contextmanager
def programs(folder: Path, environment: Mapping[str, str]) -> Iterator[Programs]:
    """Programs that are ended at the end."""
    built = Programs(folder, environment)
    try:
        yield built
    finally:
        built.end()
