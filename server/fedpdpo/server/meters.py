"""What is counted as it happens and stands in no table: durations, refusals, calls, the queue."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

#: Seconds, from a tiny model on one machine to a day.
_SECONDS = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)


class Meters:
    """Prometheus metrics of one server; any thread may count."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.phases = Histogram(
            "fedpdpo_phase_seconds",
            "Duration of a phase of a round: training, from its opening to the last delta, and "
            "averaging",
            ["phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refused = Counter(
            "fedpdpo_refused",
            "Calls that were refused, by method and the error's name",
            ["method", "reason"],
            registry=self.registry,
        )
        self.left_out = Counter(
            "fedpdpo_deltas_left_out",
            "Deltas that came and were clipped to the norm's bound, or refused for it",
            ["as"],
            registry=self.registry,
        )
        self.transfers = Gauge(
            "fedpdpo_transfers",
            "Payloads that are under way, or wait for their turn",
            ["state"],
            registry=self.registry,
        )
