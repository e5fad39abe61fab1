"""Which clients were heard lately, and what they said they do. Kept in memory only."""

from collections.abc import Callable
from dataclasses import dataclass

from fedpdpo.common.log import printable

#: So many joins within so many seconds are worth a remark.
_FLAPS = 4
_FLAPPING_S = 600.0


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a client, and when what it said changed last."""

    at_s: float
    moved_at_s: float
    activity: str = ""
    progress: float = 0.0


class Presence:
    """Signs of life by client. At the start every client counts as heard just now."""

    def __init__(self, clock: Callable[[], float], *, timeout_s: float) -> None:
        self.started_at_s = clock()
        self._clock = clock
        self._timeout_s = timeout_s
        self._signs: dict[str, Sign] = {}
        self._comings: dict[str, list[float]] = {}
        self._refusals: dict[str, str] = {}

    def heard(
        self, client_id: str, *, activity: str | None = None, progress: float | None = None
    ) -> None:
        """Note a sign of life; without an activity the one noted before stays."""
        last, now_s = self.sign(client_id), self._clock()
        activity = last.activity if activity is None else activity
        progress = last.progress if progress is None else progress
        moved = (activity, progress) != (last.activity, last.progress)
        moved_at_s = now_s if moved else last.moved_at_s
        self._signs[client_id] = Sign(now_s, moved_at_s, activity, progress)

    def came(self, client_id: str) -> None:
        """Note that a client joined, or joined again."""
        self.heard(client_id)
        recent = [*self._comings.get(client_id, ()), self._clock()]
        self._comings[client_id] = recent[-_FLAPS:]

    def refused(self, client_id: str, reason: str) -> None:
        """Note why a delta of a client heard before was refused; empty: one was taken."""
        self._note(client_id, f"refused: {reason}" if reason else "")

    def clipped(self, client_id: str, reason: str) -> None:
        """Note why a delta of a client heard before was scaled down."""
        self._note(client_id, f"clipped: {reason}")

    def _note(self, client_id: str, told: str) -> None:
        if client_id in self._signs:
            self._refusals[client_id] = printable(told)

    def remarks(self, client_id: str, *, patience_s: float) -> list[str]:
        """What is the matter with a client, for people: silent, stuck, flapping or wrong."""
        sign, found = self.sign(client_id), []
        if not self.is_here(client_id):
            found.append(f"silent for {self.silent_s(client_id):.0f} s")
        elif sign.activity and self.still_s(client_id, since_s=0.0) > patience_s:
            found.append(f"no progress for {self.still_s(client_id, since_s=0.0):.0f} s")
        comings = self._comings.get(client_id, [])
        if len(comings) == _FLAPS and self._clock() - comings[0] <= _FLAPPING_S:
            found.append(f"joined {_FLAPS} times in {self._clock() - comings[0]:.0f} s")
        if reason := self._refusals.get(client_id):
            found.append(reason[:200])
        return found

    def sign(self, client_id: str) -> Sign:
        """The last sign of a client."""
        return self._signs.get(client_id, Sign(self.started_at_s, self.started_at_s))

    def silent_s(self, client_id: str) -> float:
        """Seconds since a client was heard."""
        return self._clock() - self.sign(client_id).at_s

    def is_here(self, client_id: str) -> bool:
        """Whether a client was heard within the timeout."""
        return self.silent_s(client_id) <= self._timeout_s

    def still_s(self, client_id: str, *, since_s: float) -> float:
        """Seconds since a client showed progress, or since a moment if that is later."""
        return self._clock() - max(since_s, self.sign(client_id).moved_at_s)
