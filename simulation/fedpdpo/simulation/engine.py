"""Places a simulation's clients on Ray's workers, beside the server, and follows the run."""

import csv
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from fedpdpo.client.data.preferences import Preference
from fedpdpo.common.errors import BadState, FedPDPOError
from fedpdpo.common.files import whole_file, whole_folder
from fedpdpo.common.log import start_logging
from fedpdpo.server import Server
from fedpdpo.simulation import cluster
from fedpdpo.simulation.hosting import DATA, Host
from fedpdpo.simulation.partition import Share, divided, read_keyed
from fedpdpo.simulation.settings import PATIENT, SimulationSettings, Workers
from fedpdpo.v1 import operator_pb2

Rows = list[dict[str, Any]]
Clients = Mapping[str, Share]

_ENDED = (operator_pb2.PHASE_FINISHED, operator_pb2.PHASE_STOPPED)

_LOOK_S = 0.5


def simulate(settings: SimulationSettings, console: Console) -> Rows:
    """Run the simulation to its end, or go on with it; gives what clients measured.

    Rows are those of `Server.accuracies`. Raises BadData, BadSettings, BadState and what server and
    clients raise.
    """
    start_logging(settings.log_level, form=settings.log_format)
    out = settings.out
    clients = divided(
        read_keyed(settings.data, settings.partition),
        settings.partition,
        num_clients=settings.clients,
        seed=settings.partition_seed,
    )
    _bind(settings, clients)
    told = [{"client": name, "pairs": len(share.pairs), "key": share.key, "opposed": share.opposed}
            for name, share in clients.items()]  # fmt: skip
    _write_table(out / "clients.csv", told)
    with cluster.connected(settings.workers) as ray, _server(settings, ray, len(clients)) as server:
        there = _awaited(server, clients)
        if there:
            _work(settings, ray, server, there, console)
        rows = server.accuracies()
    if rows:
        _write_table(out / "accuracies.csv", rows)
    return rows


def _awaited(server: Server, clients: Clients) -> Clients:
    """The clients that the run needs: when it has ended, those that have not left it."""
    found = server.status()
    if found.phase not in _ENDED:
        return clients
    return {one.client_id: clients[one.client_id] for one in found.clients if not one.left}


def _work(
    settings: SimulationSettings, ray: Any, server: Server, clients: Clients, console: Console
) -> None:
    """Place the clients on workers, and follow them until the run has ended."""
    if ray.cluster_resources().get("GPU") and not settings.workers.gpus:
        console.print("there are GPUs, which --workers.gpus 1 (or a fraction) would use")
    num = cluster.num_workers(settings.workers, ray, len(clients))
    hosts = cluster.shared_out({name: len(one.pairs) for name, one in clients.items()}, num)
    console.print(f"{len(clients)} clients in {len(hosts)} workers, "
                  f"{server.settings.rounds} rounds; {settings.out}", soft_wrap=True)  # fmt: skip
    host = ray.remote(_Host).options(**cluster.resources(settings.workers))
    alone = cluster.is_alone(ray)
    address = server.address if alone else f"{cluster.own_address(ray)}:{server.port}"
    given = settings.client.model_dump(exclude_unset=True)
    actors = [host.remote(settings.workers, given) for _ in hosts]
    how = {"log_level": settings.log_level, "log_format": settings.log_format,
           "insecure": not alone}  # fmt: skip
    working = []
    for actor, names in zip(actors, hosts, strict=True):
        own = {name: clients[name].pairs for name in names}
        working.append(actor.work.remote(address, settings.out.absolute(), own, **how))
    _follow(ray, working, server, console, num_clients=len(clients))
    server.wait()


def _write_table(path: Path, rows: Rows) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


class _Host:
    """A Ray actor: a host, and the data of its clients on the machine where it is."""

    def __init__(self, workers: Workers, settings: dict[str, Any]) -> None:
        self._host = Host(
            threads=workers.cpus, live_clients=workers.live_clients, settings=settings
        )

    def work(
        self, server: str, out: Path, clients: Mapping[str, Sequence[Preference]], **how: Any
    ) -> None:
        os.umask(0o077)
        folders = [write_data(out, name, pairs) for name, pairs in clients.items()]
        self._host.work(server, folders, **how)


def write_data(out: Path, name: str, pairs: Sequence[Preference]) -> Path:
    """A client's folder with its pairs, as fedpdpo-client takes them; gives the folder."""
    folder = out / "clients" / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DATA).exists():
        lines = "".join(json.dumps(pair.record, ensure_ascii=False) + "\n" for pair in pairs)
        with whole_file(folder / DATA) as partial:
            partial.write_text(lines, encoding="utf-8")
    return folder


def _bind(settings: SimulationSettings, clients: Clients) -> None:
    """Begin the folder, or find that it is this simulation's. Raises BadState."""
    digest = hashlib.sha256()
    for name, share in clients.items():
        digest.update(f"{name} {' '.join(pair.digest for pair in share.pairs)}\n".encode())
    parts = {"partition", "partition_seed", "server", "client"}
    told = settings.model_dump(mode="json", include=parts) | {"clients": digest.hexdigest()}
    note = settings.out / "simulation.json"
    if not settings.out.exists():
        with whole_folder(settings.out) as folder:
            (folder / note.name).write_text(json.dumps(told, indent=2), encoding="utf-8")
    elif not note.exists():
        raise BadState(f"{settings.out} is there and no simulation's; choose another --out")
    elif _read(note) != told:
        raise BadState(
            f"{settings.out} holds a simulation of other data or settings (simulation.json); "
            "choose another --out"
        )


def _read(note: Path) -> object:
    """A note's content; None where it is damaged, which is no simulation's."""
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _server(settings: SimulationSettings, ray: Any, num_clients: int) -> Server:
    reach = {} if cluster.is_alone(ray) else {"host": "0.0.0.0", "insecure": True}  # noqa: S104
    given = settings.server.model_dump(exclude_unset=True)
    state = {"state_dir": settings.out / "server", "min_clients": num_clients}
    return Server(**(given | PATIENT | reach | state))


def _follow(
    ray: Any, working: list[Any], server: Server, console: Console, *, num_clients: int
) -> None:
    """Print a line for each adapter that all have measured, until the workers are done.

    Looking takes the longer, the more was measured; a tenth of the time goes into it at most.
    """
    begun, shown, took_s = time.monotonic(), -1, 0.0
    while working:
        done, working = ray.wait(working, timeout=max(_LOOK_S, 10 * took_s))
        try:
            ray.get(done)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, FedPDPOError) else error
            raise cause from None
        except ray.exceptions.RayActorError as error:
            raise FedPDPOError(f"a worker died {cluster.RESTARTS + 1} times: {error}") from error
        server.wait(0.0)
        looked_at = time.monotonic()
        newest, measured = server.status().adapter_version, server.accuracies()
        took_s = time.monotonic() - looked_at
        for version in range(shown + 1, newest + 1):
            rows = [row for row in measured
                    if row["adapter"] == version and row["view"] == "personalized"]  # fmt: skip
            if len(rows) == num_clients:
                shares = [100 * row["combined_accuracy"] for row in rows]
                console.print(
                    f"adapter {version} of {server.settings.rounds}: {fmean(shares):.1f} % of "
                    f"held-out pairs ranked right (worst client {min(shares):.1f}, best "
                    f"{max(shares):.1f}), {time.monotonic() - begun:.0f} s",
                    soft_wrap=True,
                )
                shown = version
