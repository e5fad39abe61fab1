"""SessionService: a token for a session."""

from typing import Any

from fedpdpo.common.errors import Mismatch
from fedpdpo.server.access import Access
from fedpdpo.server.sessions import Sessions
from fedpdpo.v1 import session_pb2 as pb
from fedpdpo.v1.session_pb2_grpc import SessionServiceServicer


class SessionService(SessionServiceServicer):
    """Sessions at the wire; without any where the server takes no tokens."""

    def __init__(self, sessions: Sessions | None, access: Access) -> None:
        self._sessions = sessions
        self._access = access

    async def OpenSession(
        self, request: pb.OpenSessionRequest, context: Any
    ) -> pb.OpenSessionResponse:
        """Exchange a token."""
        if self._sessions is None:
            raise Mismatch("this server takes no tokens")
        with self._access.counting_guesses(context):
            session, lifetime_s = self._sessions.open(request.token, peer=context.peer())
        return pb.OpenSessionResponse(session=session, lifetime_s=lifetime_s)
