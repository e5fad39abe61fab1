"""One server and a thousand clients: whether all are served, and how evenly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import OURS, Case
from programs import programs
from systems import Ours

PROCESSES = 4
ROUNDS = 2
PATIENCE_S = 1200.0


def crowd(folder: Path, *, clients: int, mib: int = 1) -> dict[str, Any]:
    """Run a federation of clients that share a few processes, each with a channel of its own.

    `jain` is Jain's fairness index of the seconds from a round's opening to each client's counted
    delta: 1 where all take the same time, 1/n where one takes all of it. `refusals` counts answers
    that told a client to ask again later.
    """
    case = Case(clients, mib)
    with programs(folder, {}) as started:
        system = Ours(case, ROUNDS, started)
        system.start_server()
        each = -(-clients // PROCESSES)
        holders = [
            system.start_clients(first, min(first + each, clients))
            for first in range(0, clients, each)
        ]
        looks = started.watch(
            lambda: all(holder.process.poll() == 0 for holder in holders),
            system.servers,
            patience_s=PATIENCE_S,
        )
        said = "".join(holder.output for holder in holders)
        opened, ended = system.opened(), system.ends()
    counted: list[list[float]] = [[] for _ in range(ROUNDS)]
    for line in said.splitlines():
        for one in line.split()[1:] if line.startswith("client") else ():
            number, _, at_s = one.partition(":")
            counted[int(number) - 1].append(float(at_s))
    rounds = [
        {
            "seconds": ended[number] - opened[number],
            "served": len(times),
            "jain": jain([at_s - opened[number] for at_s in times]),
        }
        for number, times in enumerate(counted)
    ]
    return {
        "system": OURS,
        "clients": clients,
        "mib": mib,
        "rounds": rounds,
        "refusals": said.count("waiting_for_server"),
        "server_peak_mib": system.servers[0].peak_mib,
        "seconds": looks[-1].at_s - looks[0].at_s,
    }


def jain(times: Sequence[float]) -> float:
    """Jain's fairness index, (sum x)^2 / (n sum x^2); 0 of nobody."""
    if not times:
        return 0.0
    return sum(times) ** 2 / (len(times) * sum(time * time for time in times))
