"""Chunks made and read by hand are protobuf's own messages, to the byte and from any byte."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from fedpdpo.common.frames import Chunk, packed, parser
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import payload_pb2

OFFSETS = st.integers(0, 2**64 - 1)
parse_push = parser(pb.PushDeltaRequest)


@given(OFFSETS, st.binary(max_size=300), st.booleans())
def test_a_frame_is_the_message_of_protobuf(offset: int, data: bytes, zstd: bool) -> None:
    raw = packed(Chunk(offset, data, zstd))
    for kind in (pb.PushDeltaRequest, pb.PullAdapterResponse):
        message = kind.FromString(raw)
        assert message.WhichOneof("part") == "chunk"
        assert (message.chunk.offset, message.chunk.data, message.chunk.zstd) == (
            offset,
            data,
            zstd,
        )


@given(OFFSETS, st.binary(max_size=300), st.booleans())
def test_a_chunk_is_read_from_either_kind_of_sender(offset: int, data: bytes, zstd: bool) -> None:
    chunk = payload_pb2.PayloadChunk(offset=offset, data=data, zstd=zstd)
    theirs = pb.PushDeltaRequest(chunk=chunk).SerializeToString()
    for raw in (theirs, packed(Chunk(offset, data, zstd))):
        found = parse_push(raw)
        assert isinstance(found, Chunk)
        assert (found.offset, bytes(found.data), found.zstd) == (offset, data, zstd)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"\x12" + rest))
@example(b"\x12\x0c\x08" + b"\xff" * 9 + b"\x12\x00")
def test_any_bytes_are_read_as_protobuf_reads_them(raw: bytes) -> None:
    try:
        theirs = pb.PushDeltaRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_push(raw)
        return
    ours = parse_push(raw)
    if isinstance(ours, Chunk):
        chunk = theirs.chunk
        assert (ours.offset, bytes(ours.data), ours.zstd) == (chunk.offset, chunk.data, chunk.zstd)
    else:
        assert ours == theirs


def test_a_header_stays_a_message() -> None:
    message = pb.PushDeltaRequest(header=pb.DeltaHeader(round=3))
    assert parse_push(packed(message)) == message
