"""Runs a console script that kills itself with SIGKILL once, at a named point.

    python faulty.py POINT MARKER SCRIPT ARGUMENTS...

MARKER is a file that is made when the point is reached, so that the next start lives on. The point
`clock+SECONDS` or `clock-SECONDS` kills nothing: the clock jumps so far at the first delta.
"""

import functools
import importlib
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

#: A point's name to the function that is killed before or after it runs.
SERVER_POINTS = {
    "after-join": ("after", "fedpdpo.server.membership:join"),
    "after-commit-of-an-evaluation": ("after", "fedpdpo.server.intake:Intake.evaluation"),
    "before-open": ("before", "fedpdpo.server.steps:_open_or_end"),
    "after-open": ("after", "fedpdpo.server.steps:_open_or_end"),
    "before-receive": ("before", "fedpdpo.common.payload:Receiver.write"),
    "after-receive": ("after", "fedpdpo.common.payload:Receiver.finish"),
    "before-keep": ("before", "fedpdpo.common.payload:Receiver.keep"),
    "after-keep": ("after", "fedpdpo.common.payload:Receiver.keep"),
    "after-commit-of-a-delta": ("after", "fedpdpo.server.intake:Intake.accept"),
    "before-close": ("before", "fedpdpo.server.steps:_close"),
    "before-add": ("before", "fedpdpo.server.steps:_average"),
    "before-decode": ("before", "fedpdpo.server.averaging:decoder"),
    "after-decode": ("after", "fedpdpo.server.averaging:decoder"),
    "before-publish": ("before", "fedpdpo.server.steps:write_adapter"),
    "after-publish": ("after", "fedpdpo.server.steps:write_adapter"),
    "after-commit-of-an-adapter": ("after", "fedpdpo.server.steps:_average"),
}
CLIENT_POINTS = {
    "before-pull": ("before", "fedpdpo.client.link:Link.pull"),
    "after-pull": ("after", "fedpdpo.client.link:Link.pull"),
    "before-report": ("before", "fedpdpo.client.link:Link.report"),
    "after-report": ("after", "fedpdpo.client.link:Link.report"),
    "before-train": ("before", "fedpdpo.client.trainer:Trainer.train"),
    "after-train": ("after", "fedpdpo.client.trainer:Trainer.train"),
    "before-save": ("before", "fedpdpo.client.state:ClientState.save_round"),
    "after-save": ("after", "fedpdpo.client.state:ClientState.save_round"),
    "before-push": ("before", "fedpdpo.client.link:Link.push"),
    "amid-push": ("after", "fedpdpo.client.transfer:pack"),
    "after-push": ("after", "fedpdpo.client.link:Link.push"),
    "before-asking": ("before", "fedpdpo.client.link:Link.assignment"),
    "before-leave": ("before", "fedpdpo.client.link:Link.leave"),
}


def deadly(function: Callable[..., Any], when: str, marker: Path) -> Callable[..., Any]:
    """The same function, which kills the process before or after its first run."""

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die(marker)
        found = function(*arguments, **named)
        if when == "after":
            die(marker)
        return found

    return run


def die(marker: Path) -> None:
    """Kill this process, unless it was killed here before."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, marker: Path) -> None:
    """Put a deadly function into the place of the point's."""
    when, where = (SERVER_POINTS | CLIENT_POINTS)[point]
    module_name, _, path = where.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, deadly(getattr(owner, name), when, marker))


def jump(seconds: float, marker: Path) -> None:
    """Let the time of day jump amid round 1, at its first delta; what runs steadily runs on."""
    from fedpdpo.server.intake import Intake

    true, accept = time.time, Intake.accept

    def accepted(*given: Any) -> Any:
        marker.touch()
        return accept(*given)

    cast(Any, Intake).accept = accepted
    time.time = lambda: true() + (seconds if marker.exists() else 0.0)


if __name__ == "__main__":
    _, wanted_point, marker_path, script, *rest = sys.argv
    if wanted_point.startswith("clock"):
        jump(float(wanted_point.removeprefix("clock")), Path(marker_path))
    else:
        arm(wanted_point, Path(marker_path))
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")
