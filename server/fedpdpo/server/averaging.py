"""The aggregation rule: theta' = theta + eta * sum_i w_i d_i, with w_i = n_i / sum_j n_j.

FedAvg over LoRA deltas, equation [8] of docs/method.md. The adapter is made window by window of its
tensors; for each window the deltas are read from disk one after another and summed in float64 in
the order given, which is that of the clients' ids and not of arrival, so that it gives the same
bits. w_i has a factor less than 1 for a delta that was trained from an older adapter. The
memory needed is one window, however large the adapter and however many clients there are, and no
more than one file is open at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from fedpdpo.common.encoding import decoder
from fedpdpo.common.errors import BadPayload
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import Array, TensorReader

#: Numbers in a window, unless one tensor has more: 32 MiB as float64.
_WINDOW = 2**22


@dataclass(frozen=True)
class SpooledDelta:
    """A delta on disk and what it weighs: its pairs, less where its adapter was old."""

    path: Path
    weight: float


def initial_adapter(layout: LoraLayout, *, seed: int) -> Iterator[tuple[str, Array]]:
    """The first adapter: A uniform in +-1/sqrt(fan_in), B zero, so that LoRA adds nothing yet."""
    rng = np.random.default_rng(seed)
    for name, shape in layout.shapes:
        if name.endswith(".lora_B.weight"):
            yield name, np.zeros(shape, np.float32)
        else:
            bound = shape[1] ** -0.5
            yield name, rng.uniform(-bound, bound, shape).astype(np.float32)


def averaged(
    adapter: Path, deltas: Sequence[SpooledDelta], layout: LoraLayout, *, server_lr: float
) -> Iterator[tuple[str, Array]]:
    """The next adapter from the present one and the deltas in their order; without any, the same.

    Gives its tensors by name in the layout's order. Raises BadPayload where one is not finite.
    """
    total_weight = sum(delta.weight for delta in deltas) or 1.0
    present = TensorReader(adapter)
    for names in _windows(layout):
        sums = {name: np.zeros(shape, np.float64) for name, shape in names.items()}
        for delta in deltas:
            read = decoder(TensorReader(delta.path), layout)
            for name, total in sums.items():
                weighted = read(name).astype(np.float64)
                weighted *= delta.weight
                total += weighted
        for name, total in sums.items():
            total /= total_weight
            total *= server_lr
            total += present.read(name)
            with np.errstate(over="ignore"):
                following = total.astype(np.float32)
            if not np.isfinite(following).all():
                raise BadPayload(f"averaging made {name} infinite; lower --server-lr")
            yield name, following


def _windows(layout: LoraLayout) -> Iterator[dict[str, tuple[int, ...]]]:
    """The layout's tensors in its order, in groups of at most _WINDOW numbers."""
    window: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in layout.shapes:
        if window and size + prod(shape) > _WINDOW:
            yield window
            window, size = {}, 0
        window[name] = shape
        size += prod(shape)
    yield window
