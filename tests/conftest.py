"""Worlds for tests of the domain; shows at the end what came of each fault and attack."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from rich.console import Console
from rich.table import Table

from storage import database, object_store  # noqa: F401 - fixtures
from world import NewWorld, World

FAULTS = pytest.StashKey[list[dict[str, Any]]]()
ATTACKS = pytest.StashKey[list[dict[str, Any]]]()

# The same inputs in every run, so that a build fails for its change and not for its luck or haste.
# `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for title, key in (("faults", FAULTS), ("attacks", ATTACKS)):
        told = config.stash.get(key, [])
        if not told:
            continue
        table = Table(title=title)
        for column in told[0]:
            table.add_column(column.replace("_", " "))
        for found in told:
            table.add_row(*(str(value) for value in found.values()))
        Console(file=terminalreporter._tw._file, width=140).print(table)


@pytest.fixture
def new_world(tmp_path: Path) -> Iterator[NewWorld]:
    """Makes a federation with these settings in the test's folder."""
    made: list[World] = []

    def make(**values: Any) -> World:
        made.append(World(tmp_path, **values))
        return made[-1]

    yield make
    for world in made:
        world.store.close()


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger; what `start_logging` changes in the test is undone after it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield logging.getLogger("fedpdpo.test")
    root.handlers, root.level = before, level


@pytest.fixture
def world(new_world: NewWorld) -> World:
    """A federation with the settings of most tests."""
    return new_world()
