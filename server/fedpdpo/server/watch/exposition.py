"""Metrics for Prometheus: what the meters counted, and the run as it stands."""

import shutil
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from fedpdpo.server.federation import Federation
from fedpdpo.server.rounds import Phase
from fedpdpo.server.watch.overview import Observer, Overview

_STATES = ("here", "answered", "away", "left")


def exposition(federation: Federation, observer: Observer) -> tuple[bytes, str]:
    """The text that Prometheus reads, and its content type."""
    now = CollectorRegistry()
    free = shutil.disk_usage(federation.store.folder).free
    now.register(_Now(observer.overview(), free))
    return generate_latest(federation.meters.registry) + generate_latest(now), CONTENT_TYPE_LATEST


class _Now(Collector):
    """What the overview says, as metrics."""

    def __init__(self, seen: Overview, free: int) -> None:
        self._seen = seen
        self._free = free

    def collect(self) -> Iterator[Metric]:
        """Each metric once."""
        seen = self._seen
        told = {"run": seen.run_id, "model": seen.model, "software": seen.software}
        yield InfoMetricFamily("fedpdpo_run", "The run that is served", told)
        phase = GaugeMetricFamily("fedpdpo_phase", "1 for the phase of the run", labels=["phase"])
        for one in Phase:
            phase.add_metric([one.lower()], float(one.lower() == seen.phase))
        yield phase
        for name, what, value in (
            ("paused", "1 while the operator has paused the run", seen.paused),
            ("round", "The open round; 0: none", seen.round_number),
            ("rounds", "Rounds of the run", seen.num_rounds),
            ("adapter_version", "The newest published adapter", seen.version),
            ("adapter_bytes", "Size of the newest adapter", seen.adapter_bytes),
            ("state_free_bytes", "Room on the disk of the state directory", self._free),
        ):
            yield GaugeMetricFamily(f"fedpdpo_{name}", what, float(value))
        yield from self._clients()
        yield from self._accuracies()

    def _clients(self) -> Iterator[Metric]:
        clients = GaugeMetricFamily("fedpdpo_clients", "Clients by state", labels=["state"])
        states = [client.state for client in self._seen.clients]
        for state in _STATES:
            clients.add_metric([state], states.count(state))
        yield clients
        stuck = sum(bool(client.remarks) for client in self._seen.clients)
        yield GaugeMetricFamily("fedpdpo_clients_remarked", "Clients with a remark", stuck)
        moved = CounterMetricFamily(
            "fedpdpo_payload_bytes", "Bytes of adapters and deltas", labels=["direction"]
        )
        moved.add_metric(["sent"], sum(client.bytes_sent for client in self._seen.clients))
        moved.add_metric(["received"], sum(client.bytes_received for client in self._seen.clients))
        yield moved

    def _accuracies(self) -> Iterator[Metric]:
        shares = GaugeMetricFamily(
            "fedpdpo_accuracy",
            "Held-out preference accuracy on the adapter measured last, over clients",
            labels=["view", "kind", "over"],
        )
        for measured in self._seen.measured[-1:]:
            for view, kinds in measured.views.items():
                for kind, spread in kinds.items():
                    for over in ("mean", "worst", "best"):
                        shares.add_metric([view, kind, over], getattr(spread, over))
        yield shares
