"""Payloads at the wire: adapters go out, deltas come in, both from where they were cut off.

Deadlines are on progress, however long the whole takes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fedpdpo.common.errors import AlreadyPushed, BadPayload, BadRequest
from fedpdpo.common.frames import Chunk
from fedpdpo.common.payload import Receiver, chunks_of, pack, unpacked
from fedpdpo.server.federation import Federation
from fedpdpo.server.intake import Announced, Intake
from fedpdpo.server.progress import Progress
from fedpdpo.server.rows import AdapterRow
from fedpdpo.server.threads import to_its_end
from fedpdpo.server.transfers import Transfers
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import payload_pb2

_PATIENCE_S = 15.0


class Exchange:
    """Moves payloads between the federation's disk and its clients."""

    def __init__(self, federation: Federation, intake: Intake) -> None:
        self._federation = federation
        self._intake = intake
        self._transfers = Transfers(
            at_once=federation.settings.max_transfers,
            patience_s=_PATIENCE_S,
            clock=asyncio.get_running_loop().time,
        )
        gauge = federation.meters.transfers
        gauge.labels("under way").set_function(lambda: self._transfers.under_way)
        gauge.labels("waiting").set_function(lambda: self._transfers.waiting)

    async def send(
        self, client_id: str, version: int, held: payload_pb2.PayloadHeld, context: Any
    ) -> None:
        """Write an adapter to a client: the header, then what it does not hold.

        Raises NotFound, Busy, Stalled or StorageAway.
        """
        row, zstd = await asyncio.to_thread(self._adapter, client_id, version)
        begin = held.num_bytes if held.sha256 == row.sha256 else 0
        if begin > row.num_bytes:
            begin = 0
        async with self._transfers.turn(client_id):
            path = await asyncio.to_thread(self._federation.store.adapter, row)
            progress = self._progress()
            header = payload_pb2.PayloadHeader(num_bytes=row.num_bytes, sha256=row.sha256)
            await progress.step(context.write(pb.PullAdapterResponse(header=header)))
            for offset, data in chunks_of(path, begin=begin):
                chunk = Chunk(offset, data)
                if zstd:
                    chunk = await asyncio.to_thread(pack, offset, data, zstd=True)
                await progress.step(context.write(chunk))
                progress.passed(len(data))
                self._federation.traffic.sent(client_id, len(chunk.data))

    def _adapter(self, client_id: str, version: int) -> tuple[AdapterRow, bool]:
        """A published adapter, and whether it goes by zstd."""
        with self._federation.reading() as ledger:
            client = ledger.client(client_id)
            return ledger.adapter(version), client.zstd

    async def receive(
        self, delta: Announced, messages: AsyncIterator[pb.PushDeltaRequest | Chunk], context: Any
    ) -> None:
        """Take a delta's chunks, telling how many bytes are held, and count it.

        Raises what Intake and Receiver raise, Busy, Superseded or Stalled.
        """
        try:
            receiver = await asyncio.to_thread(self._intake.receiver, delta)
            counted = True
            if receiver is not None:
                async with self._transfers.turn(delta.client_id), _opened(receiver):
                    await self._take(delta, receiver, messages, context)
                    counted = await to_its_end(self._intake.accept, delta, receiver)
        except (BadPayload, BadRequest, AlreadyPushed) as error:
            self._federation.presence.refused(delta.client_id, str(error))
            raise
        self._federation.presence.refused(delta.client_id, "")
        done = pb.DeltaCounted(already_counted=counted)
        await context.write(pb.PushDeltaResponse(counted=done))

    async def _take(
        self,
        delta: Announced,
        receiver: Receiver,
        messages: AsyncIterator[pb.PushDeltaRequest | Chunk],
        context: Any,
    ) -> None:
        progress = self._progress()

        async def tell() -> None:
            held = payload_pb2.PayloadHeld(num_bytes=receiver.held, sha256=delta.sha256)
            await progress.step(context.write(pb.PushDeltaResponse(held=held)))

        await tell()
        while (message := await progress.step(anext(messages, None))) is not None:
            if not isinstance(message, Chunk):
                raise BadPayload("a delta has one header; chunks follow it")
            progress.passed(len(message.data))
            self._federation.traffic.received(delta.client_id, len(message.data))
            if await asyncio.to_thread(_written, receiver, message):
                await tell()

    def _progress(self) -> Progress:
        settings = self._federation.settings
        return Progress(
            patience_s=settings.stall_timeout_s, least_bytes_per_s=settings.min_bytes_per_s
        )


def _written(receiver: Receiver, chunk: Chunk) -> bool:
    return receiver.write(chunk.offset, unpacked(chunk))


@contextlib.asynccontextmanager
async def _opened(receiver: Receiver) -> AsyncIterator[None]:
    """Use a receiver, whose opening and closing wait for the disk, without holding up the loop.

    Both go to their end, so that whoever waits for this task finds the file closed.
    """
    stack = contextlib.ExitStack()
    try:
        await to_its_end(stack.enter_context, receiver)
        yield
    except BaseException as error:
        await to_its_end(stack.__exit__, type(error), error, error.__traceback__)
        raise
    await to_its_end(stack.close)
