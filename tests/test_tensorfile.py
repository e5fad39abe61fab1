"""safetensors files piece by piece: what is refused, and that honest ones are read and written."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.header import Contents
from fedpdpo.common.tensorfile import Inspector, TensorReader, check_file, write_tensors
from serving import LAYOUT, tensors

CONTENTS = Contents.of(LAYOUT)
A, B = "m.0.q.lora_A.weight", "m.0.q.lora_B.weight"


def lying_header(spans: dict[str, tuple[int, int]]) -> bytes:
    shapes = dict(LAYOUT.shapes)
    header = {
        name: {"dtype": "F32", "shape": shapes[name], "data_offsets": span}
        for name, span in spans.items()
    }
    return framed(json.dumps(header).encode()) + bytes(56)


def framed(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (save(tensors(1.0) | {"head.weight": np.zeros(2, np.float32)}), "head.weight, which the"),
        (save({A: np.zeros((2, 3), np.float32)}), f"lacks {B}"),
        (save(tensors(1.0) | {A: np.zeros((3, 2), np.float32)}), r"F32 \[3, 2\], the run's is F32"),
        (save({k: v.astype(np.float64) for k, v in tensors(1.0).items()}), "is F64"),
        (save(tensors(1.0))[:-4], "not a valid safetensors file"),
        (b"garbage!" * 9, "not a valid safetensors file"),
        (struct.pack("<Q", 100 * 2**20) + b"{}", "not a valid safetensors file"),
        (lying_header({A: (0, 24), B: (8, 40)}), "not a valid safetensors file"),
        (lying_header({A: (32, 56), B: (-32, 32)}), "not a valid safetensors file"),
        (lying_header({A: (0, 24), B: (28, 60)}), "leaves a gap"),
        (lying_header({A: (0, 24), B: (24, 56)})[:-4], "end at byte"),
        (lying_header({A: (0, 24), B: (24, 56)}) + bytes(4), "end at byte"),
        (lying_header({A: (0, 24), B: (24, 52)}), "28 bytes for its shape"),
        (framed(b'{"a": 1, "a": 2}'), "comes twice"),
        (framed(b"[" * 900), "not a valid safetensors file"),
        (framed(b"[]"), "not a valid safetensors file"),
        (framed(b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}'), "malformed"),
        (framed(b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}'), "malformed"),
        (framed(b'{"\\ud800": 1}'), r"not printable: '\\ud800'"),
        (framed(b'{"\\u001b[2J": 1}'), r"not printable: '\\x1b\[2J'"),
        (b"", "ends too early"),
        (b"1234567", "ends too early"),
    ],
)
def test_a_payload_that_is_not_the_layouts_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "payload"
    path.write_bytes(content)
    with pytest.raises(BadPayload, match=words):
        check_file(path, CONTENTS)


def test_an_honest_payload_passes(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(save(tensors(1.0)))
    check_file(path, CONTENTS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=8))
def test_no_bytes_crash_the_check(tmp_path: Path, content: bytes, at: int, change: bytes) -> None:
    honest = save(tensors(1.0))
    path = tmp_path / "payload"
    for candidate in (content, honest[:at] + change + honest[at + len(change) :]):
        path.write_bytes(candidate)
        try:
            check_file(path, CONTENTS)
        except BadPayload:
            pass
        else:
            assert len(candidate) == len(honest)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 7, 64, 1000])
def test_pieces_of_any_size_are_checked_alike(size: int) -> None:
    honest, wrong = tensors(1.0), tensors(1.0)
    wrong[B][3, 1] = np.inf
    for content, words in ((save(honest), ""), (save(wrong), f"{B} holds NaN or infinity")):
        inspector = Inspector(CONTENTS, num_bytes=len(content))
        refused = ""
        try:
            for at in range(0, len(content), size):
                inspector.feed(content[at : at + size])
            inspector.finish()
        except BadPayload as error:
            refused = str(error)
        assert words in refused
        assert bool(refused) is bool(words)


def test_a_tensor_is_refused_before_the_next_one_comes() -> None:
    content = save(tensors(1.0) | {A: np.full((2, 3), np.nan, np.float32)})
    inspector = Inspector(CONTENTS, num_bytes=len(content))
    with pytest.raises(BadPayload, match=f"{A} holds NaN"):
        inspector.feed(content[: len(content) - 4 * 8])


def test_what_is_written_is_what_safetensors_reads_and_the_other_way_round(tmp_path: Path) -> None:
    content = {name: tensor + number for number, (name, tensor) in enumerate(tensors(1.0).items())}
    write_tensors(tmp_path / "ours", CONTENTS, content.items())
    save_file(content, tmp_path / "theirs")
    for path in (tmp_path / "ours", tmp_path / "theirs"):
        check_file(path, CONTENTS)
        reader, loaded = TensorReader(path), load_file(path)
        for name, tensor in content.items():
            np.testing.assert_array_equal(reader.read(name), tensor)
            np.testing.assert_array_equal(loaded[name], tensor)
    with pytest.raises(BadPayload, match="lacks x"):
        reader.read("x")


def test_tensors_out_of_order_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="came for"):
        write_tensors(tmp_path / "file", CONTENTS, reversed(tensors(1.0).items()))
    with pytest.raises(ValueError, match=r"nothing .* came for"):
        write_tensors(tmp_path / "file", CONTENTS, [])
    with pytest.raises(ValueError, match="came after the last tensor"):
        write_tensors(tmp_path / "file", CONTENTS, [*tensors(1.0).items(), *tensors(1.0).items()])


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    whole = tensors(3.0)
    pieces = [(name, row[None]) for name, tensor in whole.items() for row in tensor]
    digest = write_tensors(tmp_path / "pieces", CONTENTS, pieces)
    assert digest == write_tensors(tmp_path / "whole", CONTENTS, whole.items())
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    reader = TensorReader(tmp_path / "pieces")
    for name, tensor in whole.items():
        assert (reader.read(name, slice(1, 2)) == tensor[1:2]).all()


def test_contents_bound_their_payloads() -> None:
    assert CONTENTS.num_bytes == 4 * (6 + 8)
    assert len(save(tensors(1.0))) <= CONTENTS.max_payload_bytes < 10_000
