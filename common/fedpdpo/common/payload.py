"""Payloads on their way: files cut into chunks, chunks checked and put together again."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from fedpdpo.common.errors import BadPayload, TooLarge, WrongDigest
from fedpdpo.common.files import space_checked, sync

CHUNK_BYTES = 1024 * 1024


def chunks_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Cut a file into (offset, data) pieces of at most CHUNK_BYTES, in order."""
    offset = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield offset, data
            offset += len(data)


class Receiver:
    """Puts chunks together at a temporary path, checking order, size and digest as they come.

    Use it as a context manager; unless `finish` succeeded, leaving it removes what was received.
    Raises BadPayload for a malformed announcement, TooLarge for one above `max_bytes`.
    """

    def __init__(self, path: Path, *, num_bytes: int, sha256: bytes, max_bytes: int) -> None:
        if num_bytes > max_bytes:
            raise TooLarge(f"the payload has {num_bytes} bytes, the run's adapter {max_bytes}")
        if num_bytes < 8 or len(sha256) != 32:
            raise BadPayload(
                f"the payload header announces {num_bytes} bytes and a digest of "
                f"{len(sha256)} bytes; 8 and 32 are the least"
            )
        self.path = path
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        self._num_bytes = num_bytes
        self._sha256 = sha256
        self._received = 0
        self._digest = hashlib.sha256()
        self._kept = False

    def __enter__(self) -> "Receiver":
        with space_checked(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb")
        return self

    def write(self, offset: int, data: bytes) -> None:
        """Take the next chunk. Raises BadPayload, TooLarge or StorageFull."""
        if offset != self._received:
            raise BadPayload(f"a chunk begins at byte {offset}, expected {self._received}")
        if not 0 < len(data) <= CHUNK_BYTES:
            raise BadPayload(f"a chunk has {len(data)} bytes; 1 to {CHUNK_BYTES} are allowed")
        if offset + len(data) > self._num_bytes:
            raise TooLarge(f"more than the {self._num_bytes} bytes announced were sent")
        self._digest.update(data)
        with space_checked(self.path):
            self._file.write(data)
        self._received += len(data)

    def finish(self) -> Path:
        """Check size and digest and force the bytes to the disk; gives the temporary path.

        The caller checks what they mean, then calls `keep`. Raises WrongDigest or StorageFull.
        """
        if self._received < self._num_bytes:
            raise WrongDigest(f"{self._received} of the {self._num_bytes} bytes announced came")
        if self._digest.digest() != self._sha256:
            raise WrongDigest("the payload's SHA-256 differs from the one announced")
        with space_checked(self.path):
            self._file.flush()
            sync(self._partial)
        return self._partial

    def keep(self) -> None:
        """Give the received file its name, durably. Raises StorageFull."""
        with space_checked(self.path):
            self._partial.replace(self.path)
            sync(self.path.parent)
        self._kept = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk fails here again; `finish` has told
            self._file.close()
        if not self._kept:
            self._partial.unlink(missing_ok=True)
