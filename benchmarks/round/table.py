"""The results as tables on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from cases import FLOOR, OURS, SYSTEMS


def ratios_table(cases: Mapping[str, Any]) -> Table:
    """Every system of every case."""
    table = Table(title="a federated round without training", box=SIMPLE)
    table.add_column("clients x MiB", no_wrap=True)
    for column in ("s a round", "to ours", "to floor", "CPU s", "MiB moved", "server MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for title, case in cases.items():
        table.add_row(title, style="bold")
        medians = case["medians"]
        for system in SYSTEMS:
            if system not in medians:
                tried = any(run["system"] == system for run in case["runs"])
                table.add_row(f"  {system}", "did not end its rounds" if tried else "not run")
                continue
            found = medians[system]
            table.add_row(
                f"  {system}",
                f"{found['round_s']:.2f}",
                *(_times(found, medians.get(other)) for other in (OURS, FLOOR)),
                f"{found['cpu_s']:.2f}",
                f"{found['moved_mib']:.0f}",
                f"{found['server_peak_mib']:.0f}",
            )
    return table


def _times(found: Mapping[str, float], other: Mapping[str, float] | None) -> str:
    return f"{found['round_s'] / other['round_s']:.2f} x" if other else ""


def crowd_table(found: Mapping[str, Any]) -> Table:
    """The rounds of the crowd."""
    table = Table(title=f"{found['clients']} clients, {found['mib']} MiB each", box=SIMPLE)
    for column in ("round", "seconds", "served", "fairness (Jain)", "server MiB"):
        table.add_column(column, justify="right")
    for number, one in enumerate(found["rounds"], 1):
        table.add_row(
            str(number),
            f"{one['seconds']:.1f}",
            str(one["served"]),
            f"{one['jain']:.3f}",
            f"{found['server_peak_mib']:.0f}",
        )
    return table
