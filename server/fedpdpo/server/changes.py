"""Lets coroutines wait for the next change, whichever thread makes it."""

import asyncio
import contextlib


class Changes:
    """A bell: `ring` from any thread wakes every coroutine that waits in `wait`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._next = asyncio.Event()

    def ring(self) -> None:
        """Announce a change."""
        self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    @property
    def next(self) -> asyncio.Event:
        """The event that the next change sets; take it before looking, so that none is missed."""
        return self._next

    @staticmethod
    async def wait(event: asyncio.Event, *, at_most_s: float) -> None:
        """Wait for an event or for the time to pass."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), at_most_s)
