"""SIGTERM and SIGINT end the process at once or, where it asks for it, at a good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Turns the two signals into SystemExit; inside `deferred` into `wanted` the first time."""

    def __init__(self) -> None:
        self.wanted = 0
        self._deferring = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals inside the block; in the main thread, which alone is given them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._handle) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside the block a first signal only sets `wanted`, to the signal's number.

        Where the block has not ended the process by then, its end does.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self.wanted:
            self.end()

    def end(self) -> None:
        """End the process as the signal asked for."""
        raise SystemExit(128 + (self.wanted or signal.SIGTERM))

    def _handle(self, number: int, _: FrameType | None) -> None:
        again, self.wanted = bool(self.wanted), number
        if again or not self._deferring:
            self.end()
