"""The port of the page: HTTP beside gRPC, in the same process and event loop."""

import asyncio
import contextlib
import logging
import socket
from dataclasses import dataclass

import uvicorn

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.log import fields
from fedpdpo.common.tls import is_loopback
from fedpdpo.server.certificates import page_context
from fedpdpo.server.changes import Changes
from fedpdpo.server.federation import Federation
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.watch.crowd import Connection
from fedpdpo.server.watch.operators import Operators
from fedpdpo.server.watch.web import Web

log = logging.getLogger(__name__)

_GRACE_S = 2
_LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


class _Server(uvicorn.Server):
    """Leaves signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@dataclass(frozen=True)
class Site:
    """A page that is served."""

    port: int
    _web: Web
    _server: uvicorn.Server
    _serving: asyncio.Task[None]

    @classmethod
    async def open(
        cls, settings: ServerSettings, federation: Federation, changes: Changes
    ) -> "Site":
        """Serve the page of a federation.

        Raises BadSettings for a port that is taken, a wrong file of tokens or of TLS, or an address
        that other machines reach without TLS, unless that is said to be meant.
        """
        host = settings.dashboard_host
        local = is_loopback(host)
        if not local and settings.tls is None and not settings.insecure:
            raise BadSettings(
                f"--dashboard-host {host} is reached by other machines; give --tls FOLDER, or "
                "--insecure where anyone who reaches the port may look"
            )
        operators = Operators(settings.dashboard_tokens or settings.tokens)
        web = Web(federation, changes, operators, hosts=[*_LOOPBACK, host] if local else ["*"])
        tls = page_context(settings.tls) if settings.tls is not None and not local else None
        try:
            listening = socket.create_server((host, settings.dashboard_port or 0))
        except OSError as error:
            raise BadSettings(
                f"cannot listen on {host}:{settings.dashboard_port}; is the port in use? choose "
                "another --dashboard-port"
            ) from error
        config = uvicorn.Config(
            web.app,
            http=Connection,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
        config.load()
        config.ssl = tls
        server = _Server(config)
        port = int(listening.getsockname()[1])
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        scheme = "https" if tls else "http"
        log.info(fields("dashboard", url=f"{scheme}://{host}:{port}/"))
        return cls(port, web, server, serving)

    async def close(self) -> None:
        """End the streams, let answers end, then close."""
        self._web.closing.set()
        self._server.should_exit = True
        await self._serving
