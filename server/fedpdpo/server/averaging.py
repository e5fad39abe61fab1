"""The aggregation rule: theta' = theta + eta * sum_i w_i d_i, with w_i = n_i / sum_j n_j.

FedAvg over LoRA deltas, equation [8] of docs/method.md. Deltas are read from disk one after another
and summed in float64 in the order of the clients' ids, so the result has the same bits whatever the
order of arrival. The memory needed is one adapter, its sum in float64 and one delta, however many
clients there are: no more than one delta's file is open at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file

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
    present = load_file(adapter)
    weighted = {name: np.zeros(theta.shape, np.float64) for name, theta in present.items()}
    for _, delta in sorted(deltas.items()):
        with safe_open(delta.path, framework="numpy") as file:
            for name, total in weighted.items():
                total += delta.num_pairs * file.get_tensor(name).astype(np.float64)
    with np.errstate(over="ignore"):
        for name, total in weighted.items():
            step = server_lr * (total / max(total_pairs, 1))
            present[name] = (present[name] + step).astype(np.float32)
            if not np.isfinite(present[name]).all():
                raise BadPayload(f"averaging made {name} infinite; lower --server-lr")
    return present


def check_finite(path: Path) -> None:
    """Raise BadPayload, naming the tensor, where a value is NaN or infinite."""
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            if not np.isfinite(file.get_tensor(name)).all():
                raise BadPayload(f"the payload's {name} holds NaN or infinity")
