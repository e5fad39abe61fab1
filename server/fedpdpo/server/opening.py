"""Opens the run that the settings tell, wherever its rows and files lie."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    stop_when_event_set,
    wait_fixed,
)

from fedpdpo.common.errors import BadSettings, StorageAway
from fedpdpo.common.log import fields
from fedpdpo.server.changes import Changes
from fedpdpo.server.federation import Federation
from fedpdpo.server.settings import ServerSettings
from fedpdpo.server.store import Store

log = logging.getLogger(__name__)

#: How long storage is waited for that is away, or that another server holds, and how often asked.
_PATIENCE_S = 60.0
_TICK_S = 1.0


@contextmanager
def folder_of(settings: ServerSettings) -> Iterator[Path]:
    """The folder that a server works in: its state directory, or that of copies."""
    if isinstance(settings.state_dir, Path):
        yield settings.state_dir
    elif settings.cache_dir is not None:
        yield settings.cache_dir
    else:
        with tempfile.TemporaryDirectory(prefix="fedpdpo-server-") as folder:
            yield Path(folder)


async def opened(
    settings: ServerSettings,
    folder: Path,
    *,
    changes: Changes,
    turns: Changes,
    stopping: asyncio.Event,
) -> Federation:
    """The run, once its database and files answer and no other server holds it.

    Raises StorageAway where that takes longer than a minute, or once `stopping` is set;
    BadSettings for URLs that cannot be used; what Store and Federation raise.
    """
    trying = AsyncRetrying(
        retry=retry_if_exception_type(StorageAway),
        wait=wait_fixed(_TICK_S),
        stop=stop_after_delay(_PATIENCE_S) | stop_when_event_set(stopping),  # type: ignore[arg-type]
        before_sleep=_tell,
        reraise=True,
    )

    def federation() -> Federation:
        store = _store(settings, folder)
        try:
            return Federation(store, settings, clock=time.time, ticks=time.monotonic,
                              notify=changes.ring, turned=turns.ring)  # fmt: skip
        except BaseException:
            store.close()
            raise

    return await trying(asyncio.to_thread, federation)


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(fields("waiting_for_storage", reason=str(error)))


def _store(settings: ServerSettings, folder: Path) -> Store:
    database = settings.database.get_secret_value()
    if isinstance(settings.state_dir, Path):
        return Store(folder, database=database)
    if not database:
        raise BadSettings(
            f"--state-dir {settings.state_dir.scheme}://… needs --database "
            "postgresql://USER@HOST/NAME: SQLite needs a folder"
        )
    return Store(folder, elsewhere=str(settings.state_dir), database=database)
