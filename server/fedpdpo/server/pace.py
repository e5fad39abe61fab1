"""How many calls a caller may make: so many a second, and some at once."""

from collections.abc import Callable

from fedpdpo.common.errors import Busy

_MANY = 10_000
_ROUNDING_S = 1e-9


class Pace:
    """The generic cell rate algorithm (ITU-T I.371). Only for use in one thread.

    A caller's bucket is one number: when it is empty again.

    A library was looked at (`limits`): its storage in memory starts a thread a call.
    """

    def __init__(self, *, per_s: float, at_once: int, ticks: Callable[[], float]) -> None:
        self._interval_s = 1 / per_s
        self._depth_s = at_once / per_s
        self._ticks = ticks
        self._empty_at_s: dict[str, float] = {}

    def check(self, caller: str) -> None:
        """Count a call. Raises Busy, which tells when to ask again, where there are too many."""
        now_s = self._ticks()
        empty_at_s = max(now_s, self._empty_at_s.get(caller, now_s)) + self._interval_s
        if (over_s := empty_at_s - now_s - self._depth_s) > _ROUNDING_S:
            raise Busy(f"{caller} calls too often; ask again in {over_s:.1f} s", again_in_s=over_s)
        self._empty_at_s[caller] = empty_at_s
        if len(self._empty_at_s) > _MANY:
            self._empty_at_s = {
                caller: at_s for caller, at_s in self._empty_at_s.items() if at_s > now_s
            }
