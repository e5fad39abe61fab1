"""What a hostile caller may try against a server: one function a case.

Each is given the `Siege` and gives what the server answered: a gRPC status and its words.
"""

import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import zstandard
from safetensors.numpy import save

from admitted import Consortium
from fedpdpo.client.tool.authority import SERVER, Authority
from fedpdpo.common.tls import Credentials
from fedpdpo.common.tokens import new_token
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import metrics_pb2, operator_pb2, payload_pb2, run_pb2, session_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from fedpdpo.v1.session_pb2_grpc import SessionServiceStub
from serving import Client, tensors

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


# --- who ----------------------------------------------------------------------------------------


def no_certificate(siege: Siege) -> Answer:
    return ask(siege.consortium.stranger(siege.port))


def no_tls(siege: Siege) -> Answer:
    return ask(grpc.insecure_channel(f"localhost:{siege.port}"))


def self_signed(siege: Siege) -> Answer:
    folder = siege.folder / "self"
    Authority.begin(folder)
    for name, becomes in (("ca.key", "tls.key"), ("ca.crt", "tls.crt")):
        (folder / name).rename(folder / becomes)
    return ask(siege.raw(folder))


def foreign(siege: Siege) -> Answer:
    return ask(siege.raw(Authority.begin(siege.folder / "other").issue("client", "ada", days=1)))


def expired(siege: Siege) -> Answer:
    return ask(siege.raw(siege.consortium.authority.issue("client", "old", days=-1 / 1440)))


def revoked(siege: Siege) -> Answer:
    folder = siege.consortium.authority.issue("client", "mallory", days=1)
    siege.consortium.authority.revoke("client", "mallory")
    return ask(siege.raw(folder))


def certificate_of_the_server(siege: Siege) -> Answer:
    folder = siege.folder / "stolen"
    shutil.copytree(siege.consortium.authority.folder / SERVER / "server", folder)
    return ask(siege.raw(folder))


def push_as_another(siege: Siege) -> Answer:
    number = siege.open_round
    ada = Client(siege.eve.stub, "ada")
    return answer(lambda: ada.push(number, tensors(1.0)))


def leave_as_another(siege: Siege) -> Answer:
    return answer(Client(siege.eve.stub, "ada").leave)


def stop_the_run(siege: Siege) -> Answer:
    operator = OperatorServiceStub(siege.channel)
    return answer(lambda: operator.StopRun(operator_pb2.StopRunRequest(), timeout=10))


def path_as_a_name(siege: Siege) -> Answer:
    return answer(lambda: Client(siege.eve.stub, "../../server").join())


def connections_while_the_certificate_changes(siege: Siege) -> Answer:
    """Ten callers connect again and again while the server's certificate is replaced."""
    folder = siege.consortium.authority.folder / "client" / "eve"
    until_s = time.monotonic() + 4

    def connect(_: int) -> Answer:
        told = ("OK", "")
        while time.monotonic() < until_s and told[0] != "UNAVAILABLE":
            told = ask(siege.raw(folder))
        return told

    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(connect, range(10))
        while time.monotonic() < until_s - 1:
            siege.consortium.authority.issue(SERVER, "server", days=1, hosts=["localhost"])
            time.sleep(0.2)
        return max(answers, key=lambda told: told[0] == "UNAVAILABLE")


# --- by token -----------------------------------------------------------------------------------


def _session(siege: Siege, channel: grpc.Channel) -> str:
    request = session_pb2.OpenSessionRequest(token=siege.token)
    return SessionServiceStub(channel).OpenSession(request, timeout=10).session


def _ask_with(channel: grpc.Channel, session: str) -> Answer:
    signed = (("authorization", f"Bearer {session}"),)
    stub = FederationServiceStub(channel)
    return answer(lambda: stub.GetRun(pb.GetRunRequest(), metadata=signed, timeout=10))


