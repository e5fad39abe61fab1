"""Turns: so many payloads are on their way at a time, the others wait in the order they came."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fedpdpo.common.errors import Busy, Superseded
from fedpdpo.server.threads import over

_MOST_S = 20.0


@dataclass
class _Ticket:
    """A place in the queue. `turn` is there while its client waits here; else it may come back."""

    turn: asyncio.Future[None] | None = None
    kept_until_s: float = 0.0


@dataclass(frozen=True)
class _Stream:
    """A client's stream. `ended` is done once it has given back its turn.

    Its task may go on: what it tells the client can wait for ever where the connection is dead.
    """

    task: asyncio.Task[object]
    ended: asyncio.Future[None]


class Transfers:
    """Admits `at_once` transfers. Only for use in one event loop.

    A client that has waited `patience_s` is told when to ask again, and keeps its place meanwhile.
    """

    def __init__(self, *, at_once: int, patience_s: float, clock: Callable[[], float]) -> None:
        self._at_once = at_once
        self._patience_s = patience_s
        self._clock = clock
        self._busy = 0
        self._queue: dict[str, _Ticket] = {}
        self._streams: dict[str, _Stream] = {}

    @property
    def under_way(self) -> int:
        """Transfers that have a turn."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Clients that wait for one, or were told to ask again and may come back."""
        return len(self._queue)

    @contextlib.asynccontextmanager
    async def turn(self, client_id: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Another stream of the same client is ended first.

        Raises Busy; Superseded where a later stream of the client ends this one.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        stream = _Stream(task, asyncio.get_running_loop().create_future())
        before = self._streams.get(client_id)
        self._streams[client_id] = stream
        try:
            if before is not None:
                before.task.cancel()
                await over(before.ended)
            await self._admitted(client_id)
            try:
                yield
            finally:
                self._busy -= 1
                self._admit()
        except asyncio.CancelledError:
            if self._streams.get(client_id) is stream:
                raise
            task.uncancel()
            raise Superseded(f"another stream of {client_id} took over") from None
        finally:
            stream.ended.set_result(None)
            if self._streams.get(client_id) is stream:
                del self._streams[client_id]

    async def _admitted(self, client_id: str) -> None:
        ticket = self._queue.setdefault(client_id, _Ticket())
        ticket.turn = asyncio.get_running_loop().create_future()
        self._admit()
        try:
            await asyncio.wait({ticket.turn}, timeout=self._patience_s)
        except asyncio.CancelledError:
            if ticket.turn.done():
                self._busy -= 1
                self._admit()
            else:
                ticket.turn, ticket.kept_until_s = None, self._clock() + _MOST_S
            raise
        if not ticket.turn.done():
            again_in_s = min(_MOST_S, 1.0 + len(self._queue) / self._at_once)
            ticket.turn, ticket.kept_until_s = None, self._clock() + 2 * again_in_s + 5.0
            raise Busy(
                f"{self._at_once} transfers are under way and {len(self._queue)} wait; "
                f"ask again in {again_in_s:.0f} s",
                again_in_s=again_in_s,
            )

    def _admit(self) -> None:
        """Give free turns to those who wait here, the first come first; forget who is gone."""
        for client_id, ticket in list(self._queue.items()):
            if ticket.turn is None:
                if self._clock() > ticket.kept_until_s:
                    del self._queue[client_id]
            elif self._busy < self._at_once:
                del self._queue[client_id]
                self._busy += 1
                ticket.turn.set_result(None)
