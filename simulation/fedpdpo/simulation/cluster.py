"""Ray: where a simulation's workers are, how many fit, which clients each one gets."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fedpdpo.common.errors import BadSettings
from fedpdpo.simulation.settings import Workers

#: How often Ray starts a worker again that died.
RESTARTS = 3

_CONNECT_S = 10.0

#: Of Ray's shared memory, which carries the clients' pairs alone.
_STORE_BYTES = 2**27


@contextmanager
def connected(workers: Workers) -> Iterator[Any]:
    """The module ray, connected to a cluster or to a Ray of its own. Raises BadSettings."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise BadSettings(
            "ray is not installed; install this package with its extra [simulate]"
        ) from error
    how: dict[str, Any] = {
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        if workers.address is not None:
            how = {"address": _reached(workers.address)}
        ray.init(logging_level="ERROR", **how)
    except (OSError, ValueError) as error:
        raise BadSettings(f"no Ray cluster at {workers.address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reached(address: str) -> str:
    """The address, which Ray would try for minutes. Raises OSError where nobody listens there."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=_CONNECT_S).close()
    return address


def is_alone(ray: Any) -> bool:
    """Whether all of Ray is on this machine."""
    places = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    return places <= {own_address(ray), "127.0.0.1"}


def own_address(ray: Any) -> str:
    """By which other nodes reach this one."""
    return str(ray.util.get_node_ip_address())


def num_workers(workers: Workers, ray: Any, num_clients: int) -> int:
    """As many as were asked for, or as fit. Raises BadSettings where none fits."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = sum(_fit_on(node, workers) for node in nodes)
    if fit < max(1, workers.count):
        has = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
        raise BadSettings(
            f"{max(1, workers.count)} workers do not fit: there are {has['CPU']:g} CPUs, "
            f"{has['GPU']:g} GPUs and {has['memory'] / 2**30:.1f} GiB for them; nodes: "
            f"{len(nodes)}, with room for {fit}"
        )
    return min(workers.count or fit, num_clients)


def _fit_on(node: Mapping[str, float], workers: Workers) -> int:
    """How many workers a node has room for; one that takes a part of a GPU stays on that GPU."""
    fit = node.get("CPU", 0) // workers.cpus
    if workers.gpus:
        gpus = node.get("GPU", 0)
        shared = gpus * int(1 / workers.gpus + 1e-9)
        fit = min(fit, shared if workers.gpus < 1 else gpus // workers.gpus)
    if workers.memory_gib:
        fit = min(fit, node.get("memory", 0) // (workers.memory_gib * 2**30))
    return int(fit)


def resources(workers: Workers) -> dict[str, Any]:
    """What Ray is asked for, for a worker."""
    memory = int(workers.memory_gib * 2**30)
    return {"num_cpus": workers.cpus, "num_gpus": workers.gpus, "memory": memory or None,
            "max_restarts": RESTARTS, "max_task_retries": RESTARTS}  # fmt: skip


def shared_out(clients: Mapping[str, int], num: int) -> list[list[str]]:
    """Clients for each worker, about as many pairs each: the largest first, to who has least."""
    shares: list[list[str]] = [[] for _ in range(num)]
    pairs = [0] * num
    for name in sorted(clients, key=lambda name: -clients[name]):
        least = pairs.index(min(pairs))
        shares[least].append(name)
        pairs[least] += clients[name]
    return shares
