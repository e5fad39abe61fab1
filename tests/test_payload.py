"""Payloads cut into chunks and put together again, checked as they come."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedpdpo.common.errors import BadPayload, StorageFull, TooLarge, WrongDigest
from fedpdpo.common.payload import CHUNK_BYTES, Receiver, chunks_of
from serving import small_disk

CONTENT = bytes(range(256)) * 8


def receiver(folder: Path, content: bytes = CONTENT, **changed: object) -> Receiver:
    told: dict[str, object] = {
        "num_bytes": len(content),
        "sha256": hashlib.sha256(content).digest(),
        "max_bytes": 2**24,
    }
    return Receiver(folder / "payload", **(told | changed))  # type: ignore[arg-type]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(st.integers(8, 3 * CHUNK_BYTES))
def test_what_is_cut_is_put_together_again(tmp_path: Path, num_bytes: int) -> None:
    content = (CONTENT * (num_bytes // len(CONTENT) + 1))[:num_bytes]
    source = tmp_path / "source"
    source.write_bytes(content)
    with receiver(tmp_path, content) as taking:
        for offset, data in chunks_of(source):
            assert len(data) <= CHUNK_BYTES
            taking.write(offset, data)
        taking.finish()
        taking.keep()
    assert (tmp_path / "payload").read_bytes() == content


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ([(1, CONTENT)], BadPayload, "begins at byte 1, expected 0"),
        ([(0, CONTENT[:9]), (0, CONTENT[:9])], BadPayload, "begins at byte 0, expected 9"),
        ([(0, b"")], BadPayload, "0 bytes"),
        ([(0, bytes(CHUNK_BYTES + 1))], BadPayload, "1 to 1048576 are allowed"),
        ([(0, CONTENT + b"x")], TooLarge, "more than the 2048 bytes announced"),
        ([(0, CONTENT[:-1])], WrongDigest, "2047 of the 2048 bytes"),
        ([(0, CONTENT[:-1] + b"x")], WrongDigest, "SHA-256 differs"),
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


def test_an_announcement_is_refused_before_a_byte_is_taken(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="2048 bytes, the run's adapter 100"):
        receiver(tmp_path, max_bytes=100)
    with pytest.raises(BadPayload, match="announces 7 bytes"):
        receiver(tmp_path, num_bytes=7)
    with pytest.raises(BadPayload, match="digest of 3 bytes"):
        receiver(tmp_path, sha256=b"abc")


def test_two_transfers_to_one_place_do_not_meet(tmp_path: Path) -> None:
    with receiver(tmp_path) as one, receiver(tmp_path) as other:
        one.write(0, CONTENT[:100])
        other.write(0, CONTENT)
        other.finish()
        other.keep()
    assert (tmp_path / "payload").read_bytes() == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("chunk_bytes", [1000, 66_000, 69_000])
def test_a_payload_that_fills_the_disk_is_told_and_leaves_nothing(
    tmp_path: Path, chunk_bytes: int
) -> None:
    content = bytes(200_000)
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(StorageFull, match="No space left"), receiver(disk, content) as taking:
            for offset in range(0, len(content), chunk_bytes):
                taking.write(offset, content[offset : offset + chunk_bytes])
            taking.finish()
        assert list(disk.iterdir()) == []
