"""Payloads at the client's end of the wire: each goes on from where it was cut off.

Deadlines are on progress: a transfer is given up, and tried again, when nothing moved for a while.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import grpc

from fedpdpo.common.errors import Stalled, WrongDigest
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import Receiver, chunks_of, held_of, pack, unpacked
from fedpdpo.common.tensorfile import Contents
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import payload_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub

Moved = Callable[[int], None]


def pull(
    stub: FederationServiceStub,
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
    call = stub.PullAdapter(asked)
    with Watch(call, stall_s=stall_s) as watch:
        header = next(call, pb.PullAdapterResponse()).header
        expected = num_held if header.sha256 == sha256 else 0
        with Receiver(
            path,
            num_bytes=header.num_bytes,
            sha256=header.sha256,
            contents=Contents.of(layout),
        ) as receiver:
            if receiver.held != expected:
                raise WrongDigest("what was here of the adapter is damaged; it is fetched anew")
            for part in call:
                watch.moved()
                data = unpacked(part.chunk.data, zstd=part.chunk.zstd)
                receiver.write(part.chunk.offset, data)
                moved(part.chunk.offset + len(data))
            receiver.finish()
            receiver.keep()


def push(
    stub: FederationServiceStub,
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

    def parts() -> Iterator[pb.PushDeltaRequest]:
        yield pb.PushDeltaRequest(header=header)
        held = begin.get()
        if held is None:
            return
        for offset, data in chunks_of(path, begin=held):
            packed = payload_pb2.PayloadChunk(offset=offset, data=pack(data, zstd=zstd), zstd=zstd)
            yield pb.PushDeltaRequest(chunk=packed)
            watch.moved()
            moved(offset + len(data))

    call = stub.PushDelta(parts())
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
