"""Which clients were heard lately, and what they said they do. Kept in memory only."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a client."""

    at_s: float
    activity: str = ""
    progress: float = 0.0


class Presence:
    """Signs of life by client. At the start every client counts as heard just now."""

    def __init__(self, clock: Callable[[], float], *, timeout_s: float) -> None:
        self.started_at_s = clock()
        self._clock = clock
        self._timeout_s = timeout_s
        self._signs: dict[str, Sign] = {}

    def heard(
        self, client_id: str, *, activity: str | None = None, progress: float | None = None
    ) -> None:
        """Note a sign of life; without an activity the one noted before stays."""
        last = self.sign(client_id)
        self._signs[client_id] = Sign(
            self._clock(),
            last.activity if activity is None else activity,
            last.progress if progress is None else progress,
        )

    def sign(self, client_id: str) -> Sign:
        """The last sign of a client."""
        return self._signs.get(client_id, Sign(self.started_at_s))

    def silent_s(self, client_id: str) -> float:
        """Seconds since a client was heard."""
        return self._clock() - self.sign(client_id).at_s

    def is_here(self, client_id: str) -> bool:
        """Whether a client was heard within the timeout."""
        return self.silent_s(client_id) <= self._timeout_s
