"""Who may make which call. What stands in no row is nobody's."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from fedpdpo.common.errors import Forbidden, NotIdentified
from fedpdpo.common.identity import Caller, Role
from fedpdpo.server.pace import Pace

_CLIENT = frozenset({Role.CLIENT})
_OPERATOR = frozenset({Role.OPERATOR})
#: Even one who has not said who it is.
_ANYONE = frozenset[Role]()

_FEDERATION = "/fedpdpo.v1.FederationService/"
_OPERATIONS = "/fedpdpo.v1.OperatorService/"

#: A row a call. A client makes the calls that carry a client's id for itself alone.
WHO: Mapping[str, frozenset[Role]] = MappingProxyType(
    {
        "/fedpdpo.v1.SessionService/OpenSession": _ANYONE,
        f"{_FEDERATION}GetRun": _CLIENT,
        f"{_FEDERATION}Join": _CLIENT,
        f"{_FEDERATION}GetAssignment": _CLIENT,
        f"{_FEDERATION}PullAdapter": _CLIENT,
        f"{_FEDERATION}PushDelta": _CLIENT,
        f"{_FEDERATION}ReportEvaluation": _CLIENT,
        f"{_FEDERATION}Heartbeat": _CLIENT,
        f"{_FEDERATION}Leave": _CLIENT,
        f"{_OPERATIONS}GetStatus": _OPERATOR,
        f"{_OPERATIONS}WatchEvents": _OPERATOR,
        f"{_OPERATIONS}PauseRun": _OPERATOR,
        f"{_OPERATIONS}ResumeRun": _OPERATOR,
        f"{_OPERATIONS}StopRun": _OPERATOR,
    }
)

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


class Access:
    """Lets calls in, at a pace. `identify` tells who calls; without it, all are trusted."""

    def __init__(self, identify: Callable[[Any], Caller] | None, pace: Pace) -> None:
        self._identify = identify
        self._pace = pace

    def admit(self, method: str, context: Any) -> None:
        """Let a call in, and note who makes it for `check_speaks_for`.

        Raises NotIdentified, Forbidden or Busy.
        """
        if self._identify is None:
            return
        may = WHO.get(method)
        if may == _ANYONE:
            return
        caller = self._identify(context)
        self._pace.check(str(caller))
        if may is None or caller.role not in may:
            raise Forbidden(f"{method.rpartition('/')[2]} is not for {caller} to call")
        _caller.set(caller)

    @contextmanager
    def counting_guesses(self, context: Any) -> Iterator[None]:
        """Count tokens that do not hold, by machine; Busy where there are too many.

        Others on the same machine, whose tokens hold, are not held up.
        """
        try:
            yield
        except NotIdentified:
            self._pace.check(context.peer().rpartition(":")[0])
            raise


def caller_told(context: Any) -> str:
    """Who makes the present call, for the log: role and name, or an address."""
    caller = _caller.get()
    return str(caller) if caller is not None else str(context.peer())


def check_speaks_for(client_id: str) -> None:
    """Raise Forbidden where the present call speaks for a client that does not make it."""
    caller = _caller.get()
    if caller is not None and caller.name != client_id:
        raise Forbidden(f"{caller} cannot speak for client {client_id}")
