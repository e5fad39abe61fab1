"""The LoRA layout: which tensors are shared.

A shape is a tuple of sizes. Every shared tensor is float32.
"""

import re
from dataclasses import dataclass
from math import prod

from fedpdpo.common.errors import BadRequest

_MAX_TENSORS = 100_000
_MAX_NAME_CHARS = 512
_MAX_ELEMENTS = 2**34


@dataclass(frozen=True)
class LoraLayout:
    """Names and shapes of the shared tensors, sorted by name.

    Raises BadRequest where there is none, one comes twice, or a name or shape is malformed.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.shapes]
        if not names:
            raise BadRequest("the LoRA layout is empty")
        if len(names) > _MAX_TENSORS:
            raise BadRequest(f"the LoRA layout has {len(names)} tensors, at most {_MAX_TENSORS}")
        if names != sorted(set(names)):
            raise BadRequest("the LoRA layout is not sorted by name, or names a tensor twice")
        for name, shape in self.shapes:
            if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
                raise BadRequest(f"the LoRA layout has a malformed tensor name: {name[:80]!r}")
            if len(shape) != 2 or min(shape) < 1 or prod(shape) > _MAX_ELEMENTS:
                raise BadRequest(f"the LoRA layout gives {name} the shape {list(shape)}")
            if not name.endswith((".lora_A.weight", ".lora_B.weight")):
                raise BadRequest(f"the LoRA layout names {name}, which is no LoRA matrix")

    def difference(self, other: "LoraLayout") -> str:
        """The first thing in which another layout differs, for people; empty where none does."""
        mine, theirs = dict(self.shapes), dict(other.shapes)
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                return f"{name} is {_show(mine.get(name))} here and {_show(theirs.get(name))} there"
        return ""


def _show(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else f"of shape {list(shape)}"


def layer_numbers(layout: LoraLayout) -> set[int]:
    """The numbers of the decoder layers that the layout's tensors belong to; may be empty."""
    numbers = (re.search(r"\.(\d+)\.", name) for name, _ in layout.shapes)
    return {int(found.group(1)) for found in numbers if found}
