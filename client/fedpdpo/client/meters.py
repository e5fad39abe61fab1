"""What a client counts for Prometheus: durations, bytes, losses, accuracies, memory."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    Summary,
    start_http_server,
)

from fedpdpo.client.outcome import TrainingReport
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.metrics import Metrics


class Meters:
    """Prometheus metrics of one client; any thread may count."""

    def __init__(self) -> None:
        #: Told the numbers of each trained round and each measured adapter, with its number.
        self.log: Callable[[dict[str, float], int], None] = lambda _values, _step: None
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._spent = Summary(
            "fedpdpo_client_spent_seconds",
            "Time spent: running frozen layers, scoring by the reference, training, measuring, "
            "fetching, sending",
            ["doing"],
            registry=self.registry,
        )
        self.bytes = Counter(
            "fedpdpo_client_payload_bytes",
            "Bytes of adapters and deltas that were moved to their end",
            ["direction"],
            registry=self.registry,
        )
        self._round = self._gauge("round", "The round trained last")
        self._loss = self._gauge("loss", "Mean training loss of that round")
        self._seconds = self._gauge("round_seconds", "Duration of that round's training")
        self._accuracy = Gauge(
            "fedpdpo_client_accuracy",
            "Held-out preference accuracy on the adapter measured last",
            ["view", "kind"],
            registry=self.registry,
        )
        if torch.cuda.is_available():
            memory = self._gauge("gpu_memory_bytes", "Most GPU memory that tensors took")
            memory.set_function(torch.cuda.max_memory_allocated)

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"fedpdpo_client_{name}", what, registry=self.registry)

    def spent(self, doing: str) -> contextlib.AbstractContextManager[object]:
        """Count the time of a block by what is done in it."""
        return self._spent.labels(doing).time()

    def trained(self, number: int, report: TrainingReport) -> None:
        """Note a trained round."""
        self._round.set(number)
        self._loss.set(report.loss)
        self._seconds.set(report.seconds)
        told = {"loss": report.loss, "accuracy": report.accuracy, "seconds": report.seconds}
        self.log({f"training/{name}": value for name, value in told.items()}, number)

    def measured(self, version: int, views: dict[str, Metrics]) -> None:
        """Note what was measured on an adapter, by the wire's names of views."""
        told = {
            (view.removeprefix("VIEW_").lower(), name): value
            for view, metrics in views.items()
            for name, value in asdict(metrics).items()
        }
        for (view, name), value in told.items():
            kind, _, what = name.partition("_")
            if what == "accuracy":
                self._accuracy.labels(view, kind).set(value)
        self.log({f"{view}/{name}": value for (view, name), value in told.items()}, version)

    @contextlib.contextmanager
    def served(self, host: str, port: int | None) -> Iterator[None]:
        """Serve them at a port, if one is given. Raises BadSettings where it is taken."""
        if port is None:
            yield
            return
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise BadSettings(
                f"cannot listen on {host}:{port}; is the port in use? choose another --metrics-port"
            ) from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
