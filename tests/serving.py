"""A real server in this process on a free port, and a client's messages to it."""

import hashlib
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save

from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import CHUNK_BYTES
from fedpdpo.common.run import MethodSettings
from fedpdpo.common.wire import layout_to_messages
from fedpdpo.server import Server
from fedpdpo.server.settings import ServerSettings
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import metrics_pb2, operator_pb2, payload_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub

LAYOUT = LoraLayout((("m.0.q.lora_A.weight", (2, 3)), ("m.0.q.lora_B.weight", (4, 2))))
BACKBONE, TOKENIZER = "b" * 64, "c" * 64


def settings(folder: Path, **values: Any) -> ServerSettings:
    """Settings for two rounds of two clients on a free port."""
    basic: dict[str, Any] = {"port": 0, "state_dir": folder, "rounds": 2, "model": "tiny"}
    return ServerSettings(**(basic | {"method": MethodSettings()} | values))


@contextmanager
def running(wanted: ServerSettings) -> Iterator[int]:
    """Serve in a thread; gives the port. An error of the server is raised here."""
    with Server(wanted) as server:
        yield server.port


@contextmanager
def small_disk(folder: Path, size: str = "64k") -> Iterator[Path]:
    """A real file system of a few pages at `folder`; skips the test where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def connected(port: int) -> Iterator[tuple[FederationServiceStub, OperatorServiceStub]]:
    """Stubs of both services."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield FederationServiceStub(channel), OperatorServiceStub(channel)


def tensors(value: float, layout: LoraLayout = LAYOUT) -> dict[str, NDArray[np.float32]]:
    """All tensors of a layout, filled with one value."""
    return {name: np.full(shape, value, np.float32) for name, shape in layout.shapes}


class Client:
    """What one client says, message by message."""

    def __init__(self, port_stub: FederationServiceStub, name: str) -> None:
        self.stub = port_stub
        self.name = name
        self.run_id = port_stub.GetRun(pb.GetRunRequest()).run.run_id

    def join(self, **changed: Any) -> pb.JoinResponse:
        """Join, with some fields changed."""
        fields: dict[str, Any] = {
            "run_id": self.run_id,
            "client_id": self.name,
            "backbone_fingerprint": BACKBONE,
            "tokenizer_fingerprint": TOKENIZER,
            "lora_layout": layout_to_messages(LAYOUT),
            "num_train_pairs": 10,
            "num_eval_pairs": 4,
        }
        return self.stub.Join(pb.JoinRequest(**(fields | changed)))

    def task(self, *, wait_s: float = 10.0) -> pb.GetAssignmentResponse:
        """Ask for the present task."""
        request = pb.GetAssignmentRequest(run_id=self.run_id, client_id=self.name, wait_s=wait_s)
        return self.stub.GetAssignment(request, timeout=30)

    def report(self, version: int, accuracy: float = 0.5, **changed: Any) -> None:
        """Report both views."""
        metrics = metrics_pb2.PreferenceMetrics(
            implicit_accuracy=accuracy,
            explicit_accuracy=accuracy,
            combined_accuracy=accuracy,
            margin=0.1,
            loss=0.6,
        )
        views = (metrics_pb2.VIEW_GLOBAL, metrics_pb2.VIEW_PERSONALIZED)
        fields: dict[str, Any] = {
            "run_id": self.run_id,
            "client_id": self.name,
            "adapter_version": version,
            "num_pairs": 4,
            "evaluations": [metrics_pb2.Evaluation(view=v, metrics=metrics) for v in views],
        }
        self.stub.ReportEvaluation(pb.ReportEvaluationRequest(**(fields | changed)))

    def push(
        self,
        round_number: int,
        content: Mapping[str, NDArray[Any]] | bytes,
        *,
        num_pairs: int = 10,
        header: Mapping[str, Any] | None = None,
        chunks: list[payload_pb2.PayloadChunk] | None = None,
    ) -> pb.DeltaCounted:
        """Push a delta; `header` and `chunks` replace what an honest client would send."""
        payload = content if isinstance(content, bytes) else save(dict(content))
        told: dict[str, Any] = {
            "num_bytes": len(payload),
            "sha256": hashlib.sha256(payload).digest(),
        }
        first = pb.DeltaHeader(
            run_id=self.run_id,
            client_id=self.name,
            round=round_number,
            num_pairs=num_pairs,
            report=metrics_pb2.TrainingReport(loss=0.5, accuracy=0.5, num_steps=1, seconds=1),
            payload=payload_pb2.PayloadHeader(**(told | dict(header or {}))),
        )
        pieces = chunks or [
            payload_pb2.PayloadChunk(offset=at, data=payload[at : at + CHUNK_BYTES])
            for at in range(0, len(payload), CHUNK_BYTES)
        ]

        def messages() -> Iterator[pb.PushDeltaRequest]:
            yield pb.PushDeltaRequest(header=first)
            for piece in pieces:
                yield pb.PushDeltaRequest(chunk=piece)

        *_, last = self.stub.PushDelta(messages(), timeout=30)
        return last.counted

    def pull(
        self, version: int, held: payload_pb2.PayloadHeld | None = None
    ) -> list[pb.PullAdapterResponse]:
        """All messages of an adapter."""
        request = pb.PullAdapterRequest(
            run_id=self.run_id, client_id=self.name, adapter_version=version, held=held
        )
        return list(self.stub.PullAdapter(request, timeout=30))

    def leave(self) -> None:
        """Leave."""
        self.stub.Leave(pb.LeaveRequest(run_id=self.run_id, client_id=self.name))


def events(operator: OperatorServiceStub) -> list[str]:
    """The kinds of all events so far."""
    request = operator_pb2.WatchEventsRequest()
    return [event.kind for event in operator.WatchEvents(request, timeout=10)]


def take_part(stub: FederationServiceStub, name: str, *, accuracy: float = 0.5) -> None:
    """Be a client until the run has ended; each version measured is a little better."""
    client = Client(stub, name)
    client.join()
    while True:
        task = client.task(wait_s=1.0)
        match task.WhichOneof("task"):
            case "train":
                client.push(task.train.round, tensors(0.01))
            case "evaluate":
                version = task.evaluate.adapter_version
                client.report(version, min(1.0, accuracy + 0.05 * version))
            case "finish":
                client.leave()
                return
