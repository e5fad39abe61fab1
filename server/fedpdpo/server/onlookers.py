"""Operators who look again and again: the server of an ended run waits for their last look."""

from collections.abc import Callable

#: An operator who says to come back later than this is not waited for so long.
MOST_S = 30.0

#: What a look may be late.
_SLACK_S = 3.0


class Onlookers:
    """Who comes back, by peer, and until when; used from one thread. `ticks` gives seconds."""

    def __init__(self, ticks: Callable[[], float]) -> None:
        self._ticks = ticks
        self._until: dict[str, float] = {}

    def looked(self, peer: str, *, again_in_s: float, ended: bool) -> None:
        """Note a look, and in how many seconds the next one comes; 0 means none does."""
        self._forget_late()
        if again_in_s > 0 and not ended:
            self._until[peer] = self._ticks() + min(again_in_s, MOST_S) + _SLACK_S
        else:
            self._until.pop(peer, None)

    @property
    def awaited(self) -> bool:
        """Whether somebody comes back who has not seen the end."""
        self._forget_late()
        return bool(self._until)

    def __len__(self) -> int:
        return len(self._until)

    def _forget_late(self) -> None:
        now = self._ticks()
        self._until = {peer: until for peer, until in self._until.items() if until > now}
