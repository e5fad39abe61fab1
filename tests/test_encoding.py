"""How deltas travel: what each encoding loses, and that nothing is lost for good."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fedpdpo.client.feedback import RESIDUAL, write_delta
from fedpdpo.client.model.lora import SharedState
from fedpdpo.common.encoding import DeltaFormat, Encoding, decoder, encoded
from fedpdpo.common.errors import BadPayload
from fedpdpo.common.frames import Chunk
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import CHUNK_BYTES, pack, unpacked
from fedpdpo.common.tensorfile import Array, TensorReader, check_file, write_tensors

LAYOUT = LoraLayout((("m.lora_A.weight", (4, 50)), ("m.lora_B.weight", (30, 4))))
FORMATS = [
    DeltaFormat(),
    DeltaFormat(Encoding.BFLOAT16),
    DeltaFormat(Encoding.INT8),
    DeltaFormat(Encoding.TOPK, 0.1),
]


def delta(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(scale=1e-3, size=shape).astype(np.float32) for name, shape in LAYOUT.shapes
    }


def sent(folder: Path, tensors: dict[str, Array], fmt: DeltaFormat) -> dict[str, Array]:
    path = folder / "sent"
    write_tensors(path, fmt.contents(LAYOUT), encoded(iter(tensors.items()), fmt))
    check_file(path, fmt.contents(LAYOUT))
    decode = decoder(TensorReader(path), LAYOUT)
    return {name: decode(name) for name, _ in LAYOUT.shapes}


def test_float32_loses_nothing(tmp_path: Path) -> None:
    for name, tensor in sent(tmp_path, delta(0), FORMATS[0]).items():
        np.testing.assert_array_equal(tensor, delta(0)[name])


def test_bfloat16_rounds_as_torch_does(tmp_path: Path) -> None:
    for name, tensor in sent(tmp_path, delta(0), FORMATS[1]).items():
        expected = torch.from_numpy(delta(0)[name]).bfloat16().float().numpy()
        np.testing.assert_array_equal(tensor, expected)


def test_int8_is_off_by_half_a_step_of_its_row_at_most(tmp_path: Path) -> None:
    tensors = delta(0)
    tensors["m.lora_B.weight"][3] = 0.0
    for name, tensor in sent(tmp_path, tensors, FORMATS[2]).items():
        step = np.abs(tensors[name]).max(axis=1, keepdims=True) / 127
        assert (np.abs(tensor - tensors[name]) <= 0.501 * step).all()


def test_topk_keeps_the_largest_magnitudes_as_they_are(tmp_path: Path) -> None:
    for name, tensor in sent(tmp_path, delta(0), FORMATS[3]).items():
        original = delta(0)[name]
        kept = tensor != 0
        assert kept.sum() == -(-original.size // 10)
        np.testing.assert_array_equal(tensor[kept], original[kept])
        assert np.abs(original[kept]).min() >= np.abs(original[~kept]).max()


@given(st.integers(1, 10**6), st.floats(1e-6, 1))
def test_topk_keeps_at_least_one_number_and_at_most_all(size: int, share: float) -> None:
    assert 1 <= DeltaFormat(Encoding.TOPK, share).num_kept(size) <= size


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.encoding)
def test_what_a_round_leaves_out_is_sent_later(tmp_path: Path, fmt: DeltaFormat) -> None:
    before = None
    total = {name: np.zeros(shape) for name, shape in LAYOUT.shapes}
    wanted = {name: np.zeros(shape) for name, shape in LAYOUT.shapes}
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        tensors = {name: torch.from_numpy(tensor) for name, tensor in delta(number).items()}
        write_delta(folder, SharedState(tensors, LAYOUT), fmt, before=before)
        decode = decoder(TensorReader(folder / "delta.safetensors"), LAYOUT)
        for name, tensor in delta(number).items():
            total[name] += decode(name)
            wanted[name] += tensor
        before = folder
    assert (folder / RESIDUAL).exists() == fmt.loses
    residual = load_file(folder / RESIDUAL) if fmt.loses else {}
    for name, expected in wanted.items():
        np.testing.assert_allclose(total[name] + residual.get(name, 0), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("index", "words"),
    [([0, 1, 1], "does not rise"), ([2, 1, 3], "does not rise"), ([0, 1, 200], "its bounds"),
     ([-1, 0, 1], "does not rise"), ([5, 2**31 - 1, -(2**31)], "does not rise")],
)  # fmt: skip
def test_places_that_do_not_rise_within_the_tensor_are_refused(
    tmp_path: Path, index: list[int], words: str
) -> None:
    layout = LoraLayout((("m.lora_A.weight", (4, 50)),))
    fmt = DeltaFormat(Encoding.TOPK, 3 / 200)
    parts = {
        "m.lora_A.weight.index": np.array(index, np.int32),
        "m.lora_A.weight.value": np.ones(3, np.float32),
    }
    write_tensors(tmp_path / "sent", fmt.contents(layout), parts.items())
    with pytest.raises(BadPayload, match=words):
        check_file(tmp_path / "sent", fmt.contents(layout))


def test_an_infinite_bfloat16_is_refused(tmp_path: Path) -> None:
    fmt = DeltaFormat(Encoding.BFLOAT16)
    parts = {name: np.full(shape, 0x7F80, np.uint16) for name, shape in LAYOUT.shapes}
    write_tensors(tmp_path / "sent", fmt.contents(LAYOUT), parts.items())
    with pytest.raises(BadPayload, match="holds NaN or infinity"):
        check_file(tmp_path / "sent", fmt.contents(LAYOUT))


@given(st.binary(min_size=1, max_size=2000), st.booleans())
def test_a_packed_piece_comes_out_as_it_was(data: bytes, zstd: bool) -> None:
    chunk = pack(7, data, zstd=zstd)
    assert (chunk.offset, chunk.zstd) == (7, zstd)
    assert unpacked(chunk) == data


@pytest.mark.parametrize(
    "frame",
    [
        b"no frame",
        zstandard.compress(bytes(CHUNK_BYTES + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100),
        zstandard.compress(b"x" * 1000)[:-3],
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + bytes(8),
    ],
)
def test_a_frame_that_is_damaged_or_holds_too_much_is_refused(frame: bytes) -> None:
    with pytest.raises(BadPayload, match="zstd frame"):
        unpacked(Chunk(0, frame, zstd=True))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_topk_cannot_send_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="cannot send"):
        DeltaFormat(Encoding.TOPK, share)
