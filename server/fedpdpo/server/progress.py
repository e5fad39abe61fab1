"""Deadlines on progress: a transfer may take as long as it likes, but it has to move."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fedpdpo.common.errors import Stalled

T = TypeVar("T")


class Progress:
    """Watches one transfer, in an event loop.

    Each step ends within `patience_s`, and over every `patience_s` at least `least_bytes_per_s`
    pass, so that one who sends a byte now and then does not hold a turn for ever.
    """

    def __init__(self, *, patience_s: float, least_bytes_per_s: float) -> None:
        self._patience_s = patience_s
        self._least = least_bytes_per_s * patience_s
        self._ticks = asyncio.get_running_loop().time
        self._since_s = self._ticks()
        self._bytes = 0

    async def step(self, step: Awaitable[T]) -> T:
        """Wait for a step. Raises Stalled where it takes too long."""
        try:
            async with asyncio.timeout(self._patience_s):
                return await step
        except TimeoutError:
            raise Stalled(f"nothing moved for {self._patience_s:g} s; go on from there") from None

    def passed(self, num_bytes: int) -> None:
        """Count bytes that passed. Raises Stalled where they were too few for too long."""
        self._bytes += num_bytes
        took_s = self._ticks() - self._since_s
        if took_s < self._patience_s:
            return
        if self._bytes < self._least:
            raise Stalled(f"{self._bytes} bytes in {took_s:.0f} s are too few; go on from there")
        self._since_s, self._bytes = self._ticks(), 0
