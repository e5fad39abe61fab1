"""Shows at the end what came of each fault that was tried."""

from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

FAULTS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    told = config.stash.get(FAULTS, [])
    if not told:
        return
    table = Table(title="faults")
    for column in told[0]:
        table.add_column(column.replace("_", " "))
    for found in told:
        table.add_row(*(str(value) for value in found.values()))
    Console(file=terminalreporter._tw._file, width=120).print(table)
