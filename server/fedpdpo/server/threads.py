"""Waiting for what may not be left half done."""

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


async def over(task: asyncio.Future[Any]) -> None:
    """Wait until a task is done, however often that is cancelled; then raise the cancellation."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread and wait for its end, even where that is cancelled meanwhile.

    Raises what the function raises, or the cancellation once the function is done.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        await over(task)
    except asyncio.CancelledError:
        task.exception()  # it is looked at, so that asyncio does not report it
        raise
    return task.result()