def stolen_session(siege: Siege) -> Answer:
    """A session that holds, used from another connection."""
    with (
        siege.consortium.stranger(siege.port) as mine,
        siege.consortium.stranger(siege.port) as other,
    ):
        session = _session(siege, mine)
        assert _ask_with(mine, session) == ("OK", "")
        return _ask_with(other, session)


def replayed_session(siege: Siege) -> Answer:
    """A session that has ended, used again from its own connection."""
    with siege.consortium.stranger(siege.port) as channel:
        session = _session(siege, channel)
        assert _ask_with(channel, session) == ("OK", "")
        time.sleep(SESSION_S + 0.2)
        return _ask_with(channel, session)


def token_as_a_session(siege: Siege) -> Answer:
    with siege.consortium.stranger(siege.port) as channel:
        return _ask_with(channel, siege.token)


def guessed_tokens(siege: Siege) -> Answer:
    """As many guesses as the socket takes for three seconds; gives the last answer."""
    told: Answer = ("OK", "")
    until_s = time.monotonic() + 3
    with siege.consortium.stranger(siege.port) as channel:
        stub = SessionServiceStub(channel)
        while time.monotonic() < until_s:
            request = session_pb2.OpenSessionRequest(token=new_token())
            told = answer(lambda: stub.OpenSession(request, timeout=10))  # noqa: B023
    return told


def token_of_3_mib(siege: Siege) -> Answer:
    with siege.consortium.stranger(siege.port) as channel:
        request = session_pb2.OpenSessionRequest(token="a" * (3 * 2**20))
        return answer(lambda: SessionServiceStub(channel).OpenSession(request, timeout=10))


# --- what ---------------------------------------------------------------------------------------


def wrong_name(siege: Siege) -> Answer:
    return siege.push({name.upper(): tensor for name, tensor in tensors(1.0).items()})


def wrong_shape(siege: Siege) -> Answer:
    return siege.push({name: tensor.T.copy() for name, tensor in tensors(1.0).items()})


def wrong_dtype(siege: Siege) -> Answer:
    return siege.push({name: tensor.view(np.int32) for name, tensor in tensors(1.0).items()})


def nan(siege: Siege) -> Answer:
    return siege.push(tensors(np.nan))


def infinity(siege: Siege) -> Answer:
    return siege.push(tensors(np.inf))


def many_pairs(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), num_pairs=2**62)


def huge_size(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), header={"num_bytes": 2**63})


def size_too_small(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), header={"num_bytes": 16})


def wrong_digest(siege: Siege) -> Answer:
    return siege.push(tensors(1.0), header={"sha256": b"\0" * 32})


def header_of_100_mib(siege: Siege) -> Answer:
    return siege.push(struct.pack("<Q", 100 * 2**20) + b"{" * 200)


def header_that_lies(siege: Siege) -> Answer:
    content = bytearray(save(tensors(1.0)))
    content[:8] = struct.pack("<Q", int.from_bytes(content[:8], "little") - 8)
    return siege.push(bytes(content))


def _with_offsets(change: Callable[[list[int]], list[int]]) -> bytes:
    content = save(tensors(1.0))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    last = max((name for name in header if name != "__metadata__"),
               key=lambda name: header[name]["data_offsets"][0])  # fmt: skip
    header[last]["data_offsets"] = change(header[last]["data_offsets"])
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + content[8 + length :]


def overlapping_offsets(siege: Siege) -> Answer:
    return siege.push(_with_offsets(lambda at: [at[0] - 8, at[1] - 8]))


def negative_offsets(siege: Siege) -> Answer:
    return siege.push(_with_offsets(lambda at: [at[0] - at[1], 0]))


def deep_json(siege: Siege) -> Answer:
    return siege.push(struct.pack("<Q", 500) + b"[" * 500)


def zstd_bomb(siege: Siege) -> Answer:
    payload = save(tensors(1.0))
    bomb = zstandard.compress(b"\0" * 2**26)
    chunk = payload_pb2.PayloadChunk(offset=0, data=bomb, zstd=True)
    return siege.push(payload, chunks=[chunk])


