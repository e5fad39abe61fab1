"""The server process: opens the port, drives the run, shows it, ends with it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.live import Live

from fedpdpo.common.errors import HeldElsewhere, StorageAway, StorageFull
from fedpdpo.common.files import held
from fedpdpo.common.log import console, fields
from fedpdpo.common.table import status_table
from fedpdpo.server.changes import Changes
from fedpdpo.server.endpoint import Endpoint
from fedpdpo.server.federation import Federation
from fedpdpo.server.onlookers import Onlookers
from fedpdpo.server.opening import folder_of, opened
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.status import status
from fedpdpo.server.steps import step
from fedpdpo.server.watch.site import Site

log = logging.getLogger(__name__)

_TICK_S = 1.0

#: A server that another one has taken the run from ends after so long, so that clients find that.
_OUSTED_S = 60.0

Attend = Callable[[int, Federation], contextlib.AbstractContextManager[None]]


async def serve(
    settings: ServerSettings,
    *,
    stopping: asyncio.Event,
    attend: Attend = lambda _port, _federation: contextlib.nullcontext(),
) -> None:
    """Serve the run of a state directory until it has ended, and clients and onlookers know it.

    With `settings.stay` it is served on. Setting `stopping` ends that at once; the run goes on at
    the next start.

    `attend` is told the port and the federation; its block begins when clients can connect and ends
    while the federation can still be read.

    Raises BadSettings for a port that is taken, and BadState, Mismatch and StorageAway as
    `Federation` and `Store` do; HeldElsewhere where another server has gone on with the run for a
    minute.
    """
    changes, turns = Changes(), Changes()
    with folder_of(settings) as folder, held(folder):
        async with contextlib.AsyncExitStack() as closing:
            try:
                federation = await opened(
                    settings, folder, changes=changes, turns=turns, stopping=stopping
                )
            except StorageAway:
                if stopping.is_set():
                    return
                raise
            closing.callback(federation.store.close)
            closing.callback(
                lambda: log.info(fields("server_stopped", state_dir=federation.store.place))
            )
            onlookers = Onlookers(time.monotonic)
            endpoint = await Endpoint.open(
                settings, federation, changes=changes, turns=turns, onlookers=onlookers
            )
            closing.push_async_callback(endpoint.close)
            if settings.dashboard_port is not None:
                site = await Site.open(settings, federation, changes)
                closing.push_async_callback(site.close)
            closing.enter_context(attend(endpoint.port, federation))
            log.info(
                fields("serving", address=f"{settings.host}:{endpoint.port}",
                       run=federation.run.run_id, model=settings.model,
                       state_dir=federation.store.place)
            )  # fmt: skip
            if federation.stage.ended:
                hint = "another --state-dir begins a new run"
                log.warning(fields("run_ended", run=federation.run.run_id, hint=hint))
            show = closing.enter_context(_shown(federation))
            await _drive(federation, changes, stopping, onlookers, show)


async def _drive(
    federation: Federation,
    changes: Changes,
    stopping: asyncio.Event,
    onlookers: Onlookers,
    show: Callable[[], None],
) -> None:
    alone_at_s = time.monotonic()
    while not stopping.is_set():
        change, ousted = changes.next, False
        try:
            while await asyncio.to_thread(step, federation):
                pass
            await asyncio.to_thread(show)
        except StorageFull as error:
            log.warning(fields("waiting_for_space", reason=str(error)))
        except StorageAway as error:
            log.warning(fields("waiting_for_storage", reason=str(error)))
            ousted = isinstance(error, HeldElsewhere)
            if ousted and time.monotonic() - alone_at_s > _OUSTED_S:
                raise
        if not ousted:
            alone_at_s = time.monotonic()
        if not federation.settings.stay and await _is_over(federation, onlookers):
            return
        waits = [asyncio.create_task(change.wait()), asyncio.create_task(stopping.wait())]
        await asyncio.wait(waits, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()


async def _is_over(federation: Federation, onlookers: Onlookers) -> bool:
    """Whether the run has ended, and clients and onlookers know it."""
    if not federation.stage.ended or onlookers.awaited:
        return False
    return not await asyncio.to_thread(federation.active)


@contextlib.contextmanager
def _shown(federation: Federation) -> Iterator[Callable[[], None]]:
    """Show the status as a live table on a terminal, and not at all elsewhere: the log tells."""
    if not console.is_terminal:
        yield lambda: None
        return
    with Live(status_table(status(federation)), console=console, refresh_per_second=4) as live:
        yield lambda: live.update(status_table(status(federation)))
