"""A server under attack, and how an attacker speaks to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from admitted import Consortium
from fedpdpo.common.tls import Credentials
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from serving import Client

Answer = tuple[str, str]

#: How long a session holds on the server that takes tokens.
SESSION_S = 1.0


@dataclass
class Siege:
    """A server with honest clients, and eve, who holds a certificate of her own and has joined."""

    consortium: Consortium
    port: int
    channel: grpc.Channel
    eve: Client
    operator: OperatorServiceStub
    folder: Path
    token: str = ""

    @property
    def open_round(self) -> int:
        """The round that asks eve, as she is told."""
        while True:
            task = self.eve.task()
            match task.WhichOneof("task"):
                case "evaluate":
                    self.eve.report(task.evaluate.adapter_version)
                case "train":
                    return int(task.train.round)

    def raw(self, folder: Path) -> grpc.Channel:
        """A channel with whatever certificate lies in a folder."""
        key, certificate = (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
        trusted = Credentials.read(self.consortium.server, own=False).ca
        credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
        return grpc.secure_channel(f"localhost:{self.port}", credentials)

    def push(self, content: Mapping[str, Any] | bytes, **changed: Any) -> Answer:
        """Push a delta for the open round."""
        number = self.open_round
        return answer(lambda: self.eve.push(number, content, **changed))


def answer(call: Callable[[], Any]) -> Answer:
    """What the server says to a call."""
    try:
        call()
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code().name, error.details() or ""
    return "OK", ""


def ask(channel: grpc.Channel) -> Answer:
    """What the server says to one who asks for the run."""
    with channel:
        stub = FederationServiceStub(channel)
        return answer(lambda: stub.GetRun(pb.GetRunRequest(), timeout=10))