def gap_between_chunks(siege: Siege) -> Answer:
    payload = save(tensors(1.0))
    return siege.push(payload, chunks=[payload_pb2.PayloadChunk(offset=9, data=payload[9:])])


def message_of_8_mib(siege: Siege) -> Answer:
    chunk = payload_pb2.PayloadChunk(offset=0, data=b"\0" * 2**23)
    return siege.push(save(tensors(1.0)), chunks=[chunk])


def layout_of_60_000_tensors(siege: Siege) -> Answer:
    names = [f"m.{number:06d}.lora_A.weight" for number in range(60_000)]
    layout = [run_pb2.TensorSpec(name=name, shape=(1, 1)) for name in names]
    return answer(lambda: siege.eve.join(lora_layout=layout))


def huge_norm(siege: Siege) -> Answer:
    """It is taken, and scaled down when the round is averaged; gives the event that says so."""
    code, words = siege.push(tensors(1e30))
    request = operator_pb2.WatchEventsRequest(follow=True)
    for event in siege.operator.WatchEvents(request, timeout=30):
        if event.kind == "delta_clipped":
            return code, f"{event.kind} {event.message}"
    return code, words


# --- how much -----------------------------------------------------------------------------------


def one_byte_a_second(siege: Siege) -> Answer:
    payload = save(tensors(1.0))
    number = siege.open_round

    def drip() -> Iterator[pb.PushDeltaRequest]:
        told = payload_pb2.PayloadHeader(
            num_bytes=len(payload), sha256=hashlib.sha256(payload).digest()
        )
        header = pb.DeltaHeader(
            run_id=siege.eve.run_id, client_id="eve", round=number, num_pairs=10, payload=told,
            report=metrics_pb2.TrainingReport(loss=0.5),
        )  # fmt: skip
        yield pb.PushDeltaRequest(header=header)
        for at in range(len(payload)):
            time.sleep(1.0)
            piece = payload_pb2.PayloadChunk(offset=at, data=payload[at : at + 1])
            yield pb.PushDeltaRequest(chunk=piece)

    return answer(lambda: list(siege.eve.stub.PushDelta(drip(), timeout=60)))


def half_open_streams(siege: Siege) -> Answer:
    """500 streams without a header, over 10 connections; gives what the last one is told."""
    certificate = siege.consortium.authority.folder / "client" / "eve"
    channels = [siege.raw(certificate) for _ in range(10)]

    def half(number: int) -> Answer:
        def silence() -> Iterator[pb.PushDeltaRequest]:
            time.sleep(8)
            yield from ()

        stub = FederationServiceStub(channels[number % 10])
        return answer(lambda: list(stub.PushDelta(silence(), timeout=60)))

    with ThreadPoolExecutor(500) as pool:
        answers = list(pool.map(half, range(500)))
    for channel in channels:
        channel.close()
    return answers[-1]


def half_open_connections(siege: Siege) -> Answer:
    """500 connections that never speak TLS, held while an honest caller is served."""
    held = [socket.create_connection(("localhost", siege.port)) for _ in range(500)]
    try:
        time.sleep(2)
        return ask(siege.raw(siege.consortium.authority.folder / "client" / "eve"))
    finally:
        for one in held:
            one.close()


def flood_of_joins(siege: Siege) -> Answer:
    """As many joins as the socket takes for three seconds; gives the last refusal."""
    refused: Answer = ("OK", "")
    until_s = time.monotonic() + 3
    while time.monotonic() < until_s:
        told = answer(siege.eve.join)
        refused = told if told[0] != "OK" else refused
    return refused


def metadata_of_1_mib(siege: Siege) -> Answer:
    metadata = (("x-large", "a" * 2**20),)
    stub = FederationServiceStub(siege.channel)
    return answer(lambda: stub.GetRun(pb.GetRunRequest(), metadata=metadata, timeout=10))


