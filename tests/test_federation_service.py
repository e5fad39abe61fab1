"""The server over real gRPC: a run by hand, and what each bad input gets."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from safetensors.numpy import load, save

from fedpdpo.common.errors import BadSettings, StorageAway
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import CHUNK_BYTES
from fedpdpo.common.wire import layout_to_messages
from fedpdpo.server import Server, daemon
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import metrics_pb2, operator_pb2, payload_pb2, run_pb2
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from serving import LAYOUT, Client, connected, events, running, settings, tensors

DELTA = tensors(1.0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[Client, Client, OperatorServiceStub]]:
    """Two clients that joined and measured version 0, so that round 1 is open to both."""
    with running(settings(tmp_path)) as port, connected(port) as (stub, operator):
        ada, bea = Client(stub, "ada"), Client(stub, "bea")
        for client in (ada, bea):
            client.join()
            client.report(0)
        for client in (ada, bea):
            assert client.task().train.round == 1
        yield ada, bea, operator


def refused(code: grpc.StatusCode, words: str, call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


def test_a_run_from_joining_to_its_end(tmp_path: Path) -> None:
    with running(settings(tmp_path)) as port, connected(port) as (stub, operator):
        ada, bea = Client(stub, "ada"), Client(stub, "bea")
        run = ada.join().run
        assert [spec.name for spec in run.lora_layout] == [name for name, _ in LAYOUT.shapes]
        assert ada.task().evaluate.adapter_version == 0
        ada.report(0)
        assert "1 more client" in ada.task(wait_s=0).wait.reason
        bea.join()
        bea.report(0)
        for number in (1, 2):
            assert ada.task().train.round == bea.task().train.round == number
            ada.push(number, tensors(1.0), num_pairs=3)
            bea.push(number, tensors(5.0), num_pairs=1)
            for client in (ada, bea):
                assert client.task().evaluate.adapter_version == number
                header, *chunks = client.pull(number)
                content = b"".join(piece.chunk.data for piece in chunks)
                assert len(content) == header.header.num_bytes
                assert load(content)["m.0.q.lora_B.weight"][0, 0] == 2.0 * number
                client.report(number, 0.5 + number / 10)
        seen = operator.GetStatus(operator_pb2.GetStatusRequest())
        assert [row.adapter_version for row in seen.evaluations] == [0, 0, 1, 1, 2, 2]
        assert {row.client_id: row.bytes_sent > 0 for row in seen.clients} == {
            "ada": True,
            "bea": True,
        }
        assert ada.task().finish.adapter_version == 2
        assert "run_finished" in events(operator)
        ada.leave()
        ada.leave()
        bea.leave()


def test_the_server_ends_when_the_run_has_ended_and_all_have_left(tmp_path: Path) -> None:
    with (
        Server(settings(tmp_path, rounds=1, min_clients=1)) as server,
        connected(server.port) as (stub, operator),
    ):
        ada = Client(stub, "ada")
        ada.join()
        operator.StopRun(operator_pb2.StopRunRequest())
        assert ada.task().finish.stopped
        assert not server.wait(0.5)
        ada.leave()
        assert server.wait(60)


def test_the_same_delta_is_counted_once(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, operator = service
    assert not ada.push(1, DELTA).already_counted
    assert ada.push(1, DELTA).already_counted
    assert events(operator).count("delta_received") == 1


NAN, INFINITE = tensors(1.0), tensors(1.0)
NAN["m.0.q.lora_A.weight"][0, 0] = np.nan
INFINITE["m.0.q.lora_B.weight"][0, 0] = np.inf
FOREIGN = tensors(1.0) | {"head.weight": np.zeros((2, 2), np.float32)}
SHAPED = tensors(1.0) | {"m.0.q.lora_A.weight": np.zeros((3, 2), np.float32)}
HALF = {name: tensor.astype(np.float16) for name, tensor in DELTA.items()}
INVALID, CLOSED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("arguments", "changed", "code", "words"),
    [
        ((1, NAN), {}, INVALID, "lora_A.weight holds NaN or infinity"),
        ((1, INFINITE), {}, INVALID, "lora_B.weight holds NaN or infinity"),
        ((1, FOREIGN), {}, INVALID, "head.weight, which the run's LoRA lacks"),
        ((1, SHAPED), {}, INVALID, "lora_A.weight is F32 [3, 2], the run's is F32 [2, 3]"),
        ((1, HALF), {}, INVALID, "is F16"),
        ((1, b"x" * 64), {}, INVALID, "not a valid safetensors file"),
        ((1, DELTA), {"num_pairs": 0}, INVALID, "0 pairs"),
        ((1, DELTA), {"num_pairs": 10**12}, INVALID, "1000000000000 pairs"),
        ((1, DELTA), {"header": {"sha256": b"s" * 32}}, grpc.StatusCode.DATA_LOSS, "SHA-256"),
        ((1, DELTA), {"header": {"sha256": b"s"}}, INVALID, "digest of 1 bytes"),
        ((1, DELTA), {"header": {"num_bytes": 9}}, grpc.StatusCode.OUT_OF_RANGE, "9 bytes"),
        (
            (1, DELTA),
            {"header": {"num_bytes": 2**40}},
            grpc.StatusCode.OUT_OF_RANGE,
            "1099511627776 bytes, the run's adapter",
        ),
        (
            (1, DELTA),
            {"chunks": [payload_pb2.PayloadChunk(offset=8, data=b"12345678")]},
            INVALID,
            "begins at byte 8",
        ),
        (
            (1, DELTA),
            {"chunks": [payload_pb2.PayloadChunk(offset=0, data=bytes(CHUNK_BYTES + 1))]},
            INVALID,
            "1048577 bytes",
        ),
        ((1, save(DELTA)[:-1]), {}, INVALID, "not a valid safetensors file"),
        ((2, DELTA), {}, CLOSED, "round 2 is not open, round 1 is open"),
        ((0, DELTA), {}, CLOSED, "round 0 is not open"),
    ],
)
def test_a_wrong_delta_is_refused_and_an_honest_one_still_counts(
    service: tuple[Client, Client, OperatorServiceStub],
    tmp_path: Path,
    arguments: tuple[Any, ...],
    changed: dict[str, Any],
    code: grpc.StatusCode,
    words: str,
) -> None:
    ada, _, operator = service
    refused(code, words, lambda: ada.push(*arguments, **changed))
    assert "delta_received" not in events(operator)
    assert not list(tmp_path.rglob("*.part*"))
    assert not ada.push(1, DELTA).already_counted


def test_another_delta_for_the_same_round_and_one_for_a_closed_round_are_refused(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, bea, _ = service
    ada.push(1, DELTA)
    already = grpc.StatusCode.ALREADY_EXISTS
    refused(already, "another delta of ada for round 1", lambda: ada.push(1, tensors(2.0)))
    bea.push(1, DELTA)
    assert ada.task().evaluate.adapter_version == 1
    assert ada.push(1, DELTA).already_counted
    ada.report(1)
    assert ada.task().train.round == 2
    ada.name = "cyd"
    ada.join()
    refused(CLOSED, "round 1 is not open", lambda: ada.push(1, DELTA))
    refused(CLOSED, "round 2 did not ask cyd", lambda: ada.push(2, DELTA))


def test_a_delta_without_a_header_is_refused(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    stub = service[0].stub
    chunk = pb.PushDeltaRequest(chunk=payload_pb2.PayloadChunk(offset=0, data=b"x"))
    refused(INVALID, "begins with its header", lambda: list(stub.PushDelta(iter([chunk]))))
    refused(INVALID, "begins with its header", lambda: list(stub.PushDelta(iter([]))))


def test_a_delta_with_two_headers_and_one_with_too_few_bytes_are_refused(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, _ = service
    payload = payload_pb2.PayloadHeader(num_bytes=64, sha256=b"s" * 32)
    header = pb.DeltaHeader(
        run_id=ada.run_id, client_id="ada", round=1, num_pairs=1, payload=payload
    )
    twice = [pb.PushDeltaRequest(header=header)] * 2
    refused(INVALID, "has one header", lambda: list(ada.stub.PushDelta(iter(twice))))
    lost = grpc.StatusCode.DATA_LOSS
    refused(lost, "0 of the 64 bytes", lambda: list(ada.stub.PushDelta(iter(twice[:1]))))


def test_strangers_and_other_runs_are_refused(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, _ = service
    stranger = Client(ada.stub, "stranger")
    missing = grpc.StatusCode.NOT_FOUND
    for call in (stranger.task, lambda: stranger.push(1, DELTA), lambda: stranger.pull(0)):
        refused(missing, "stranger has not joined", call)
    refused(missing, "never joined", stranger.leave)
    refused(INVALID, "is no client id", lambda: ada.join(client_id="../etc"))
    refused(INVALID, "0 training pairs", lambda: ada.join(num_train_pairs=0))
    refused(CLOSED, "backbone has fingerprint", lambda: ada.join(backbone_fingerprint="e" * 64))
    refused(CLOSED, "tokenizer has finger", lambda: ada.join(tokenizer_fingerprint="e" * 64))
    other = layout_to_messages(LoraLayout((("m.0.k.lora_A.weight", (2, 3)),)))
    refused(CLOSED, "the LoRA layout differs", lambda: ada.join(lora_layout=other))
    refused(INVALID, "the LoRA layout is empty", lambda: ada.join(lora_layout=[]))
    ada.run_id = "f" * 32
    refused(CLOSED, "this server drives run", ada.join)
    refused(CLOSED, "this server drives run", ada.task)
    refused(CLOSED, "this server drives run", lambda: ada.push(1, DELTA))


def test_every_call_refuses_another_run_and_a_malformed_name(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, _ = service
    heart = ada.stub.Heartbeat

    def beat() -> None:
        heart(pb.HeartbeatRequest(run_id=ada.run_id, client_id=ada.name))

    def calls() -> list[Callable[[], object]]:
        return [
            ada.join, ada.task, ada.leave, beat,
            lambda: ada.pull(0), lambda: ada.push(1, DELTA), lambda: ada.report(0),
        ]  # fmt: skip

    ada.name = "../etc"
    for call in calls():
        refused(INVALID, "is no client id", call)
    ada.name, ada.run_id = "ada", "f" * 32
    for call in calls():
        refused(CLOSED, "this server drives run", call)


def test_a_malformed_join_is_told_from_one_that_differs(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, _ = service
    for changed in ({"backbone_fingerprint": "xyz"}, {"tokenizer_fingerprint": ""}):
        with pytest.raises(grpc.RpcError, match="is not 64 hex digits") as caught:
            ada.join(**changed)
        assert caught.value.code() is INVALID
    shape = [1] * 100_000
    long = [run_pb2.TensorSpec(name="m.0.q.lora_A.weight", shape=shape)]
    refused(INVALID, "the LoRA layout gives", lambda: ada.join(lora_layout=long))


def test_numbers_at_the_edge_of_the_wire_are_no_fault_of_the_server(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, operator = service
    after = operator_pb2.WatchEventsRequest(after=2**64 - 1)
    assert list(operator.WatchEvents(after)) == []
    ada.push(1, DELTA)
    for wait_s in (float("nan"), -1.0):
        assert ada.task(wait_s=wait_s).HasField("wait")
    ada.stub.Heartbeat(
        pb.HeartbeatRequest(run_id=ada.run_id, client_id="ada", progress=float("nan"))
    )
    assert operator.GetStatus(operator_pb2.GetStatusRequest()).clients[0].progress == 0.0


def test_wrong_evaluations_and_versions_are_refused(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, _ = service
    refused(INVALID, "combined_accuracy is 1.5", lambda: _report(ada, combined_accuracy=1.5))
    refused(INVALID, "loss is nan", lambda: _report(ada, loss=float("nan")))
    refused(INVALID, "comes twice", lambda: _report(ada, times=2))
    refused(INVALID, "margin is inf", lambda: _report(ada, margin=float("inf")))
    nothing = [metrics_pb2.Evaluation()]
    refused(INVALID, "view 0 is unknown", lambda: ada.report(0, evaluations=nothing))
    refused(INVALID, "0 views", lambda: ada.report(0, evaluations=[]))
    refused(INVALID, "on 0 pairs", lambda: ada.report(0, num_pairs=0))
    missing = grpc.StatusCode.NOT_FOUND
    refused(missing, "version 7 is not published", lambda: ada.report(7))
    refused(missing, "version 7 is not published", lambda: ada.pull(7))


def _report(client: Client, *, times: int = 1, **values: float) -> None:
    metrics = metrics_pb2.PreferenceMetrics(**values)
    one = metrics_pb2.Evaluation(view=metrics_pb2.VIEW_GLOBAL, metrics=metrics)
    client.report(0, evaluations=[one] * times)


def test_a_waiting_client_is_answered_when_something_happens(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, bea, _ = service
    ada.push(1, DELTA)
    answers: list[pb.GetAssignmentResponse] = []
    asking = threading.Thread(target=lambda: answers.append(ada.task(wait_s=30)))
    asking.start()
    bea.push(1, DELTA)
    asking.join(20)
    assert answers[0].evaluate.adapter_version == 1


def test_an_operator_pauses_resumes_watches_and_stops(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, bea, operator = service
    operator.PauseRun(operator_pb2.PauseRunRequest())
    assert operator.GetStatus(operator_pb2.GetStatusRequest()).paused
    ada.push(1, DELTA)
    bea.push(1, DELTA)
    assert ada.task().evaluate.adapter_version == 1
    ada.report(1)
    assert "paused" in ada.task(wait_s=0).wait.reason
    operator.ResumeRun(operator_pb2.ResumeRunRequest())
    assert ada.task().train.round == 2
    watched: list[str] = []
    request = operator_pb2.WatchEventsRequest(follow=True)

    def watch() -> None:
        watched.extend(event.kind for event in operator.WatchEvents(request, timeout=30))

    watching = threading.Thread(target=watch)
    watching.start()
    operator.StopRun(operator_pb2.StopRunRequest())
    watching.join(20)
    assert watched[0] == "run_fixed"
    assert watched[-1] == "run_stopped"
    assert {"run_paused", "run_resumed", "round_closed"} <= set(watched)
    refused(CLOSED, "has ended", lambda: operator.PauseRun(operator_pb2.PauseRunRequest()))


def test_heartbeats_are_shown_to_the_operator(
    service: tuple[Client, Client, OperatorServiceStub],
) -> None:
    ada, _, operator = service
    ada.stub.Heartbeat(
        pb.HeartbeatRequest(
            run_id=ada.run_id, client_id="ada", activity="training round 1" * 20, progress=7
        )
    )
    first = operator.GetStatus(operator_pb2.GetStatusRequest()).clients[0]
    assert first.activity == ("training round 1" * 20)[:100]
    assert first.progress == 1.0


def test_a_large_adapter_travels_in_chunks(tmp_path: Path) -> None:
    layout = LoraLayout((("m.0.q.lora_A.weight", (16, 60_000)),))
    with running(settings(tmp_path, min_clients=1)) as port, connected(port) as (stub, _):
        ada = Client(stub, "ada")
        ada.join(lora_layout=layout_to_messages(layout))
        ada.report(0)
        assert ada.task().train.round == 1
        delta = {"m.0.q.lora_A.weight": np.full((16, 60_000), 0.5, np.float32)}
        ada.push(1, delta)
        assert ada.task().evaluate.adapter_version == 1
        header, *chunks = ada.pull(1)
        assert len(chunks) >= 4
        assert all(0 < len(piece.chunk.data) <= CHUNK_BYTES for piece in chunks)
        before, after = (
            load(b"".join(piece.chunk.data for piece in pieces))["m.0.q.lora_A.weight"]
            for pieces in (ada.pull(0)[1:], chunks)
        )
        np.testing.assert_allclose(after - before, 0.5, rtol=1e-5)
        assert header.header.num_bytes == len(save(delta))


def test_a_server_on_the_same_state_directory_goes_on(tmp_path: Path) -> None:
    with running(settings(tmp_path)) as port, connected(port) as (stub, _):
        ada, bea = Client(stub, "ada"), Client(stub, "bea")
        for client in (ada, bea):
            client.join()
            client.report(0)
        assert ada.task().train.round == 1
        ada.push(1, tensors(1.0))
        run_id = ada.run_id
    with running(settings(tmp_path)) as port, connected(port) as (stub, _):
        ada, bea = Client(stub, "ada"), Client(stub, "bea")
        assert ada.run_id == run_id
        assert ada.push(1, tensors(1.0)).already_counted
        assert bea.task().train.round == 1
        bea.push(1, tensors(1.0))
        assert ada.task().evaluate.adapter_version == 1


def test_health_and_reflection_are_on(tmp_path: Path) -> None:
    names = {"fedpdpo.v1.FederationService", "fedpdpo.v1.OperatorService"}
    with (
        running(settings(tmp_path)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *names):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([ask]))
        listed = {service.name for service in answer.list_services_response.service}
        assert names <= listed


def test_a_port_in_use_is_a_wrong_setting(tmp_path: Path) -> None:
    first = settings(tmp_path / "one")
    with running(first) as port:
        second = settings(tmp_path / "two", port=port)
        taken = rf"cannot listen on 127\.0\.0\.1:{port}"
        with pytest.raises(BadSettings, match=taken), running(second):
            pass


def test_a_table_that_cannot_be_shown_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = threading.Event()

    def show() -> None:
        shown.set()
        raise StorageAway("the database does not answer")

    monkeypatch.setattr(daemon, "_shown", lambda _: contextlib.nullcontext(show))
    with running(settings(tmp_path)) as port, connected(port) as (stub, operator):
        assert shown.wait(10)
        ada = Client(stub, "ada")
        ada.join()
        assert "client_joined" in events(operator)
