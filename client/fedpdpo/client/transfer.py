"""Payloads at the client's end of the wire: each goes on from where it was cut off.

Deadlines are on progress: a transfer is given up, and tried again, when nothing moved for a while.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from fedpdpo.common.errors import BadPayload, Stalled, WrongDigest
from fedpdpo.common.frames import PULL, PUSH, Chunk, packed, parser
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import Receiver, chunks_of, held_of, pack, unpacked
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import payload_pb2

Moved = Callable[[int], None]


class Calls:
    """The two calls that move payloads."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.pull: Any = channel.unary_stream(
            PULL,
            request_serializer=pb.PullAdapterRequest.SerializeToString,
            response_deserializer=parser(pb.PullAdapterResponse),
        )
        self.push: Any = channel.stream_stream(
            PUSH,
            request_serializer=packed,
            response_deserializer=pb.PushDeltaResponse.FromString,
        )


def pull(
    calls: Calls,
    request: pb.PullAdapterRequest,
    path: Path,
    layout: LoraLayout,
    *,
    stall_s: float,
    moved: Moved,
) -> None:
    """Fetch an adapter to `path`, whole and checked; `moved` is told how many bytes are here.

    Raises BadPayload, Stalled or StorageFull.
    """
    num_held, sha256 = held_of(path)
    asked = pb.PullAdapterRequest()
    asked.CopyFrom(request)
    asked.held.CopyFrom(payload_pb2.PayloadHeld(num_bytes=num_held, sha256=sha256))
    call = calls.pull(asked)
    with Watch(call, stall_s=stall_s) as watch:
        first = next(call, None)
        if not isinstance(first, pb.PullAdapterResponse):
            raise BadPayload("the server sent no header before the adapter")
        header = first.header
        expected = num_held if header.sha256 == sha256 else 0
        with Receiver(
            path,
            num_bytes=header.num_bytes,
            sha256=header.sha256,
            contents=Contents.of(layout),
        ) as receiver:
            if receiver.held != expected:
                raise WrongDigest("what was here of the adapter is damaged; it is fetched anew")
            for chunk in call:
                watch.moved()
                if not isinstance(chunk, Chunk):
                    raise BadPayload("the server sent a second header")
                data = unpacked(chunk)
                receiver.write(chunk.offset, data)
                moved(chunk.offset + len(data))
            receiver.finish()
            receiver.keep()


def push(
    calls: Calls,
    header: pb.DeltaHeader,
    path: Path,
    *,
    zstd: bool,
    stall_s: float,
    moved: Moved,
) -> bool:
    """Send a delta; returns when the server has counted it for good.

    Gives whether it had been counted before. `moved` is told how many bytes are on their way.
    Raises Stalled.
    """
    begin: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def parts() -> Iterator[pb.PushDeltaRequest | Chunk]:
        yield pb.PushDeltaRequest(header=header)
        held = begin.get()
        if held is None:
            return
        for offset, data in chunks_of(path, begin=held):
            yield pack(offset, data, zstd=zstd)
            watch.moved()
            moved(offset + len(data))

    call = calls.push(parts())
    counted: pb.DeltaCounted | None = None
    try:
        with Watch(call, stall_s=stall_s) as watch:
            for response in call:
                watch.moved()
                if response.WhichOneof("part") == "held":
                    begin.put(response.held.num_bytes)
                else:
                    counted = response.counted
    finally:
        begin.put(None)
    if counted is None:
        raise WrongDigest("the server ended without counting the delta")
    return counted.already_counted


class Watch:
    """Cancels a call on which nothing moved for `stall_s`; leaving it then raises Stalled."""

    def __init__(self, call: grpc.Call, *, stall_s: float) -> None:
        self._call = call
        self._stall_s = stall_s
        self._last_s = time.monotonic()
        self._stalled = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def moved(self) -> None:
        """Note that something moved."""
        self._last_s = time.monotonic()

    def _look(self) -> None:
        while not self._done.wait(max(0.0, self._last_s + self._stall_s - time.monotonic())):
            if time.monotonic() - self._last_s >= self._stall_s:
                self._stalled = True
                self._call.cancel()
                return

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._call.cancel()
        if self._stalled and isinstance(error, grpc.RpcError):
            raise Stalled(f"nothing moved for {self._stall_s:g} s") from error