def garbage_after_the_handshake(siege: Siege) -> Answer:
    """Bytes that are no HTTP/2, inside TLS; gives whether the server closed the connection."""
    folder = siege.consortium.authority.folder / "client" / "eve"
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("localhost", siege.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        contextlib.suppress(ConnectionError, ssl.SSLError),
    ):
        wrapped.settimeout(10)
        wrapped.sendall(np.random.default_rng(0).bytes(2**16))
        while wrapped.recv(2**16):
            pass
    return "CLOSED", "the server closed the connection"


@dataclass(frozen=True)
class Case:
    """An attack, and what the server has to answer: one of some statuses, with some words."""

    attack: Callable[[Siege], Answer]
    codes: tuple[str, ...]
    words: str = ""
    by_token: bool = False

    @property
    def name(self) -> str:
        return self.attack.__name__.replace("_", " ")


OUTSIDE, WRONG = ("UNAVAILABLE",), ("INVALID_ARGUMENT",)

CASES = [
    Case(no_certificate, OUTSIDE),
    Case(no_tls, OUTSIDE),
    Case(self_signed, OUTSIDE),
    Case(foreign, OUTSIDE),
    Case(expired, OUTSIDE),
    Case(certificate_of_the_server, OUTSIDE),
    Case(revoked, ("UNAUTHENTICATED",), "is revoked"),
    Case(push_as_another, ("PERMISSION_DENIED",), "cannot speak for client ada"),
    Case(leave_as_another, ("PERMISSION_DENIED",), "cannot speak for client ada"),
    Case(stop_the_run, ("PERMISSION_DENIED",), "StopRun is not for client eve"),
    Case(path_as_a_name, WRONG, "client id"),
    Case(wrong_name, WRONG, "which the run's LoRA lacks"),
    Case(wrong_shape, WRONG, "the run's is F32"),
    Case(wrong_dtype, WRONG, "the run's is F32"),
    Case(nan, WRONG, "NaN or infinity"),
    Case(infinity, WRONG, "NaN or infinity"),
    Case(many_pairs, WRONG, "this run takes 1 to"),
    Case(huge_size, ("OUT_OF_RANGE",), "the run's adapter"),
    Case(size_too_small, ("OUT_OF_RANGE", *WRONG)),
    Case(wrong_digest, ("DATA_LOSS",), "SHA-256"),
    Case(header_of_100_mib, WRONG, "a header of 104857600 bytes"),
    Case(header_that_lies, WRONG, "not a valid safetensors file"),
    Case(overlapping_offsets, WRONG, "overlaps another tensor or leaves a gap"),
    Case(negative_offsets, WRONG, "malformed shape or place"),
    Case(deep_json, WRONG, "not a valid safetensors file"),
    Case(zstd_bomb, WRONG, "a zstd frame tells"),
    Case(gap_between_chunks, WRONG, "a chunk begins at byte 9"),
    Case(message_of_8_mib, ("RESOURCE_EXHAUSTED",), "larger than max"),
    Case(layout_of_60_000_tensors, ("FAILED_PRECONDITION", "RESOURCE_EXHAUSTED")),
    Case(huge_norm, ("OK",), "delta_clipped"),
    Case(one_byte_a_second, ("DEADLINE_EXCEEDED",), "are too few"),
    Case(half_open_streams, ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")),
    Case(half_open_connections, ("OK",)),
    Case(flood_of_joins, ("RESOURCE_EXHAUSTED",), "calls too often"),
    Case(metadata_of_1_mib, ("RESOURCE_EXHAUSTED",)),
    Case(garbage_after_the_handshake, ("CLOSED",)),
    Case(connections_while_the_certificate_changes, ("OK", "RESOURCE_EXHAUSTED")),
    Case(stolen_session, ("UNAUTHENTICATED",), "another connection", by_token=True),
    Case(replayed_session, ("UNAUTHENTICATED",), "has ended", by_token=True),
    Case(token_as_a_session, ("UNAUTHENTICATED",), "has ended", by_token=True),
    Case(token_of_3_mib, ("UNAUTHENTICATED",), "too long", by_token=True),
    Case(guessed_tokens, ("RESOURCE_EXHAUSTED",), "calls too often", by_token=True),
]
