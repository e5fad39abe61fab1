"""The page over HTTP: its assets, the run's data, live changes, and what an operator may do.

Anyone who reaches the port may look; who shows an operator's token may pause, resume and stop.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from fedpdpo.common.errors import FedPDPOError, NotFound, NotIdentified, NotOpen, StorageAway
from fedpdpo.server.changes import Changes
from fedpdpo.server.federation import Federation
from fedpdpo.server.operations import events_after, set_paused, stop
from fedpdpo.server.watch.crowd import HEALTH, Bounded
from fedpdpo.server.watch.exposition import exposition
from fedpdpo.server.watch.headers import Headers
from fedpdpo.server.watch.operators import Operators
from fedpdpo.server.watch.overview import Observer, Overview

STATIC = Path(__file__).with_name("static")

#: At least so many seconds between two looks that a page is sent, and at most so many.
_LEAST_S, _MOST_S = 0.5, 2.0

_MOST_NUMBER = 2**31 - 1

_OVERVIEW = TypeAdapter(Overview)
_STATUSES = {NotFound: 404, NotOpen: 409, NotIdentified: 401, StorageAway: 503}

#: What an operator may do to a run.
ACTIONS: dict[str, Callable[[Federation], None]] = {
    "pause": partial(set_paused, paused=True),
    "resume": partial(set_paused, paused=False),
    "stop": stop,
}


class Web:
    """Answers requests about one federation; `closing` ends the streams."""

    def __init__(
        self, federation: Federation, changes: Changes, operators: Operators, *, hosts: list[str]
    ) -> None:
        self._federation = federation
        self._changes = changes
        self._operators = operators
        self._observer = Observer(federation)
        self._shared: tuple[asyncio.Event, float, bytes] | None = None
        self._sharing = asyncio.Lock()
        self.closing = asyncio.Event()
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Mount("/static", StaticFiles(directory=STATIC)),
                Route(HEALTH, self._healthy),
                Route("/metrics", self._metrics),
                Route("/api/overview", self._overview),
                Route("/api/live", self._live),
                Route("/api/events", self._events),
                Route("/api/rounds/{number:int}", self._round),
                Route("/api/clients/{client_id}", self._client),
                Route("/api/operator", self._operator),
                Route("/api/{action}", self._act, methods=["POST"]),
                Route("/adapters/{version:int}.safetensors", self._adapter),
            ],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
                Middleware(Headers),
                Middleware(Bounded),
            ],
            exception_handlers={FedPDPOError: _refused},
        )

    async def _page(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def _healthy(self, _: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def _metrics(self, _: Request) -> Response:
        content, kind = await asyncio.to_thread(exposition, self._federation, self._observer)
        return Response(content, headers={"Content-Type": kind})

    async def _overview(self, _: Request) -> Response:
        return _json(await asyncio.to_thread(self._look))

    def _look(self) -> bytes:
        return _OVERVIEW.dump_json(self._observer.overview())

    async def _live(self, _: Request) -> Response:
        return StreamingResponse(self._looks(), media_type="text/event-stream")

    async def _looks(self) -> AsyncIterator[bytes]:
        while not self.closing.is_set():
            try:
                change, seen = await self._shared_look()
            except FedPDPOError:
                return  # a browser asks again
            yield b"data: " + seen + b"\n\n"
            await asyncio.sleep(_LEAST_S)
            await self._changes.wait(change, at_most_s=_MOST_S)

    async def _shared_look(self) -> tuple[asyncio.Event, bytes]:
        """A look that all pages share until something changes or it is old, and what rings then."""
        async with self._sharing:
            now_s, change = time.monotonic(), self._changes.next
            kept = self._shared
            if kept is None or kept[0] is not change or now_s - kept[1] > _LEAST_S:
                kept = self._shared = change, now_s, await asyncio.to_thread(self._look)
            return change, kept[2]

    async def _events(self, request: Request) -> Response:
        try:
            after = max(0, int(request.query_params.get("after", "0")))
        except ValueError:
            raise HTTPException(400, "after is the number of an event") from None
        found = await asyncio.to_thread(events_after, self._federation, after)
        told = [
            {"number": one.number, "at_s": one.at_s, "kind": one.kind, "message": one.message}
            for one in found
        ]
        return _json(TypeAdapter(list[dict[str, Any]]).dump_json(told))

    async def _round(self, request: Request) -> Response:
        found = await asyncio.to_thread(self._observer.parts, _number(request, "number"))
        return _json(TypeAdapter(type(found)).dump_json(found))

    async def _client(self, request: Request) -> Response:
        found = await asyncio.to_thread(self._observer.past, request.path_params["client_id"])
        return _json(TypeAdapter(type(found)).dump_json(found))

    async def _operator(self, request: Request) -> Response:
        return _json(TypeAdapter(str).dump_json(self._operators.name(request.headers)))

    async def _act(self, request: Request) -> Response:
        action = ACTIONS.get(request.path_params["action"])
        if action is None:
            raise HTTPException(404)
        self._operators.name(request.headers)
        await asyncio.to_thread(action, self._federation)
        return Response(status_code=204)

    async def _adapter(self, request: Request) -> Response:
        version = _number(request, "version")
        path = await asyncio.to_thread(self._file, version)
        return FileResponse(path, filename=f"adapter-{version:05d}.safetensors")

    def _file(self, version: int) -> Path:
        with self._federation.reading() as ledger:
            row = ledger.adapter(version)
        return self._federation.store.adapter(row)


def _number(request: Request, name: str) -> int:
    """A round or version of the path; one that no database can hold is not found."""
    number = int(request.path_params[name])
    if number > _MOST_NUMBER:
        raise HTTPException(404)
    return number


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    status = next((_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES), 400)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    reason = error.TOLD if isinstance(error, StorageAway) else str(error)
    return Response(f"{reason}\n", status, headers, media_type="text/plain")
