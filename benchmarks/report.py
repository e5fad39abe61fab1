"""What all benchmarks share: where results are kept, how errors end them, what memory was taken."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from fedpdpo.common.errors import FedPDPOError
from fedpdpo.common.files import whole_file

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 100)


class BenchmarkError(FedPDPOError):
    """The benchmark cannot go on; the message says why."""


class Report:
    """One JSON file of results. What another call measured stays, save what is measured anew.

    It belongs to this process until that ends. Raises BenchmarkError where another one has it.
    """

    def __init__(self, path: Path, **empty: Any) -> None:
        self.path = path
        self.content: dict[str, Any] = dict(empty)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_suffix(".lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BenchmarkError(f"another benchmark is writing to {path}") from error
        if path.exists():
            self.content = json.loads(path.read_text(encoding="utf-8"))

    def of(self, **told: Any) -> None:
        """Note under which settings all that follows is measured; drop runs of other ones."""
        if any(self.content.get(name) != value for name, value in told.items()):
            self.content["runs"] = {}
        self.content |= told

    def write(self) -> None:
        """Write the file whole."""
        with whole_file(self.path) as partial:
            partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def exit_code(bench: Callable[[], None]) -> int:
    """Run a benchmark to its end; gives the exit code of its program."""
    try:
        bench()
    except FedPDPOError as error:
        console.print(f"{Path(sys.argv[0]).parent.name}: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def memory_bytes(kind: str, pid: int | str = "self") -> int:
    """What the kernel counts of a process's memory: VmRSS now, VmHWM at most; 0 where untold."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    lines = status.read_text(encoding="ascii").splitlines()
    found = [line.split()[1] for line in lines if line.startswith(f"{kind}:")]
    return 1024 * int(found[0]) if found else 0
