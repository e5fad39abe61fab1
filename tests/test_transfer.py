"""The client's link through broken, frozen and slow connections to a real server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fedpdpo.client import link as link_module
from fedpdpo.client.link import Link
from fedpdpo.client.outcome import TrainedRound, TrainingReport
from fedpdpo.common import payload
from fedpdpo.common.errors import Refused
from fedpdpo.common.files import sha256_of
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import CHUNK_BYTES
from fedpdpo.server import intake
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from processes import until
from proxy import Proxy, proxied
from serving import BACKBONE, TOKENIZER, Client, connected, events, running, settings
from watched import free_port

NAME = "m.0.q.lora_A.weight"
LAYOUT = LoraLayout(((NAME, (96, 2**14)),))
SIZE = Contents.of(LAYOUT).num_bytes
REPORT = TrainingReport(loss=0.5, accuracy=0.5, num_steps=1, seconds=1.0)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "SYNC_BYTES", CHUNK_BYTES)


def enter(link: Link) -> None:
    link.join(
        backbone_fingerprint=BACKBONE,
        tokenizer_fingerprint=TOKENIZER,
        layout=LAYOUT,
        num_train_pairs=3,
        num_eval_pairs=3,
    )


@contextmanager
def linked(
    folder: Path, *, stall_s: float = 30.0, **changed: object
) -> Iterator[tuple[Link, Proxy, OperatorServiceStub]]:
    """A client that joined through a proxy, when its round is open."""
    with (
        running(settings(folder / "server", min_clients=1, **changed)) as port,
        connected(port) as (stub, operator),
        proxied(port) as proxy,
    ):
        link = Link(f"127.0.0.1:{proxy.port}", "ada", connect_timeout_s=20, stall_s=stall_s)
        link.get_run()
        enter(link)
        Client(stub, "ada").report(0)
        assert link.assignment().train.round == 1
        yield link, proxy, operator
        link.close()


def test_a_model_that_loads_slowly_leaves_the_time_to_connect_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 0.0

    def later() -> float:
        nonlocal now_s
        now_s += 100
        return now_s

    monkeypatch.setattr(link_module, "time", SimpleNamespace(monotonic=later))
    link = Link(f"127.0.0.1:{free_port()}", "ada", connect_timeout_s=350, stall_s=1)
    now_s = 1000.0
    with pytest.raises(Refused):
        enter(link)
    link.close()
    assert caplog.text.count("waiting_for_server") == 3


class Failure(grpc.RpcError, grpc.Call):
    """What a call raises, with a status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return f"it said {self._code.name}"

    def trailing_metadata(self) -> tuple[()]:
        return ()

    initial_metadata = trailing_metadata

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:  # noqa: ARG002
        return False


@pytest.mark.parametrize(("code", "tries"), [("UNAUTHENTICATED", 3), ("INTERNAL", 5)])
def test_what_a_few_tries_may_mend_has_them_after_any_outage(
    monkeypatch: pytest.MonkeyPatch, code: str, tries: int
) -> None:
    monkeypatch.setattr(link_module, "_jitter_s", lambda _: 0.0)
    away, wrong = Failure(grpc.StatusCode.UNAVAILABLE), Failure(grpc.StatusCode[code])
    link = Link("127.0.0.1:1", "ada", connect_timeout_s=1e9, stall_s=1)

    def call(*failures: Failure) -> str:
        left = list(failures)

        def attempt() -> str:
            if left:
                raise left.pop(0)
            return "answered"

        return link._call("Some", attempt)

    assert call(*[away] * 9, *[wrong] * (tries - 1)) == "answered"
    with pytest.raises(Refused, match=f"it said {code}"):
        call(*[away] * 9, *[wrong] * tries)
    link.close()


def trained(folder: Path) -> TrainedRound:
    path = folder / "delta.safetensors"
    save_file({NAME: np.random.default_rng(0).normal(size=(96, 2**14)).astype(np.float32)}, path)
    return TrainedRound(1, 3, REPORT, path)


def test_a_delta_gets_through_connections_that_break_and_is_counted_once(tmp_path: Path) -> None:
    with linked(tmp_path) as (link, proxy, operator):
        before = len(proxy.up)
        proxy.cut_up_after = 2 * CHUNK_BYTES + 50_000
        proxy.cut()
        seen: list[int] = []
        link.push(trained(tmp_path), LAYOUT, seen.append)
        assert proxy.num_connections >= 4
        assert len(proxy.up) - before < 1.6 * SIZE
        assert max(seen) >= SIZE
        assert events(operator).count("delta_received") == 1


def test_an_adapter_gets_through_connections_that_break(tmp_path: Path) -> None:
    with linked(tmp_path) as (link, proxy, _):
        before = proxy.down_bytes
        proxy.cut_down_after = 2 * CHUNK_BYTES + 50_000
        proxy.bytes_per_s = 8e6  # what was not read yet when a connection breaks is lost
        proxy.cut()
        link.pull(0, tmp_path / "adapter", LAYOUT)
        assert proxy.num_connections >= 4
        assert proxy.down_bytes - before < 1.6 * SIZE
        published = tmp_path / "server/adapters/version-00000.safetensors"
        assert sha256_of(tmp_path / "adapter") == sha256_of(published)
        assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_frozen_connection_is_given_up_and_the_transfer_goes_on(tmp_path: Path, way: str) -> None:
    with linked(tmp_path, stall_s=0.5, stall_timeout_s=0.5) as (link, proxy, operator):
        notes: list[str] = []
        link.note = notes.append
        proxy.bytes_per_s = 8e6
        work = {
            "push": lambda: link.push(trained(tmp_path), LAYOUT),
            "pull": lambda: link.pull(0, tmp_path / "adapter", LAYOUT),
        }[way]
        begun = len(proxy.up) + proxy.down_bytes
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        until(lambda: len(proxy.up) + proxy.down_bytes > begun + 2 * CHUNK_BYTES, "some bytes")
        proxy.frozen = True
        until(lambda: any(notes), "the note that it waits")
        proxy.frozen = False
        thread.join(60)
        assert not thread.is_alive()
        assert notes[-1] == ""
        if way == "push":
            assert events(operator).count("delta_received") == 1
        else:
            assert load_file(tmp_path / "adapter")[NAME].shape == (96, 2**14)


def test_a_slow_connection_is_not_given_up(tmp_path: Path) -> None:
    with linked(tmp_path, stall_s=1.0, stall_timeout_s=1.0) as (link, proxy, operator):
        proxy.bytes_per_s = 3e6
        link.push(trained(tmp_path), LAYOUT)
        assert proxy.num_connections == 1
        assert events(operator).count("delta_received") == 1


def test_a_damaged_piece_of_an_adapter_is_fetched_anew(tmp_path: Path) -> None:
    with linked(tmp_path) as (link, _, _):
        path = tmp_path / "adapter"
        digest = sha256_of(tmp_path / "server/adapters/version-00000.safetensors")
        (part := payload.part_of(path, digest)).write_bytes(b"\xff" * 1000)
        link.pull(0, path, LAYOUT)
        assert sha256_of(path) == digest
        assert not part.exists()


def test_a_delta_of_another_round_is_told_as_such(tmp_path: Path) -> None:
    with linked(tmp_path) as (link, _, _):
        foreign = TrainedRound(7, 3, REPORT, trained(tmp_path).delta)
        with pytest.raises(Exception, match="round 7 is not open") as found:
            link.push(foreign, LAYOUT)
        assert isinstance(found.value.__cause__, Refused)
