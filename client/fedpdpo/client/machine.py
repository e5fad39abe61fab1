"""The cores of a machine, shared by the clients on it."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


def threads_for(*, num_cores: int, num_clients: int) -> int:
    """An equal share of the cores, at least one."""
    return max(1, num_cores // max(1, num_clients))


def available_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Neighbours:
    """The clients of this user on this machine: each holds a lock file while it lives."""

    def __init__(self, folder: Path | None = None) -> None:
        name = f"fedpdpo-clients-{os.getuid() if hasattr(os, 'getuid') else 0}"
        self._folder = folder or Path(tempfile.gettempdir()) / name

    @contextmanager
    def present(self) -> Iterator[None]:
        """Be counted. A folder that another user could write to means not to be."""
        with contextlib.ExitStack() as holding:
            with contextlib.suppress(OSError):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._is_ours():
                    lock = FileLock(self._folder / f"{os.getpid()}.lock")
                    holding.enter_context(lock.acquire(timeout=1))
            yield

    def count(self) -> int:
        """How many clients there are, with this one."""
        if not self._is_ours():
            return 1
        alive = 0
        for path in self._folder.glob("*.lock"):
            try:
                with FileLock(path).acquire(timeout=0):
                    path.unlink(missing_ok=True)
            except (Timeout, OSError):
                alive += 1
        return max(1, alive)

    def _is_ours(self) -> bool:
        """Whether no other user can have put anything there, such as a link to follow."""
        try:
            found = self._folder.lstat()
        except OSError:
            return False
        private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
        return private and (not hasattr(os, "getuid") or found.st_uid == os.getuid())


class CoreShare:
    """How many threads torch computes with: a fixed number, or this client's share of the cores.

    `threads` 0 means the share, which changes as other clients come and go; it is taken anew by
    every `take`.
    """

    def __init__(self, threads: int, neighbours: Neighbours) -> None:
        self._threads = threads
        self._neighbours = neighbours

    def take(self, *, like: int = 0) -> int:
        """Set and give the number of threads; `like` is that of a round that is gone on with."""
        share = threads_for(num_cores=available_cores(), num_clients=self._neighbours.count())
        threads = self._threads or like or share
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return threads
