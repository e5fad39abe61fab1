"""The aggregation rule: theta' = theta + eta * sum_i w_i d_i, with w_i = n_i / sum_j n_j.

FedAvg over LoRA deltas, equation [8] of docs/method.md. The adapter is made window by window of
rows of its tensors; for each window the deltas are read from disk one after another and summed in
float64 in the order given, which is that of the clients' ids and not of arrival, so that it gives
the same bits. w_i has a factor less than 1 for a delta that was trained from an older adapter. The
memory needed is that of two windows, however large the adapter and however many clients there are.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpdpo.common.encoding import decoder
from fedpdpo.common.errors import BadPayload
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import Array, TensorReader

Exact = NDArray[np.float64]

#: A tensor's name, some of its rows, and their shape.
Piece = tuple[str, slice, tuple[int, ...]]

#: Numbers in a window, unless one row has more: 8 MiB as float64.
_WINDOW = 2**20

#: Windows worked on at once, and numbers that each works on at a time.
_AT_ONCE = 2
_BLOCK = 2**16


@dataclass(frozen=True)
class SpooledDelta:
    """A delta on disk, what it weighs, and what it is multiplied by.

    It weighs as much as its pairs, less where its adapter was old.
    """

    path: Path
    weight: float
    scale: float = 1.0


def initial_adapter(layout: LoraLayout, *, seed: int) -> Iterator[tuple[str, Array]]:
    """The first adapter: A uniform in +-1/sqrt(fan_in), B zero, so that LoRA adds nothing yet."""
    rng = np.random.default_rng(seed)
    for window in windows(layout):
        for name, _, shape in window:
            if name.endswith(".lora_B.weight"):
                yield name, np.zeros(shape, np.float32)
            else:
                bound = shape[1] ** -0.5
                yield name, rng.uniform(-bound, bound, shape).astype(np.float32)


def averaged(
    adapter: Path, deltas: Sequence[SpooledDelta], layout: LoraLayout, *, server_lr: float
) -> Iterator[tuple[str, Array]]:
    """The next adapter from the present one and the deltas in their order; without any, the same.

    Gives its tensors by name in the layout's order, a large one in pieces. Raises BadPayload where
    one is not finite.
    """
    present = TensorReader(adapter)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        ahead: deque[Future[list[tuple[str, Array]]]] = deque()
        for window in windows(layout):
            ahead.append(pool.submit(_window, present, deltas, layout, window, server_lr))
            if len(ahead) == _AT_ONCE:
                yield from ahead.popleft().result()
        for last in ahead:
            yield from last.result()


def _window(
    present: TensorReader,
    deltas: Sequence[SpooledDelta],
    layout: LoraLayout,
    window: Sequence[Piece],
    server_lr: float,
) -> list[tuple[str, Array]]:
    """These pieces of the next adapter."""
    counting = [delta for delta in deltas if delta.scale]
    total_weight = sum(delta.weight for delta in counting) or 1.0
    sums = [np.zeros(shape, np.float64) for _, _, shape in window]
    for delta in counting:
        read = decoder(TensorReader(delta.path), layout)
        for (name, rows, _), total in zip(window, sums, strict=True):
            for part, values in _blocks(total, read(name, rows)):
                part += values.astype(np.float64) * (delta.weight * delta.scale)
    done = []
    for (name, rows, _), total in zip(window, sums, strict=True):
        following = present.read(name, rows)
        for part, values in _blocks(total, following):
            part /= total_weight
            part *= server_lr
            part += values
            with np.errstate(over="ignore"):
                values[:] = part
        if not np.isfinite(following).all():
            raise BadPayload(f"averaging made {name} infinite; lower --server-lr")
        done.append((name, following))
    return done


def _blocks(total: Exact, values: Array) -> Iterator[tuple[Exact, Array]]:
    """Two arrays of one shape in pieces that stay in the processor's cache, and can be changed."""
    flat, numbers = total.reshape(-1), values.reshape(-1)
    for begin in range(0, flat.size, _BLOCK):
        yield flat[begin : begin + _BLOCK], numbers[begin : begin + _BLOCK]


def windows(layout: LoraLayout) -> Iterator[list[Piece]]:
    """The layout in its order, in windows of at most _WINDOW numbers, or of one row."""
    window: list[Piece] = []
    size = 0
    for name, shape in layout.shapes:
        width = prod(shape[1:])
        for begin in range(0, shape[0], step := max(1, _WINDOW // width)):
            rows = slice(begin, min(begin + step, shape[0]))
            piece = (rows.stop - begin, *shape[1:])
            if window and size + prod(piece) > _WINDOW:
                yield window
                window, size = [], 0
            window.append((name, rows, piece))
            size += prod(piece)
    yield window
