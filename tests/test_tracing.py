"""Spans across a client and a server, as an OpenTelemetry SDK gets them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fedpdpo.client.channel import AccessSettings, open_channel
from fedpdpo.common.tracing import carried, span
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from serving import Client, running, settings, tensors


@pytest.fixture(scope="module")
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    yield exporter
    provider.shutdown()


def test_what_the_server_does_for_a_client_lies_below_what_the_client_does(
    tmp_path: Path, spans: InMemorySpanExporter
) -> None:
    wanted = settings(tmp_path, min_clients=1, rounds=1)
    with running(wanted) as port, open_channel(f"127.0.0.1:{port}", AccessSettings()) as channel:
        client = Client(FederationServiceStub(channel), "ada")
        client.join()
        client.task()
        client.report(0)
        client.task()
        with span("sending", round=1) as sending, pytest.raises(Exception, match="NaN"):
            client.push(1, tensors(float("nan")))
        client.push(1, tensors(0.1))
        client.task()
        client.report(1)
        client.task()
        client.leave()
    found = {one.name: one for one in spans.get_finished_spans()}
    assert {"Join", "ReportEvaluation", "PushDelta", "averaging", "Leave"} <= found.keys()
    assert not {"GetAssignment", "Heartbeat"} & found.keys()
    assert found["averaging"].attributes == {"fedpdpo.round": 1, "fedpdpo.deltas": 1}
    refused, counted = (one for one in spans.get_finished_spans() if one.name == "PushDelta")
    assert refused.parent is not None
    assert refused.parent.span_id == sending.get_span_context().span_id
    assert refused.context.trace_id == sending.get_span_context().trace_id
    assert refused.events[0].name == "exception"
    assert counted.parent is None
    assert not counted.events


def test_a_call_outside_of_any_span_carries_nothing() -> None:
    assert carried() == []
