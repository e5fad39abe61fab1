"""Payloads cut into chunks and put together again, checked as they come, gone on with."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedpdpo.common.errors import BadPayload, CutOff, StorageFull, TooLarge, WrongDigest
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import CHUNK_BYTES, Receiver, chunks_of, held_of
from serving import LAYOUT, small_disk, tensors

CONTENT = save(tensors(1.0))
SIZE = len(CONTENT)


def receiver(
    folder: Path, content: bytes = CONTENT, layout: LoraLayout = LAYOUT, **changed: object
) -> Receiver:
    told: dict[str, object] = {
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).digest(),
    }
    contents = Contents.of(layout)
    return Receiver(folder / "payload", contents=contents, **(told | changed))  # type: ignore[arg-type]


def of_size(columns: int) -> tuple[LoraLayout, bytes]:
    name = "m.0.q.lora_A.weight"
    content = np.random.default_rng(columns).normal(size=(16, columns)).astype(np.float32)
    return LoraLayout(((name, (16, columns)),)), save({name: content})


def took(taking: Receiver, path: Path) -> None:
    for offset, data in chunks_of(path, begin=taking.held):
        assert len(data) <= CHUNK_BYTES
        taking.write(offset, data)
    taking.finish()
    taking.keep()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.integers(1, 3 * CHUNK_BYTES // 64), st.floats(0, 1))
def test_what_is_cut_is_put_together_again_from_where_it_was_cut_off(
    tmp_path: Path, columns: int, share: float
) -> None:
    layout, content = of_size(columns)
    source = tmp_path / "source"
    source.write_bytes(content)
    cut = int(share * len(content))
    with receiver(tmp_path, content, layout) as taking:
        for begin in range(0, cut, CHUNK_BYTES):
            taking.write(begin, content[begin : min(cut, begin + CHUNK_BYTES)])
    assert held_of(tmp_path / "payload") == (cut, hashlib.sha256(content).digest())
    with receiver(tmp_path, content, layout) as taking:
        assert taking.held == cut
        took(taking, source)
    assert (tmp_path / "payload").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {"payload", "source"}


def test_what_is_held_is_told_as_it_becomes_durable(tmp_path: Path) -> None:
    with receiver(tmp_path, sync_bytes=100) as taking:
        assert [taking.write(at, CONTENT[at : at + 50]) for at in (0, 50, 100, 150)] == [
            False, True, False, True,
        ]  # fmt: skip
        assert taking.held == 200


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ([(1, CONTENT)], BadPayload, "begins at byte 1, expected 0"),
        ([(0, CONTENT[:9]), (0, CONTENT[:9])], BadPayload, "begins at byte 0, expected 9"),
        ([(0, b"")], BadPayload, "0 bytes"),
        ([(0, bytes(CHUNK_BYTES + 1))], BadPayload, "1 to 1048576 are allowed"),
        ([(0, CONTENT + b"x")], TooLarge, f"more than the {SIZE} bytes announced"),
        ([(0, CONTENT[:-1] + b"x")], WrongDigest, "SHA-256 differs"),
        ([(0, CONTENT[:-4] + b"\xff" * 4)], BadPayload, "holds NaN"),
    ],
)
def test_a_wrong_chunk_is_refused_and_leaves_nothing(
    tmp_path: Path, pieces: list[tuple[int, bytes]], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words), receiver(tmp_path) as taking:
        for offset, data in pieces:
            taking.write(offset, data)
        taking.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_payload_that_ends_early_is_refused_and_kept(tmp_path: Path) -> None:
    with pytest.raises(CutOff, match=f"{SIZE - 1} of the {SIZE}"), receiver(tmp_path) as taking:
        taking.write(0, CONTENT[:-1])
        taking.finish()
    assert held_of(tmp_path / "payload")[0] == SIZE - 1


@pytest.mark.parametrize("left", [b"x" * 300, CONTENT + b"more", b"\xff" * 8])
def test_what_is_left_damaged_is_begun_anew(tmp_path: Path, left: bytes) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    (tmp_path / f".payload.{digest}.part").write_bytes(left)
    (tmp_path / "source").write_bytes(CONTENT)
    with receiver(tmp_path) as taking:
        assert taking.held == 0
        took(taking, tmp_path / "source")
    assert (tmp_path / "payload").read_bytes() == CONTENT


def test_another_payload_for_the_same_place_removes_what_came_of_the_first(tmp_path: Path) -> None:
    with receiver(tmp_path) as taking:
        taking.write(0, CONTENT[:100])
    other = save(tensors(2.0))
    with receiver(tmp_path, other) as taking:
        assert taking.held == 0
        assert held_of(tmp_path / "payload") == (0, hashlib.sha256(other).digest())


def test_what_came_for_a_place_whose_name_goes_on_is_left_alone(tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    foreign = tmp_path / f".payload.more.{digest}.part"
    foreign.write_bytes(b"of somebody else")
    with receiver(tmp_path):
        pass
    assert foreign.exists()
    assert held_of(tmp_path / "payload") == (0, bytes.fromhex(digest))


def test_an_announcement_is_refused_before_a_byte_is_taken(tmp_path: Path) -> None:
    most = Contents.of(LAYOUT).max_payload_bytes
    with pytest.raises(TooLarge, match=f"{most + 1} bytes, the run's adapter {most}"):
        receiver(tmp_path, num_bytes=most + 1)
    with pytest.raises(BadPayload, match="announces 7 bytes"):
        receiver(tmp_path, num_bytes=7)
    with pytest.raises(BadPayload, match="digest of 3 bytes"):
        receiver(tmp_path, sha256=b"abc")


@pytest.mark.parametrize("chunk_bytes", [1000, 66_000, 69_000])
def test_a_payload_that_fills_the_disk_is_told_and_leaves_nothing(
    tmp_path: Path, chunk_bytes: int
) -> None:
    layout, content = of_size(3000)
    with small_disk(tmp_path / "disk") as disk:
        with (
            pytest.raises(StorageFull, match="No space left"),
            receiver(disk, content, layout) as taking,
        ):
            for offset in range(0, len(content), chunk_bytes):
                taking.write(offset, content[offset : offset + chunk_bytes])
            taking.finish()
        assert list(disk.iterdir()) == []
