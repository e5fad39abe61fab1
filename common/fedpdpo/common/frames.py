"""Chunks at the wire: the messages that protobuf makes of them, made and read with fewer copies.

A PushDeltaRequest or PullAdapterResponse that holds a chunk is a few bytes of tags and lengths
before the piece itself. Through the generated classes a piece is copied four times on its way out
and three times on its way in, all under the interpreter's lock; here it is copied once on its way
out, and not at all on its way in. Whatever does not look exactly like a frame of this module goes
to the generated class, so that peers may use any protobuf.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

#: The methods whose messages hold chunks.
PULL = "/fedpdpo.v1.FederationService/PullAdapter"
PUSH = "/fedpdpo.v1.FederationService/PushDelta"

M = TypeVar("M")

_CHUNK = b"\x12"  # field 2 of both messages, a message
_OFFSET = b"\x08"  # field 1 of PayloadChunk, a number
_DATA = b"\x12"  # field 2 of PayloadChunk, bytes
_ZSTD = b"\x18\x01"  # field 3 of PayloadChunk, true


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a payload; `data` as it travels, one zstd frame where `zstd` says so."""

    offset: int
    data: bytes | memoryview
    zstd: bool = False


def packed(message: Any) -> bytes:
    """A message, or the one that holds a chunk, as bytes."""
    if not isinstance(message, Chunk):
        serialized: bytes = message.SerializeToString()
        return serialized
    size = len(message.data)
    head = b"".join((
        _OFFSET + _varint(message.offset) if message.offset else b"",
        _ZSTD if message.zstd else b"",
        _DATA + _varint(size),
    ))  # fmt: skip
    return b"".join((_CHUNK, _varint(len(head) + size), head, message.data))


def parser(kind: type[M]) -> Callable[[bytes], M | Chunk]:
    """Reads messages of a kind; those that hold a chunk as a Chunk."""

    def parsed(raw: bytes) -> M | Chunk:
        if (chunk := _framed(raw)) is not None:
            return chunk
        message: Any = kind.FromString(raw)  # type: ignore[attr-defined]
        if message.WhichOneof("part") == "chunk":
            return Chunk(message.chunk.offset, message.chunk.data, message.chunk.zstd)
        found: M = message
        return found

    return parsed


def _framed(raw: bytes) -> Chunk | None:
    """The chunk of a frame that `packed` made; None for anything else."""
    if raw[:1] != _CHUNK:
        return None
    size, at = _read_varint(raw, 1)
    if at + size != len(raw):
        return None
    offset, zstd = 0, False
    if raw[at : at + 1] == _OFFSET:
        offset, at = _read_varint(raw, at + 1)
    if raw[at : at + 2] == _ZSTD:
        zstd, at = True, at + 2
    if raw[at : at + 1] != _DATA:
        return None
    size, at = _read_varint(raw, at + 1)
    if offset < 0 or at + size != len(raw):
        return None
    return Chunk(offset, memoryview(raw)[at:], zstd)


def _varint(number: int) -> bytes:
    """A number in base 128, the lowest digits first, all but the last with the top bit set."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; one that is cut off or of more than 64 bits is as good as -1."""
    number = 0
    for shift in range(0, 63, 7):
        if at == len(raw):
            return -1, at
        digit = raw[at]
        at += 1
        number |= (digit & 127) << shift
        if digit < 128:
            return number, at
    return -1, at
