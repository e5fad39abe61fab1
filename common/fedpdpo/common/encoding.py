"""How a delta is written for its journey: exactly, or in fewer bytes.

    float32    a tensor (O, I) as it is: 4 bytes a number
    bfloat16   rounded to the nearest: 2 bytes
    int8       rows as scale x (-127 .. 127), `.scale` (O) a row's largest magnitude / 127: 1 byte
    topk       the k = ceil(share x O x I) largest magnitudes: where they are, `.index` (k), rising,
               and what they are, `.value` (k): 8 bytes x share

What rounding and cutting lose is not lost if the sender adds it to its next delta (error feedback,
Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import numpy as np

from fedpdpo.common.header import Contents, Spec
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import ALL, Array, Raw, TensorReader


class Encoding(StrEnum):
    """The name of an encoding, as settings and the wire have it."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    TOPK = "topk"


@dataclass(frozen=True)
class DeltaFormat:
    """An encoding with what belongs to it: the share of numbers that topk keeps.

    Raises ValueError for a share that is not in (0, 1].
    """

    encoding: Encoding = Encoding.FLOAT32
    topk_share: float = 0.0

    def __post_init__(self) -> None:
        if self.encoding is Encoding.TOPK and not 0 < self.topk_share <= 1:
            raise ValueError(f"topk cannot send a share of {self.topk_share}")

    @property
    def loses(self) -> bool:
        """Whether a decoded tensor may differ from what was encoded."""
        return self.encoding is not Encoding.FLOAT32

    def contents(self, layout: LoraLayout) -> Contents:
        """What a payload of a layout's tensors holds in this format."""
        return Contents(
            {
                name + suffix: spec
                for name, shape in layout.shapes
                for suffix, spec in self._parts(shape).items()
            }
        )

    def _parts(self, shape: tuple[int, ...]) -> dict[str, Spec]:
        match self.encoding:
            case Encoding.FLOAT32:
                return {"": Spec("F32", shape)}
            case Encoding.BFLOAT16:
                return {"": Spec("BF16", shape)}
            case Encoding.INT8:
                return {"": Spec("I8", shape), ".scale": Spec("F32", shape[:1])}
            case Encoding.TOPK:
                kept = (self.num_kept(prod(shape)),)
                index = Spec("I32", kept, below=prod(shape))
                return {".index": index, ".value": Spec("F32", kept)}

    def num_kept(self, size: int) -> int:
        """How many numbers topk keeps of a tensor of so many."""
        return min(size, max(1, math.ceil(round(self.topk_share * size, 9))))

    def encode(self, name: str, tensor: Array) -> dict[str, Raw]:
        """A float32 tensor (O, I) as the tensors that travel, by name."""
        match self.encoding:
            case Encoding.FLOAT32:
                return {name: tensor}
            case Encoding.BFLOAT16:
                return {name: _to_bfloat16(tensor)}
            case Encoding.INT8:
                scale = np.abs(tensor).max(axis=1) / np.float32(127)
                steps = tensor / np.where(scale == 0, np.float32(1), scale)[:, None]
                rounded = np.clip(np.rint(steps), -127, 127).astype(np.int8)
                return {name: rounded, f"{name}.scale": scale}
            case Encoding.TOPK:
                flat = tensor.reshape(-1)
                kept = self.num_kept(flat.size)
                index = np.argpartition(-np.abs(flat), kept - 1)[:kept].astype(np.int32)
                index.sort()
                return {f"{name}.index": index, f"{name}.value": flat[index]}


def decoder(reader: TensorReader, layout: LoraLayout) -> Callable[..., Array]:
    """Gives rows of a delta's tensors as float32, in whichever encoding the file holds them."""
    shapes = dict(layout.shapes)

    def decode(name: str, rows: slice = ALL) -> Array:
        if f"{name}.index" in reader:
            begin, end, _ = rows.indices(shapes[name][0])
            width = prod(shapes[name][1:])
            index = reader.read(f"{name}.index")
            kept = slice(*np.searchsorted(index, (begin * width, end * width)))
            found = np.zeros((end - begin, *shapes[name][1:]), np.float32)
            values = reader.read(f"{name}.value", kept)
            found.reshape(-1)[index[kept] - begin * width] = values
            return found
        raw = reader.read(name, rows)
        if raw.dtype == np.int8:
            scale: Array = reader.read(f"{name}.scale", rows)
            return raw.astype(np.float32) * scale[:, None]
        if raw.dtype == np.uint16:
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw

    return decode


def encoded(tensors: Iterator[tuple[str, Array]], fmt: DeltaFormat) -> Iterator[tuple[str, Raw]]:
    """All tensors of a delta as they travel, in their order."""
    for name, tensor in tensors:
        yield from fmt.encode(name, tensor).items()


def _to_bfloat16(tensor: Array) -> Raw:
    """The upper halves of float32 numbers, rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(tensor).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16)
