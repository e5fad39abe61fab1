"""Averages what LoRA adds, the products B A, and cuts the mean to LoRA's rank again.

The mean of A and B apart is not the mean of their products; this rule is exact but for the cut,
which is the best that the rank allows (Eckart and Young 1936). A layer's matrices of all clients
are in memory at a time. Legend: C clients, R rank, I and O the layer's widths.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedpdpo.common.encoding import decoder
from fedpdpo.common.errors import BadPayload
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.tensorfile import Array, TensorReader
from fedpdpo.server.averaging import Exact, SpooledDelta

_A, _B = ".lora_A.weight", ".lora_B.weight"


def averaged_products(
    adapter: Path, deltas: Sequence[SpooledDelta], layout: LoraLayout, *, server_lr: float
) -> Iterator[tuple[str, Array]]:
    """The next adapter: (1 - eta) B A + eta sum_i w_i (B + b_i) (A + a_i) of each layer, cut to R.

    Without any delta it is the same adapter. Gives its tensors by name in the layout's order.
    Raises BadPayload where one is not finite, or LoRA's matrices do not come in pairs.
    """
    layers = layers_of(layout)
    present = TensorReader(adapter)
    counting = [delta for delta in deltas if delta.scale]
    total = sum(delta.weight for delta in counting)
    readers = [decoder(TensorReader(delta.path), layout) for delta in counting]
    if not counting:
        yield from ((name, present.read(name)) for name, _ in layout.shapes)
        return
    for a_name, b_name in layers:
        a, b = (present.read(name).astype(np.float64) for name in (a_name, b_name))
        rows, columns = [a], [(1 - server_lr) * b]
        for delta, read in zip(counting, readers, strict=True):
            rows.append(a + delta.scale * read(a_name).astype(np.float64))
            own = b + delta.scale * read(b_name).astype(np.float64)
            columns.append(server_lr * delta.weight / total * own)
        next_a, next_b = _cut(np.concatenate(rows), np.concatenate(columns, axis=1), like=a)
        for name, exact in ((a_name, next_a), (b_name, next_b)):
            with np.errstate(over="ignore"):
                following = exact.astype(np.float32)
            if not np.isfinite(following).all():
                raise BadPayload(f"averaging made {name} infinite; lower --server-lr")
            yield name, following


def layers_of(layout: LoraLayout) -> list[tuple[str, str]]:
    """Each layer's two names, A and B. Raises BadPayload where matrices are not such pairs."""
    shapes = dict(layout.shapes)
    names = list(shapes)
    layers = list(zip(names[::2], names[1::2], strict=False))
    for a, b in layers:
        if not a.endswith(_A) or b != a.removesuffix(_A) + _B or shapes[a][0] != shapes[b][1]:
            raise BadPayload(f"{a} and {b} are not the two matrices of a layer")
    if len(names) % 2:
        raise BadPayload(f"{names[-1]} has no other matrix")
    return layers


def _cut(rows: Exact, columns: Exact, *, like: Exact) -> tuple[Exact, Exact]:
    """The matrices A (R, I) and B (O, R) whose product is nearest to columns @ rows.

    Shapes: rows (C R, I), columns (O, C R). A's rows are orthogonal, each as long as those of
    `like` on average, so that LoRA trains on at the pace that it has had. Raises BadPayload where
    there is nothing finite to cut.
    """
    rank = len(like)
    try:
        left, left_factor = np.linalg.qr(columns)
        right, right_factor = np.linalg.qr(rows.T)
        u, sizes, v = np.linalg.svd(left_factor @ right_factor.T, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise BadPayload(f"the mean of the products cannot be cut to a rank: {error}") from error
    length = float(np.linalg.norm(like) / rank**0.5) or 1.0
    kept = min(rank, len(sizes))
    a, b = like.copy(), np.zeros((len(columns), rank))
    a[:kept] = length * (right @ v[:kept].T).T
    b[:, :kept] = left @ (u[:, :kept] * sizes[:kept]) / length
    return a, b
