"""The header of a safetensors file: which tensors it names, where they lie, what they must be."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.layout import LoraLayout

#: Bytes of the number before the header: its length, little-endian.
LENGTH_BYTES = 8
_HEADER_BYTES_PER_TENSOR = 160

#: Bytes of an item of each dtype.
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4,
         "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What a tensor must be. Numbers of an I32 tensor rise, from 0 on, and stay `below`."""

    dtype: str
    shape: tuple[int, ...]
    below: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor."""
        return SIZES[self.dtype] * prod(self.shape)


@dataclass(frozen=True)
class Contents:
    """What a payload must hold: its tensors by name, in the order in which they are written."""

    specs: Mapping[str, Spec]

    @classmethod
    def of(cls, layout: LoraLayout) -> "Contents":
        """The tensors of a layout as they are, in float32."""
        return cls({name: Spec("F32", shape) for name, shape in layout.shapes})

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together, without a file header."""
        return sum(spec.num_bytes for spec in self.specs.values())

    @property
    def max_header_bytes(self) -> int:
        """No header of such a payload is longer than this."""
        names = sum(len(name.encode()) for name in self.specs)
        return names + _HEADER_BYTES_PER_TENSOR * (len(self.specs) + 16)

    @property
    def max_payload_bytes(self) -> int:
        """No such payload is larger than this."""
        return self.num_bytes + self.max_header_bytes


@dataclass(frozen=True)
class Place:
    """A tensor of a file, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def places_of(header: bytes, *, begin: int) -> list[Place]:
    """Where the tensors of a header lie, in the order of their bytes, which begin at `begin`.

    Raises BadPayload where the header is malformed, or where tensors overlap or leave gaps.
    """
    try:
        content = json.loads(header, object_pairs_hook=_unique)
        content.pop("__metadata__", None)
        places = sorted(
            (_place(name, found, begin) for name, found in content.items()),
            key=lambda place: (place.begin, place.end),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadPayload(
            f"the payload is not a valid safetensors file: {str(error)[:200]}"
        ) from error
    at = begin
    for place in places:
        if place.begin != at:
            raise BadPayload(
                f"the payload is not a valid safetensors file: {place.name[:200]} overlaps "
                "another tensor or leaves a gap"
            )
        at = place.end
    return places


def check_places(places: Iterable[Place], contents: Contents, *, num_bytes: int) -> None:
    """Check that a header names exactly the wanted tensors, and that the file ends with them.

    Raises BadPayload, which names the first tensor that is wrong.
    """
    missing = dict(contents.specs)
    end = 0
    for place in places:
        spec = missing.pop(place.name, None)
        if spec is None:
            raise BadPayload(f"the payload holds {place.name[:200]}, which the run's LoRA lacks")
        if (place.dtype, place.shape) != (spec.dtype, spec.shape):
            raise BadPayload(
                f"the payload's {place.name} is {place.dtype} {list(place.shape)}, "
                f"the run's is {spec.dtype} {list(spec.shape)}"
            )
        end = place.end
    if missing:
        raise BadPayload(f"the payload lacks {min(missing)}")
    if end != num_bytes:
        raise BadPayload(
            f"the payload is not a valid safetensors file: its tensors end at byte {end} of "
            f"{num_bytes}"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice in its header")
    return found


def _place(name: str, found: dict[str, Any], begin: int) -> Place:
    if not name.isprintable():
        raise ValueError(f"a tensor's name is not printable: {name[:200]!a}")
    dtype, shape, (first, last) = found["dtype"], found["shape"], found["data_offsets"]
    if dtype not in SIZES:
        raise ValueError(f"{name[:200]} has no known dtype")
    sizes = [*shape, first, last]
    if not all(type(size) is int and size >= 0 for size in sizes) or len(shape) > 8:
        raise ValueError(f"{name[:200]} has a malformed shape or place")
    if last - first != SIZES[dtype] * prod(shape):
        raise ValueError(f"{name[:200]} has {last - first} bytes for its shape {shape}")
    return Place(name, dtype, tuple(shape), begin + first, begin + last)
