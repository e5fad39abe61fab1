"""The aggregation rule: theta' = theta + eta * sum_i w_i d_i, with w_i = n_i / sum_j n_j.

FedAvg over LoRA deltas, equation [8] of docs/method.md. Deltas are read from disk tensor by
tensor and summed in float64 in the order of the clients' ids, so the result has the same bits
whatever the order of arrival, and the memory needed is one adapter and one tensor.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from fedpdpo.common.errors import BadPayload
from fedpdpo.common.layout import LoraLayout

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SpooledDelta:
    """A client's delta on disk and the number of pairs it was trained on."""

    path: Path
    num_pairs: int


def initial_adapter(layout: LoraLayout, *, seed: int) -> dict[str, Array]:
    """The first adapter: A uniform in +-1/sqrt(fan_in), B zero, so that LoRA adds nothing yet."""
    rng = np.random.default_rng(seed)
    adapter: dict[str, Array] = {}
    for name, shape in layout.shapes:
        if name.endswith(".lora_B.weight"):
            adapter[name] = np.zeros(shape, np.float32)
        else:
            bound = shape[1] ** -0.5
            adapter[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
    return adapter


def averaged(
    adapter: Path, deltas: Mapping[str, SpooledDelta], *, server_lr: float
) -> dict[str, Array]:
    """The next adapter from the present one and the deltas by client id; without any, the same.

    Raises BadPayload where the result is not finite.
    """
    total_pairs = sum(delta.num_pairs for delta in deltas.values())
    following: dict[str, Array] = {}
    with ExitStack() as opened, np.errstate(over="ignore"):
        present = opened.enter_context(safe_open(adapter, framework="numpy"))
        files = [
            (opened.enter_context(safe_open(delta.path, framework="numpy")), delta.num_pairs)
            for _, delta in sorted(deltas.items())
        ]
        for name in present.keys():  # noqa: SIM118 - a safetensors file is no mapping
            theta = present.get_tensor(name).astype(np.float64)
            weighted = np.zeros_like(theta)
            for file, num_pairs in files:
                weighted += num_pairs * file.get_tensor(name).astype(np.float64)
            step = server_lr * (weighted / total_pairs) if files else weighted
            following[name] = (theta + step).astype(np.float32)
            if not np.isfinite(following[name]).all():
                raise BadPayload(f"averaging made {name} infinite; lower --server-lr")
    return following


def check_finite(path: Path) -> None:
    """Raise BadPayload, naming the tensor, where a value is NaN or infinite."""
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            if not np.isfinite(file.get_tensor(name)).all():
                raise BadPayload(f"the payload's {name} holds NaN or infinity")
