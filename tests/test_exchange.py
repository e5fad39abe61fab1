"""Payloads between a real server and real streams: cut off, gone on with, stalled, waiting."""

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import grpc
import numpy as np
import pytest
import zstandard
from safetensors.numpy import load, save

from fedpdpo.common import payload
from fedpdpo.common.encoding import Encoding
from fedpdpo.common.frames import Chunk
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import CHUNK_BYTES, Receiver
from fedpdpo.common.statuses import again_in_s
from fedpdpo.common.wire import layout_to_messages
from fedpdpo.server import exchange, intake
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import payload_pb2
from processes import until
from serving import Client, connected, events, running, settings

NAME = "m.0.q.lora_A.weight"
LAYOUT = LoraLayout(((NAME, (64, 2**14)),))
DELTA = save({NAME: np.random.default_rng(0).normal(size=(64, 2**14)).astype(np.float32)})


class Stream:
    """A push whose messages are sent one by one."""

    def __init__(self, client: Client) -> None:
        self._messages: queue.SimpleQueue[pb.PushDeltaRequest | None] = queue.SimpleQueue()
        digest = hashlib.sha256(DELTA).digest()
        header = pb.DeltaHeader(
            run_id=client.run_id,
            client_id=client.name,
            round=1,
            num_pairs=3,
            payload=payload_pb2.PayloadHeader(num_bytes=len(DELTA), sha256=digest),
        )
        self._messages.put(pb.PushDeltaRequest(header=header))
        self.call = client.stub.PushDelta(self._sent(), timeout=60)

    def _sent(self) -> Iterator[pb.PushDeltaRequest]:
        while (message := self._messages.get()) is not None:
            yield message

    def held(self) -> int:
        return int(next(self.call).held.num_bytes)

    def send(self, begin: int, end: int) -> None:
        for at in range(begin, end, CHUNK_BYTES):
            data = DELTA[at : min(end, at + CHUNK_BYTES)]
            chunk = payload_pb2.PayloadChunk(offset=at, data=data)
            self._messages.put(pb.PushDeltaRequest(chunk=chunk))

    def end(self) -> pb.DeltaCounted:
        self._messages.put(None)
        *_, last = self.call
        return last.counted

    def break_off(self) -> None:
        self.call.cancel()
        self._messages.put(None)


def joined(client: Client) -> Client:
    client.join(lora_layout=layout_to_messages(LAYOUT))
    client.report(0)
    return client


def test_a_delta_goes_on_where_it_was_cut_off_even_by_the_servers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "SYNC_BYTES", CHUNK_BYTES)
    cuts = [0, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5, len(DELTA)]
    ending = settings(tmp_path, min_clients=1)
    with running(ending) as port, connected(port) as (stub, _):
        ada = joined(Client(stub, "ada"))
        assert ada.task().train.round == 1
        stream = Stream(ada)
        assert stream.held() == 0
        stream.send(cuts[0], cuts[1])
        assert [stream.held(), stream.held()] == [CHUNK_BYTES, cuts[1]]
        stream.break_off()
        stream = Stream(ada)
        assert stream.held() == cuts[1]
        stream.send(cuts[1], cuts[2])
        assert stream.held() == 3 * CHUNK_BYTES
        until(lambda: part_bytes(tmp_path) >= 3 * CHUNK_BYTES, "the bytes on disk")
    with running(ending) as port, connected(port) as (stub, operator):
        ada = Client(stub, "ada")
        stream = Stream(ada)
        begin = stream.held()
        assert 3 * CHUNK_BYTES <= begin <= cuts[2]
        stream.send(begin, cuts[3])
        assert not stream.end().already_counted
        assert Stream(ada).end().already_counted
        assert ada.task().evaluate.adapter_version == 1
        assert events(operator).count("delta_received") == 1
    assert not list(tmp_path.rglob("*.part"))


def part_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.part"))


def test_a_second_stream_of_a_client_takes_the_delta_over(tmp_path: Path) -> None:
    with running(settings(tmp_path, min_clients=1)) as port, connected(port) as (stub, operator):
        ada = joined(Client(stub, "ada"))
        assert ada.task().train.round == 1
        first = Stream(ada)
        assert first.held() == 0
        first.send(0, 2 * CHUNK_BYTES)
        until(lambda: part_bytes(tmp_path) > 0, "the first bytes")
        second = Stream(ada)
        second.send(begin := second.held(), len(DELTA))
        assert begin <= 2 * CHUNK_BYTES
        assert not second.end().already_counted
        with pytest.raises(grpc.RpcError) as found:
            list(first.call)
        assert found.value.code() is grpc.StatusCode.ABORTED
        assert events(operator).count("delta_received") == 1


@pytest.mark.parametrize("how", ["cut off", "taken over"])
def test_a_stream_waits_for_the_one_before_it_to_leave_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """However often the one before is cancelled while its write waits for the disk."""
    let_go, writing = threading.Event(), threading.Event()
    monkeypatch.setattr(exchange, "_written", held_once(exchange._written, writing, let_go))
    with running(settings(tmp_path, min_clients=1)) as port, connected(port) as (stub, _):
        ada = joined(Client(stub, "ada"))
        assert ada.task().train.round == 1
        first = Stream(ada)
        assert first.held() == 0
        first.send(0, CHUNK_BYTES)
        assert writing.wait(10)
        between = first if how == "cut off" else Stream(ada)
        time.sleep(0.3)  # the server has to hear of it
        between.break_off()
        time.sleep(0.3)
        last = Stream(ada)
        time.sleep(0.3)
        let_go.set()
        begin = last.held()
        assert begin in (0, CHUNK_BYTES)
        last.send(begin, len(DELTA))
        assert not last.end().already_counted
        (kept,) = tmp_path.rglob("ada.safetensors")
        assert kept.read_bytes() == DELTA
        first.break_off()


