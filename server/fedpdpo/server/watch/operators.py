"""Who may do more than look: the operators whose tokens a file knows."""

from collections.abc import Mapping
from pathlib import Path

from fedpdpo.common.errors import NotIdentified
from fedpdpo.common.identity import Role
from fedpdpo.common.tokens import enrolment_of, read_enrolments
from fedpdpo.server.watched import Watched

_SCHEME = "Bearer "
_MAX_CHARS = 256


class Operators:
    """The operators of a file of enrolment tokens; nobody where there is none.

    Raises BadSettings where the file is malformed.
    """

    def __init__(self, path: Path | None) -> None:
        self._known = Watched(lambda: read_enrolments(path), path) if path is not None else None

    def name(self, headers: Mapping[str, str]) -> str:
        """Whose token a request's headers carry. Raises NotIdentified."""
        told = headers.get("authorization", "")
        if self._known is None:
            raise NotIdentified("this server was started without --dashboard-tokens")
        if not told.startswith(_SCHEME) or len(told) > _MAX_CHARS:
            raise NotIdentified("an operator's token is needed")
        enrolment = enrolment_of(self._known.value, told.removeprefix(_SCHEME))
        if enrolment is None:
            raise NotIdentified("the token is unknown, has expired or was revoked")
        if enrolment.caller.role is not Role.OPERATOR:
            raise NotIdentified("the token is a client's, not an operator's")
        return enrolment.caller.name
