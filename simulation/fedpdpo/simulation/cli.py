"""The command `fedpdpo simulate`."""

from rich.console import Console

from fedpdpo.client.tool.command import Command
from fedpdpo.simulation.settings import SimulationSettings


def _simulate(settings: SimulationSettings, console: Console) -> None:
    from fedpdpo.simulation.engine import simulate

    rows = simulate(settings, console)
    if not rows:
        console.print("the run was stopped before any client had measured; there is no table")
        return
    name = rows[0]["client"]
    folder = settings.out / "clients" / name
    console.print(f"wrote {settings.out / 'accuracies.csv'}; a client's own model, for example:")
    console.print(f"  fedpdpo export --state-dir {folder / 'state'} --out {name}", soft_wrap=True)


COMMAND = Command(
    SimulationSettings, _simulate, "--data ./prefs.jsonl --clients 200 --server.rounds 5"
)
