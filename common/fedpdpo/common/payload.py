"""Payloads on their way: files cut into chunks, chunks checked and put together again.

What came of a payload that was cut off stays beside its place, named by its digest:

    FOLDER/.NAME.DIGEST.part
"""

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import zstandard

from fedpdpo.common.errors import (
    BadPayload,
    CutOff,
    FedPDPOError,
    Stalled,
    StorageAway,
    TooLarge,
    WrongDigest,
)
from fedpdpo.common.files import space_checked, sync
from fedpdpo.common.frames import Chunk
from fedpdpo.common.header import Contents
from fedpdpo.common.tensorfile import Inspector

CHUNK_BYTES = 2**20
_FIRST_BYTES = 2**17
_LEAST_BYTES = 2**13
_BRISK_S, _SLUGGISH_S = 0.5, 2.0

#: After these what came is still good: the rest comes later, or is put where it belongs later.
_KEEP = (CutOff, Stalled, StorageAway)


def chunks_of(path: Path, *, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """Cut a file from `begin` on into (offset, data) pieces, in order.

    A piece has CHUNK_BYTES at most, and fewer while the link takes them slowly, so that even there
    one arrives every few seconds.
    """
    offset, size = begin, _FIRST_BYTES
    with path.open("rb") as file:
        file.seek(begin)
        while data := file.read(size):
            sent_at_s = time.monotonic()
            yield offset, data
            offset += len(data)
            took_s = time.monotonic() - sent_at_s
            if took_s < _BRISK_S:
                size = min(CHUNK_BYTES, 2 * size)
            elif took_s > _SLUGGISH_S:
                size = max(_LEAST_BYTES, size // 4)


def pack(offset: int, data: bytes, *, zstd: bool) -> Chunk:
    """A piece as it travels: as it is, or as one zstd frame."""
    return Chunk(offset, zstandard.compress(data), True) if zstd else Chunk(offset, data)


def unpacked(chunk: Chunk) -> bytes | memoryview:
    """A piece as it was. Raises BadPayload where a frame is damaged, or holds too much."""
    if not chunk.zstd:
        return chunk.data
    try:
        told = zstandard.get_frame_parameters(chunk.data).content_size
        if not 0 < told <= CHUNK_BYTES:
            raise BadPayload(f"a zstd frame tells {told} bytes; 1 to {CHUNK_BYTES} are allowed")
        return zstandard.decompress(chunk.data)
    except zstandard.ZstdError as error:
        raise BadPayload(f"a chunk is no zstd frame: {error}") from error


class Receiver:
    """Puts the chunks of a payload of known contents together at `path`.

    Order, size, digest, tensors and values are checked as the bytes come. Use it as a context
    manager: entering takes up what an earlier receiver of the same payload left, and leaving keeps
    what came, unless it is wrong, not wanted or the disk is full. What came is forced to the disk,
    and counts as held, every `sync_bytes`, or only at the end. Raises BadPayload for a malformed
    announcement, TooLarge for one of more bytes than its contents have.
    """

    def __init__(
        self,
        path: Path,
        *,
        num_bytes: int,
        sha256: bytes,
        contents: Contents,
        sync_bytes: int | None = None,
    ) -> None:
        if num_bytes > contents.max_payload_bytes:
            raise TooLarge(
                f"the payload has {num_bytes} bytes, the run's adapter {contents.max_payload_bytes}"
            )
        if num_bytes < 8 or len(sha256) != 32:
            raise BadPayload(
                f"the payload header announces {num_bytes} bytes and a digest of "
                f"{len(sha256)} bytes; 8 and 32 are the least"
            )
        self.path = path
        self.held = 0
        self.part = part_of(path, sha256)
        self._num_bytes = num_bytes
        self._sha256 = sha256
        self._contents = contents
        self._sync_bytes = num_bytes if sync_bytes is None else sync_bytes
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._received = 0
        self._digest = hashlib.sha256()
        self._inspector = Inspector(self._contents, num_bytes=self._num_bytes)

    def __enter__(self) -> "Receiver":
        with space_checked(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for other in parts_of(self.path):
                if other != self.part:
                    other.unlink(missing_ok=True)
            self._file = self.part.open("a+b")
        try:
            self._take_up()
        except BaseException:
            self._file.close()
            raise
        return self

    def _take_up(self) -> None:
        """Check what an earlier receiver left; begin anew where it is wrong."""
        self._file.seek(0)
        try:
            while data := self._file.read(CHUNK_BYTES):
                self._check(data)
        except BadPayload:
            self._file.truncate(0)
            self._begin()
        self._file.seek(0, os.SEEK_END)
        self._sync()

    def write(self, offset: int, data: bytes | memoryview) -> bool:
        """Take the next chunk; gives whether more is held since. Raises BadPayload, StorageFull."""
        with self._lock:
            if offset != self._received:
                raise BadPayload(f"a chunk begins at byte {offset}, expected {self._received}")
            if not 0 < len(data) <= CHUNK_BYTES:
                raise BadPayload(f"a chunk has {len(data)} bytes; 1 to {CHUNK_BYTES} are allowed")
            self._check(data)
            with space_checked(self.path):
                self._file.write(data)
            if self._received - self.held < self._sync_bytes:
                return False
            self._sync()
            return True

    def _check(self, data: bytes | memoryview) -> None:
        if self._received + len(data) > self._num_bytes:
            raise TooLarge(f"more than the {self._num_bytes} bytes announced were sent")
        self._inspector.feed(data)
        self._digest.update(data)
        self._received += len(data)

    def _sync(self) -> None:
        with space_checked(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        self.held = self._received

    def finish(self) -> None:
        """Check that all came and force it to the disk. Raises BadPayload or StorageFull."""
        with self._lock:
            if self._received < self._num_bytes:
                raise CutOff(f"{self._received} of the {self._num_bytes} bytes announced came")
            if self._digest.digest() != self._sha256:
                raise WrongDigest("the payload's SHA-256 differs from the one announced")
            self._inspector.finish()
            self._sync()
            if (size := os.fstat(self._file.fileno()).st_size) != self._num_bytes:
                raise WrongDigest(f"{size} bytes were written of a payload of {self._num_bytes}")

    def keep(self) -> None:
        """Give the finished file its name, durably. Raises StorageFull."""
        with space_checked(self.path):
            self.part.replace(self.path)
            sync(self.path.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        useless = isinstance(error, FedPDPOError) and not isinstance(error, _KEEP)
        with self._lock, contextlib.suppress(OSError):  # a full disk fails here again
            self._file.close()
        if useless:
            self.part.unlink(missing_ok=True)


def part_of(path: Path, sha256: bytes) -> Path:
    """Where the bytes of a payload lie until it is whole."""
    return path.with_name(f".{path.name}.{sha256.hex()}.part")


def parts_of(path: Path) -> list[Path]:
    """What came of payloads for a place and is not whole yet.

    The name must fit whole: another place's may begin with this one's.
    """
    fitting = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{64}}\.part")
    folder = path.parent
    there = folder.iterdir() if folder.is_dir() else ()
    return [part for part in there if fitting.fullmatch(part.name)]


def held_of(path: Path) -> tuple[int, bytes]:
    """What came of a payload for a place: how many bytes, and the digest of the whole."""
    for part in parts_of(path):
        with contextlib.suppress(ValueError):
            return part.stat().st_size, bytes.fromhex(part.name.split(".")[-2])
    return 0, b""
