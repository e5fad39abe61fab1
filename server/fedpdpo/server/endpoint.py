"""The port: services, TLS, who is asked for what, and bounds on connections."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.identity import Caller
from fedpdpo.common.log import fields
from fedpdpo.common.tls import is_loopback
from fedpdpo.server.access import Access
from fedpdpo.server.certificates import Certificates, server_credentials
from fedpdpo.server.changes import Changes
from fedpdpo.server.federation import Federation
from fedpdpo.server.federation_service import FederationService
from fedpdpo.server.interceptor import Gate
from fedpdpo.server.onlookers import Onlookers
from fedpdpo.server.operator_service import OperatorService
from fedpdpo.server.pace import Pace
from fedpdpo.server.session_service import SessionService
from fedpdpo.server.sessions import Sessions
from fedpdpo.server.settings import ServerSettings
from fedpdpo.v1 import federation_pb2, operator_pb2, session_pb2
from fedpdpo.v1.federation_pb2_grpc import add_FederationServiceServicer_to_server
from fedpdpo.v1.operator_pb2_grpc import add_OperatorServiceServicer_to_server
from fedpdpo.v1.session_pb2_grpc import add_SessionServiceServicer_to_server

log = logging.getLogger(__name__)

_GRACE_S = 2.0
_BURST_S = 10.0
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 20_000),
]
_SERVICES = (
    federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name,
    operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name,
    session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
)


@dataclass(frozen=True)
class Endpoint:
    """A server that listens."""

    port: int
    _server: grpc.aio.Server
    _healthy: health.aio.HealthServicer

    @classmethod
    async def open(
        cls,
        settings: ServerSettings,
        federation: Federation,
        *,
        changes: Changes,
        turns: Changes,
        onlookers: Onlookers,
    ) -> "Endpoint":
        """Serve a federation.

        Raises BadSettings for a port that is taken, TLS files that are wrong, tokens without TLS,
        or an address that other machines reach without TLS, unless that is said to be meant.
        """
        identify, sessions = _identification(settings)
        pace = Pace(
            per_s=settings.calls_per_s,
            at_once=max(1, int(_BURST_S * settings.calls_per_s)),
            ticks=time.monotonic,
        )
        access = Access(identify, pace)
        server = grpc.aio.server(interceptors=[Gate(access, federation.meters)], options=_OPTIONS)
        add_FederationServiceServicer_to_server(FederationService(federation, turns), server)
        add_OperatorServiceServicer_to_server(
            OperatorService(federation, changes, onlookers), server
        )
        add_SessionServiceServicer_to_server(SessionService(sessions, access), server)
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        for name in ("", *_SERVICES):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        if identify is None:
            names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        port = _bound(server, settings)
        await server.start()
        return cls(port, server, healthy)

    async def close(self) -> None:
        """Let calls end, then close."""
        await self._healthy.enter_graceful_shutdown()
        await self._server.stop(_GRACE_S)


def _identification(
    settings: ServerSettings,
) -> tuple[Callable[[Any], Caller] | None, Sessions | None]:
    """How callers say who they are: by certificate, by session, or not at all."""
    if settings.tls is None:
        if settings.tokens is not None:
            raise BadSettings("--tokens needs --tls: a token must not travel unencrypted")
        return None, None
    if settings.tokens is None:
        return Certificates(settings.tls).caller, None
    sessions = Sessions(settings.tokens, lifetime_s=settings.session_s, ticks=time.monotonic)
    return sessions.caller, sessions


def _bound(server: grpc.aio.Server, settings: ServerSettings) -> int:
    address = f"{settings.host}:{settings.port}"
    if settings.tls is None and not is_loopback(settings.host):
        if not settings.insecure:
            raise BadSettings(
                f"{settings.host} is reached by other machines; give --tls FOLDER (fedpdpo certs "
                "makes one), or --insecure where anyone who reaches the port may do anything"
            )
        log.warning(fields("insecure", address=address, advice="anyone may do anything here"))
    try:
        if settings.tls is None:
            return server.add_insecure_port(address)
        mutual = settings.tokens is None
        return server.add_secure_port(address, server_credentials(settings.tls, mutual=mutual))
    except RuntimeError as error:
        raise BadSettings(
            f"cannot listen on {address}; is the port in use? choose another --port"
        ) from error
