"""What the client tells of itself between the server's assignments."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedpdpo.client.link import Link
from fedpdpo.client.meters import Meters
from fedpdpo.client.transfer import Moved
from fedpdpo.common.tracing import span


class Heart:
    """Beats in a thread of its own while the client works; use it as a context manager.

    It says what the client does, or what the link waits for; `meters` count how long that took.
    """

    def __init__(self, link: Link, *, every_s: float) -> None:
        self.meters = Meters()
        self.activity = ""
        self.progress = 0.0
        self._waiting = ""
        self._link = link
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    @contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Say that the client does something, and time it."""
        self.activity, self.progress = activity, 0.0
        what = activity.split(maxsplit=1)[0]
        try:
            with self.meters.spent(what), span(what, activity=activity):
                yield
        finally:
            self.activity, self.progress = "", 0.0

    @contextmanager
    def moving(self, activity: str, *, num_bytes: int) -> Iterator[Moved]:
        """Say that a payload is on its way; gives what is told how many bytes of it are."""

        def moved(so_far: int) -> None:
            self.progress = min(1.0, so_far / max(1, num_bytes))

        with self.doing(activity):
            yield moved
        self.meters.bytes.labels(activity.split(maxsplit=1)[0]).inc(num_bytes)

    def __enter__(self) -> "Heart":
        self._link.note = self._note
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _note(self, waiting: str) -> None:
        self._waiting = waiting

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            self._link.heartbeat(activity=self._waiting or self.activity, progress=self.progress)
