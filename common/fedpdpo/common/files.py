"""State on disk: written whole or not at all, held by one process at a time."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from fedpdpo.common.errors import BadState, StorageFull

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def space_checked(path: Path) -> Iterator[None]:
    """Turn a failure for want of space into StorageFull, which names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number not in _NO_SPACE:
            raise
        raise StorageFull(
            f"cannot write {path}: {os.strerror(number)}; free some space, nothing was lost"
        ) from error


def _error_number(error: OSError | SafetensorError) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"os error (\d+)", str(error))
    return int(told.group(1)) if told else 0


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success it becomes `path`, durably.

    On failure the temporary file is removed and what stood at `path` stays. Raises StorageFull.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with space_checked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; on success it becomes `path`, durably and all at once.

    Raises BadState where something stands at `path` already, other than an empty folder;
    StorageFull.
    """
    empty = path.name and path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if (path.exists() or path.is_symlink()) and not empty:
        raise BadState(f"{path} is in the way; remove it, or choose another place")
    temporary = path.with_name(f".{path.name}.partial")
    with space_checked(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                sync(file)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> bytes:
    """The 32-byte SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a state directory for this process, making it if need be.

    Raises BadState where another process holds it or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise BadState(f"cannot make the state directory {folder}: {error.strerror}") from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadState(
            f"the state directory {folder} is in use by another process; "
            "stop that process or choose another --state-dir"
        ) from None
    except OSError as error:
        raise BadState(f"cannot use the state directory {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
