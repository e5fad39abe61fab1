"""How much one delta may move the others: its norm, beside those of its round.

A delta of a norm far over the median would carry the mean wherever it wants. What is over the bound
is scaled down to it (norm clipping, Sun et al. 2019, arXiv:1911.07963) or counts for nothing. With
less than half of the deltas hostile the median is that of an honest one, or less.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fedpdpo.common.encoding import decoder
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import TensorReader
from fedpdpo.server.averaging import windows

#: With fewer deltas no one of them is far from the others.
_LEAST = 3

_BLOCK = 2**16


def norm_of(delta: Path, layout: LoraLayout) -> float:
    """The Euclidean norm of a delta on disk, over all its tensors, summed in float64."""
    read = decoder(TensorReader(delta), layout)
    total = 0.0
    for window in windows(layout):
        for name, rows, _ in window:
            flat = read(name, rows).reshape(-1)
            for begin in range(0, flat.size, _BLOCK):
                exact = flat[begin : begin + _BLOCK].astype(np.float64)
                total += float(np.dot(exact, exact))
    return float(total**0.5)


def scales(
    norms: Sequence[float], *, bound: float, over: Literal["clip", "refuse"]
) -> tuple[list[float], float]:
    """What each delta is multiplied by: 1 within `bound` times the median norm, else less, or 0.

    Gives with them the greatest norm that counts whole. A bound of 0 bounds nothing.
    """
    most = bound * statistics.median(norms) if len(norms) >= _LEAST else 0.0
    if most == 0:
        return [1.0] * len(norms), float("inf")
    clipped = [1.0 if norm <= most else most / norm for norm in norms]
    return [scale if over == "clip" or scale == 1 else 0.0 for scale in clipped], most
