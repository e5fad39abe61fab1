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
    how: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _STORE_BYTES,
                           "_node_ip_address": "127.0.0.1"}  # fmt: skip
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
    has = ray.cluster_resources()
    fit = int(has.get("CPU", 0) // workers.cpus)
    if workers.gpus:
        fit = min(fit, int(has.get("GPU", 0) / workers.gpus))
    if workers.memory_gib:
        fit = min(fit, int(has.get("memory", 0) // (workers.memory_gib * 2**30)))
    if fit < max(1, workers.count):
        raise BadSettings(
            f"{max(1, workers.count)} workers do not fit: there are {has.get('CPU', 0):g} CPUs, "
            f"{has.get('GPU', 0):g} GPUs and {has.get('memory', 0) / 2**30:.1f} GiB for them"
        )
    return min(workers.count or fit, num_clients)


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
