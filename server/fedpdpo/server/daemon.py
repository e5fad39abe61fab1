"""The server process: opens the port, drives the run, shows it, ends with it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from rich.live import Live

from fedpdpo.common.errors import BadSettings, StorageFull
from fedpdpo.common.files import held
from fedpdpo.common.log import console, fields
from fedpdpo.common.table import status_table
from fedpdpo.server.changes import Changes
from fedpdpo.server.federation import Federation
from fedpdpo.server.federation_service import FederationService
from fedpdpo.server.interceptor import StatusInterceptor
from fedpdpo.server.operator_service import OperatorService
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.status import status
from fedpdpo.server.steps import step
from fedpdpo.server.store import Store
from fedpdpo.v1 import federation_pb2, operator_pb2
from fedpdpo.v1.federation_pb2_grpc import add_FederationServiceServicer_to_server
from fedpdpo.v1.operator_pb2_grpc import add_OperatorServiceServicer_to_server

log = logging.getLogger(__name__)

_TICK_S = 1.0
_GRACE_S = 2.0
_SERVICES = (
    federation_pb2.DESCRIPTOR.services_by_name["FederationService"].full_name,
    operator_pb2.DESCRIPTOR.services_by_name["OperatorService"].full_name,
)


async def serve(
    settings: ServerSettings,
    *,
    stopping: asyncio.Event,
    started: Callable[[int], None] = lambda _: None,
) -> None:
    """Serve the run of a state directory until it has ended and no client is there any more.

    Setting `stopping` ends it at once; the run goes on at the next start.

    `started` is told the port once clients can connect.

    Raises BadSettings for a port that is taken, BadState and Mismatch as `open_run` and `Store` do.
    """
    with held(settings.state_dir), contextlib.closing(Store(settings.state_dir)) as store:
        changes, turns = Changes(), Changes()
        federation = Federation(
            store,
            settings,
            clock=time.time,
            ticks=time.monotonic,
            notify=changes.ring,
            turned=turns.ring,
        )
        server, healthy, port = await _listening(
            FederationService(federation, turns), OperatorService(federation, changes), settings
        )
        await server.start()
        started(port)
        log.info(
            fields("serving", address=f"{settings.host}:{port}", run=federation.run.run_id,
                   model=settings.model, state_dir=settings.state_dir)
        )  # fmt: skip
        try:
            with _shown(federation) as show:
                await _drive(federation, changes, stopping, show)
        finally:
            await healthy.enter_graceful_shutdown()
            await server.stop(_GRACE_S)
            log.info(fields("server_stopped", state_dir=settings.state_dir))


async def _listening(
    for_clients: FederationService, for_operators: OperatorService, settings: ServerSettings
) -> tuple[grpc.aio.Server, health.aio.HealthServicer, int]:
    server = grpc.aio.server(
        interceptors=[StatusInterceptor()],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
    )
    add_FederationServiceServicer_to_server(for_clients, server)
    add_OperatorServiceServicer_to_server(for_operators, server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection(
        [*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    for name in ("", *_SERVICES):
        await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
    address = f"{settings.host}:{settings.port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise BadSettings(
            f"cannot listen on {address}; is the port in use? choose another --port"
        ) from error
    if settings.host not in ("127.0.0.1", "localhost", "::1"):
        log.warning(fields("unencrypted", address=address, advice="use only on a trusted network"))
    return server, healthy, port


async def _drive(
    federation: Federation, changes: Changes, stopping: asyncio.Event, show: Callable[[], None]
) -> None:
    while not stopping.is_set():
        change = changes.next
        try:
            while await asyncio.to_thread(step, federation):
                pass
        except StorageFull as error:
            log.warning(fields("waiting_for_space", reason=str(error)))
        await asyncio.to_thread(show)
        if federation.stage.ended and not federation.active():
            return
        waits = [asyncio.create_task(change.wait()), asyncio.create_task(stopping.wait())]
        await asyncio.wait(waits, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()


@contextlib.contextmanager
def _shown(federation: Federation) -> Iterator[Callable[[], None]]:
    """Show the status as a live table on a terminal, and not at all elsewhere: the log tells."""
    if not console.is_terminal:
        yield lambda: None
        return
    with Live(status_table(status(federation)), console=console, refresh_per_second=4) as live:
        yield lambda: live.update(status_table(status(federation)))
