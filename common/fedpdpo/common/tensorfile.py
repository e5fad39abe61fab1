"""safetensors files piece by piece: checked while they come, written and read tensor by tensor.

Such a file is the length of its header (8 bytes, little-endian), the header (JSON: a tensor's name
to dtype, shape and where its bytes lie), and the tensors' bytes end to end. Reading it whole would
need memory for the whole adapter; these functions need it for one tensor or one piece.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.header import LENGTH_BYTES, SIZES, Contents, Place, check_places, places_of

Array = NDArray[np.float32]
Raw = NDArray[Any]

#: All rows of a tensor.
ALL = slice(None)

#: How numpy reads the dtypes that a payload may hold. numpy has no bfloat16: it reads the bits.
_READ = {"F32": "<f4", "BF16": "<u2", "I8": "<i1", "I32": "<i4"}


class Inspector:
    """Checks a payload from its bytes as they come, in order.

    Each tensor is checked as it completes. Call `finish` at the end. Raises BadPayload, which
    names what is wrong.
    """

    def __init__(self, contents: Contents, *, num_bytes: int) -> None:
        self._contents = contents
        self._num_bytes = num_bytes
        self._head: bytearray | None = bytearray()
        self._places: list[Place] = []
        self._at = 0
        self._rest = b""
        self._highest = -1

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        if self._head is not None:
            data = self._take_header(self._head, data)
        self._at += len(data)
        data = memoryview(self._rest + data if self._rest else data)
        begin = self._at - len(data)
        while self._places and data:
            place = self._places[0]
            item = SIZES[place.dtype]
            size = min(place.end - begin, len(data)) // item * item
            self._check(place, np.frombuffer(data, _READ[place.dtype], size // item))
            begin, data = begin + size, data[size:]
            if begin == place.end:
                self._places.pop(0)
                self._highest = -1
            elif len(data) < item:
                break
        self._rest = bytes(data)

    def _check(self, place: Place, values: Raw) -> None:
        good = True
        if place.dtype == "F32":
            good = bool(np.isfinite(values).all())
        elif place.dtype == "BF16":
            good = bool(((values & 0x7F80) != 0x7F80).all())
        elif place.dtype == "I32" and len(values):
            rising = values[0] > self._highest and (values[1:] > values[:-1]).all()
            if not rising or values[-1] >= self._contents.specs[place.name].below:
                raise BadPayload(f"the payload's {place.name} does not rise within its bounds")
            self._highest = int(values[-1])
        if not good:
            raise BadPayload(f"the payload's {place.name} holds NaN or infinity")

    def finish(self) -> None:
        """Check that every tensor has come."""
        if self._head is not None or self._places:
            raise BadPayload("the payload is not a valid safetensors file: it ends too early")

    def _take_header(self, head: bytearray, data: bytes | memoryview) -> bytes:
        """Take what belongs to the header; gives what follows it."""
        head += data
        if len(head) < LENGTH_BYTES:
            return b""
        length = int.from_bytes(head[:LENGTH_BYTES], "little")
        if not 2 <= length <= self._contents.max_header_bytes:
            raise BadPayload(
                f"the payload is not a valid safetensors file: a header of {length} bytes"
            )
        end = LENGTH_BYTES + length
        if len(head) < end:
            return b""
        self._places = places_of(bytes(head[LENGTH_BYTES:end]), begin=end)
        check_places(self._places, self._contents, num_bytes=self._num_bytes)
        self._head, self._at = None, end
        return bytes(head[end:])


def check_file(path: Path, contents: Contents) -> bytes:
    """Check a whole file as `Inspector` does; gives its 32-byte SHA-256. Raises BadPayload."""
    inspector = Inspector(contents, num_bytes=path.stat().st_size)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(2**20):
            inspector.feed(data)
            digest.update(data)
    inspector.finish()
    return digest.digest()


class TensorReader:
    """Reads tensors of a checked file one at a time. Raises BadPayload where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if length > path.stat().st_size:
                raise BadPayload(f"{path} is no safetensors file")
            header = file.read(length)
        found = places_of(header, begin=LENGTH_BYTES + length)
        self._places = {place.name: place for place in found}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str, rows: slice = ALL) -> Raw:
        """A tensor or some of its rows, as a copy. Raises BadPayload where the file lacks it."""
        place = self._places.get(name)
        if place is None:
            raise BadPayload(f"{self._path} lacks {name}")
        first, last, _ = rows.indices(place.shape[0])
        shape = (last - first, *place.shape[1:])
        begin = place.begin + first * SIZES[place.dtype] * prod(place.shape[1:])
        found = np.fromfile(self._path, _READ[place.dtype], prod(shape), offset=begin)
        if len(found) != prod(shape):
            raise BadPayload(f"{self._path} ends within {name}")
        return found.reshape(shape)


def write_tensors(path: Path, contents: Contents, tensors: Iterable[tuple[str, Raw]]) -> bytes:
    """Write a file of these tensors, which come one after the other in the contents' order.

    A tensor may come in several pieces, each of some of its rows. Gives the file's 32-byte SHA-256.
    """
    header: dict[str, Any] = {}
    at = 0
    for name, spec in contents.specs.items():
        end = at + spec.num_bytes
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    packed = json.dumps(header, separators=(",", ":")).encode()
    packed += b" " * (-len(packed) % LENGTH_BYTES)
    head = len(packed).to_bytes(LENGTH_BYTES, "little") + packed
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for dtype, piece in _in_order(contents, tensors):
            content = np.ascontiguousarray(piece, _READ[dtype]).data
            file.write(content)
            digest.update(content)
    return digest.digest()


def _in_order(contents: Contents, tensors: Iterable[tuple[str, Raw]]) -> Iterator[tuple[str, Raw]]:
    """Each piece with its dtype. Raises ValueError where they are not the contents, in order."""
    pieces = iter(tensors)
    for name, spec in contents.specs.items():
        rows = 0
        while rows < spec.shape[0]:
            found, piece = next(pieces, ("nothing", np.empty(0)))
            rows += len(piece)
            if found != name or piece.shape[1:] != spec.shape[1:] or rows > spec.shape[0]:
                raise ValueError(f"{found} {piece.shape} came for {name} {spec.shape}")
            yield spec.dtype, piece
    if (more := next(pieces, None)) is not None:
        raise ValueError(f"{more[0]} came after the last tensor")
