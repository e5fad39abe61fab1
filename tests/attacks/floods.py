"""Too much, too slow, or only half."""

import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from safetensors.numpy import save

from attacks.siege import Answer, Siege, answer, ask
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import metrics_pb2, payload_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from serving import tensors


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
    """Joins by eight threads until one is refused, for a minute at most; gives the refusal."""
    until_s = time.monotonic() + 60
    with ThreadPoolExecutor(8) as pool:
        while time.monotonic() < until_s:
            for told in pool.map(lambda _: answer(siege.eve.join), range(200)):
                if told[0] != "OK":
                    return told
    return "OK", ""


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
