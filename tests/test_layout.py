"""The LoRA layout, and payloads held against it."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from fedpdpo.common.errors import BadPayload, BadRequest
from fedpdpo.common.layout import LoraLayout, check_payload, layer_numbers
from serving import LAYOUT, tensors

A, B = "m.0.q.lora_A.weight", "m.0.q.lora_B.weight"


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ((), "empty"),
        (((B, (4, 2)), (A, (2, 3))), "not sorted"),
        (((A, (2, 3)), (A, (2, 3))), "twice"),
        (((A, (2, 0)),), "shape"),
        (((A, (2,)),), "shape"),
        (((A, (2**20, 2**20)),), "shape"),
        ((("m.head.weight", (2, 3)),), "no LoRA matrix"),
        ((("x\n.lora_A.weight", (2, 3)),), "malformed tensor name"),
        ((("x" * 600, (2, 3)),), "malformed tensor name"),
    ],
)
def test_a_malformed_layout_is_refused(shapes: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        LoraLayout(shapes)


def test_the_first_difference_of_two_layouts_is_told() -> None:
    other = LoraLayout(((A, (2, 5)), (B, (4, 2))))
    assert LAYOUT.difference(other) == f"{A} is of shape [2, 3] here and of shape [2, 5] there"
    assert LAYOUT.difference(LAYOUT) == ""
    assert "absent there" in LAYOUT.difference(LoraLayout(((A, (2, 3)),)))


def test_a_layout_bounds_its_payloads() -> None:
    assert LAYOUT.num_bytes == 4 * (6 + 8)
    assert len(save(tensors(1.0))) <= LAYOUT.max_payload_bytes < 10_000


def test_layers_are_read_off_the_names() -> None:
    assert layer_numbers(LAYOUT) == {0}


def lying_header(spans: dict[str, tuple[int, int]]) -> bytes:
    shapes = dict(LAYOUT.shapes)
    header = {
        name: {"dtype": "F32", "shape": shapes[name], "data_offsets": span}
        for name, span in spans.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(56)


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
    ],
)
def test_a_payload_that_is_not_the_layouts_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "payload"
    path.write_bytes(content)
    with pytest.raises(BadPayload, match=words):
        check_payload(path, LAYOUT)


def test_an_honest_payload_passes(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    path.write_bytes(save(tensors(1.0)))
    check_payload(path, LAYOUT)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=8))
def test_no_bytes_crash_the_check(tmp_path: Path, content: bytes, at: int, change: bytes) -> None:
    honest = save(tensors(1.0))
    path = tmp_path / "payload"
    for candidate in (content, honest[:at] + change + honest[at + len(change) :]):
        path.write_bytes(candidate)
        try:
            check_payload(path, LAYOUT)
        except BadPayload:
            pass
        else:
            assert len(candidate) == len(honest)
