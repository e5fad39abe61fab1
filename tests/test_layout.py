"""The LoRA layout."""

from typing import Any

import pytest

from fedpdpo.common.errors import BadRequest
from fedpdpo.common.layout import LoraLayout, layer_numbers
from serving import LAYOUT

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


def test_layers_are_read_off_the_names() -> None:
    assert layer_numbers(LAYOUT) == {0}
