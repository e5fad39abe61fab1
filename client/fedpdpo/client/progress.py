"""Progress of long work: a bar on a terminal, a log line elsewhere, and what heartbeats say."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedpdpo.client.heart import Heart
from fedpdpo.common.log import console, fields

log = logging.getLogger(__name__)


@contextmanager
def working(activity: str, *, total: int, heart: Heart) -> Iterator[Callable[[int], None]]:
    """Show an activity on `total` pairs; gives the function that counts pairs done."""
    begun = time.perf_counter()
    done = 0
    with (
        heart.doing(activity),
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        ) as bar,
    ):
        row = bar.add_task(activity, total=total)

        def advance(pairs: int) -> None:
            nonlocal done
            done += pairs
            heart.progress = min(1.0, done / max(1, total))
            bar.advance(row, pairs)

        yield advance
    log.info(fields("done", activity=activity, pairs=done, seconds=time.perf_counter() - begun))