def held_once(
    write: Callable[[Receiver, Chunk], bool], writing: threading.Event, let_go: threading.Event
) -> Callable[[Receiver, Chunk], bool]:
    """The first write stands still in the file's lock until it is let go."""

    def held(receiver: Receiver, chunk: Chunk) -> bool:
        if not writing.is_set():
            with receiver._lock:
                writing.set()
                let_go.wait(20)
        return write(receiver, chunk)

    return held


def test_a_stream_on_which_nothing_moves_is_given_up(tmp_path: Path) -> None:
    wanted = settings(tmp_path, min_clients=1, stall_timeout_s=0.3)
    with running(wanted) as port, connected(port) as (stub, _):
        ada = joined(Client(stub, "ada"))
        assert ada.task().train.round == 1
        stream = Stream(ada)
        assert stream.held() == 0
        with pytest.raises(grpc.RpcError) as found:
            next(stream.call)
        assert found.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert found.value.details() == "nothing moved for 0.3 s; go on from there"


def test_who_finds_no_turn_is_told_when_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_PATIENCE_S", 0.2)
    wanted = settings(tmp_path, min_clients=2, max_transfers=1)
    with running(wanted) as port, connected(port) as (stub, _):
        ada, bea = (joined(Client(stub, name)) for name in ("ada", "bea"))
        for client in (ada, bea):
            assert client.task().train.round == 1
        first = Stream(ada)
        assert first.held() == 0
        with pytest.raises(grpc.RpcError) as found:
            next(Stream(bea).call)
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert again_in_s(found.value) == 2.0
        first.send(0, len(DELTA))
        first.end()
        second = Stream(bea)
        second.send(second.held(), len(DELTA))
        assert not second.end().already_counted


def test_an_adapter_is_sent_from_where_the_clients_copy_ends(tmp_path: Path) -> None:
    with running(settings(tmp_path)) as port, connected(port) as (stub, _):
        ada = joined(Client(stub, "ada"))
        header, *chunks = ada.pull(0)
        whole = b"".join(part.chunk.data for part in chunks)
        digest = header.header.sha256
        assert hashlib.sha256(whole).digest() == digest
        for num_bytes, sha256, begin in (
            (CHUNK_BYTES + 3, digest, CHUNK_BYTES + 3),
            (len(whole), digest, len(whole)),
            (len(whole) + 1, digest, 0),
            (100, b"x" * 32, 0),
        ):
            held = payload_pb2.PayloadHeld(num_bytes=num_bytes, sha256=sha256)
            _, *parts = ada.pull(0, held)
            assert b"".join(part.chunk.data for part in parts) == whole[begin:]
            assert not parts or parts[0].chunk.offset == begin


@pytest.mark.parametrize(
    ("known", "expected"), [(["int8"], "int8"), (["bfloat16"], "float32"), ([], "float32")]
)
def test_the_encoding_is_the_wanted_one_where_the_client_knows_it(
    tmp_path: Path, known: list[str], expected: str
) -> None:
    wanted = settings(tmp_path, min_clients=1, encoding="int8", zstd=True)
    with running(wanted) as port, connected(port) as (stub, _):
        ada = Client(stub, "ada")
        agreed = ada.join(lora_layout=layout_to_messages(LAYOUT), encodings=known, zstd=True).format
        assert (agreed.encoding, agreed.zstd) == (expected, True)
        again = ada.join(lora_layout=layout_to_messages(LAYOUT), encodings=list(Encoding)).format
        assert again == agreed


def test_encoded_deltas_in_zstd_are_averaged_as_what_they_stand_for(tmp_path: Path) -> None:
    wanted = settings(tmp_path, min_clients=2, encoding="int8", zstd=True)
    with running(wanted) as port, connected(port) as (stub, _):
        for name, known in (("ada", ["int8"]), ("bea", [])):
            client = Client(stub, name)
            client.join(lora_layout=layout_to_messages(LAYOUT), encodings=known, zstd=bool(known))
            client.report(0)
        ada, bea = Client(stub, "ada"), Client(stub, "bea")
        assert ada.task().train.round == 1
        shape = LAYOUT.shapes[0][1]
        content = save(
            {
                NAME: np.full(shape, 127, np.int8),
                f"{NAME}.scale": np.full(shape[:1], 2 / 127, "<f4"),
            }
        )
        packed = [
            payload.pack(at, content[at : at + CHUNK_BYTES], zstd=True)
            for at in range(0, len(content), CHUNK_BYTES)
        ]
        pieces = [payload_pb2.PayloadChunk(**asdict(piece)) for piece in packed]
        assert sum(len(piece.data) for piece in pieces) < len(content) / 100
        ada.push(1, content, chunks=pieces, num_pairs=3)
        bea.push(1, {NAME: np.full(shape, 6, np.float32)}, num_pairs=1)
        assert bea.task().evaluate.adapter_version == 1
        _, *parts = ada.pull(1)
        assert all(part.chunk.zstd for part in parts)
        first, second = (
            load(b"".join(zstandard.decompress(part.chunk.data) for part in pulled[1:]))
            for pulled in (ada.pull(0), ada.pull(1))
        )
        np.testing.assert_allclose(second[NAME] - first[NAME], 3.0, rtol=1e-5)
        assert not any(part.chunk.zstd for part in bea.pull(1)[1:])
