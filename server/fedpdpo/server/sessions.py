"""Sessions: what an enrolment token is exchanged for, so that it travels once a connection.

A session holds for one caller, on one connection, for a while, and only as long as its token does.
So one that is stolen opens nothing from elsewhere. Sessions are kept in memory alone, by digest.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpdpo.common.errors import NotIdentified
from fedpdpo.common.identity import Caller
from fedpdpo.common.tokens import Enrolment, digest_of, enrolment_of, read_enrolments
from fedpdpo.server.watched import Watched

METADATA = "authorization"

_SCHEME = "Bearer "
_MAX_TOKEN_CHARS = 256
_PER_TOKEN = 8


@dataclass(frozen=True)
class _Session:
    enrolment: Enrolment
    peer: str
    ends_at: float


class Sessions:
    """Exchanges tokens of a file for sessions. Only for use in one thread.

    Raises BadSettings where the file is malformed.
    """

    def __init__(self, path: Path, *, lifetime_s: float, ticks: Callable[[], float]) -> None:
        self._enrolments = Watched(lambda: frozenset(read_enrolments(path)), path)
        self._lifetime_s = lifetime_s
        self._ticks = ticks
        self._open: dict[bytes, _Session] = {}

    def open(self, token: str, *, peer: str) -> tuple[str, float]:
        """A new session on a connection, and how many seconds it lasts. Raises NotIdentified."""
        if len(token) > _MAX_TOKEN_CHARS:
            raise NotIdentified("the token is too long to be one")
        enrolment = enrolment_of(self._enrolments.value, token)
        if enrolment is None:
            raise NotIdentified("the token is unknown, has expired or was revoked")
        self._make_room(enrolment)
        session = secrets.token_urlsafe(32)
        ends_at = self._ticks() + self._lifetime_s
        self._open[digest_of(session)] = _Session(enrolment, peer, ends_at)
        return session, self._lifetime_s

    def caller(self, context: Any) -> Caller:
        """Who calls, by the session in the call's metadata. Raises NotIdentified."""
        told = [value for key, value in context.invocation_metadata() or () if key == METADATA]
        if len(told) != 1 or not str(told[0]).startswith(_SCHEME):
            raise NotIdentified("the call came without a session; exchange a token for one")
        session = self._open.get(digest_of(str(told[0]).removeprefix(_SCHEME)))
        if session is None or session.ends_at <= self._ticks():
            raise NotIdentified("the session has ended; exchange the token for another")
        if session.peer != context.peer():
            raise NotIdentified("the session belongs to another connection")
        if not self._holds(session.enrolment):
            raise NotIdentified("the token of this session has expired or was revoked")
        return session.enrolment.caller

    def _holds(self, enrolment: Enrolment) -> bool:
        return enrolment in self._enrolments.value and enrolment.holds

    def _make_room(self, enrolment: Enrolment) -> None:
        now_s = self._ticks()
        for digest in [key for key, one in self._open.items() if one.ends_at <= now_s]:
            del self._open[digest]
        theirs = [key for key, one in self._open.items() if one.enrolment == enrolment]
        for digest in theirs[: 1 - _PER_TOKEN]:
            del self._open[digest]
