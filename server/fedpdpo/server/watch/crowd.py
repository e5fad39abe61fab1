"""What holds however many look at the page: bounds, and a server that says that it lives."""

import asyncio

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

#: Where the server says that it lives.
HEALTH = "/healthz"

#: A connection on which nothing is asked, and nothing answered, for so long is closed.
REQUEST_S = 10.0

#: So many requests are answered at a time.
MOST_ANSWERS = 256


class Connection(H11Protocol):
    """One that is closed where no whole request came for REQUEST_S, however many bytes did."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_request()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._await_request()
        super().on_response_complete()

    def _await_request(self) -> None:
        self.loop.call_later(REQUEST_S, self._give_up, self.cycle)

    def _give_up(self, last: RequestResponseCycle | None) -> None:
        if self.cycle is last:
            self.transport.close()


class Bounded:
    """Answers MOST_ANSWERS requests at a time, and HEALTH always."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say that there are too many."""
        if scope["path"] == HEALTH:
            await self._app(scope, receive, send)
        elif self._under_way >= MOST_ANSWERS:
            busy = Response("too many look; ask again\n", 503, {"Retry-After": "1"})
            await busy(scope, receive, send)
        else:
            self._under_way += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._under_way -= 1
