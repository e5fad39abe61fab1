"""Attention over small blocks by plain products, and the faster of a CPU's two float32 products.

Shapes: S rows, Q query heads, K key heads, N queries, M keys, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Up to so many scores plain products are quicker on a CPU than torch's fused attention, whose
#: backward pass costs the more the smaller its blocks are.
MOST_SCORES = 2**18

#: How far a product of float32 numbers may be off, as a share of its norm; MKL's are by 2.5e-7.
_EXACT = 1e-6


def prefer_onednn() -> bool:
    """Let oneDNN compute this process's float32 products if it does so exactly; gives whether.

    On processors that are not Intel's it has about twice MKL's speed. The switch that hands them
    over also lets it round to bfloat16 where the processor has units for that, so it is set back
    where a product turns out to be rounded.
    """
    onednn: Any = torch.backends.mkldnn
    switch: Any = getattr(onednn, "matmul", None)
    if not hasattr(switch, "fp32_precision") or not onednn.is_available():
        return False  # before torch 2.9, or without oneDNN
    before = switch.fp32_precision
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(128, 512, generator=draw, dtype=torch.float32) for _ in range(2))
    exact = one.double() @ other.double().T
    switch.fp32_precision = "bf16"
    off = float((one @ other.T - exact).norm() / exact.norm())
    if off > _EXACT:
        switch.fp32_precision = before
    return off <= _EXACT


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T) v over the keys that the mask allows; the shares are computed twice."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.scale = scale
        heads = key.shape[1]
        shares = _shares(_folded(query, heads), key, mask, scale)
        return _unfolded(shares @ value, query.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        heads = key.shape[1]
        asked, gradient = _folded(query, heads), _folded(gradients[0], heads)
        shares = _shares(asked, key, mask, ctx.scale)
        by_value = shares.transpose(-1, -2) @ gradient
        by_score = (gradient @ value.transpose(-1, -2)).mul_(shares)
        by_score.sub_(shares * by_score.sum(-1, keepdim=True)).mul_(ctx.scale)
        by_query = _unfolded(by_score @ key, query.shape[1])
        return by_query, by_score.transpose(-1, -2) @ asked, by_value, None, None


def _folded(rows: Tensor, heads: int) -> Tensor:
    """The query heads of a key head one after another: (S, Q, N, D) -> (S, K, Q/K N, D)."""
    count, _, length, width = rows.shape
    return rows.reshape(count, heads, -1, length, width).flatten(2, 3)


def _unfolded(rows: Tensor, heads: int) -> Tensor:
    """(S, K, Q/K N, D) -> (S, Q, N, D)."""
    count, key_heads, _, width = rows.shape
    return rows.reshape(count, key_heads, heads // key_heads, -1, width).flatten(1, 2)


def _shares(asked: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    """What each query takes of each key, (S, K, Q/K N, M); the softmax is at least float32."""
    exact = torch.promote_types(asked.dtype, torch.float32)
    scores = (asked @ key.transpose(-1, -2)).to(exact).mul_(scale)
    by_head = scores.view(*scores.shape[:2], -1, *mask.shape[-2:])
    by_head.masked_fill_(~mask[:, :, None], torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(asked.dtype)


#: Attention of (S, Q, N, D), (S, K, M, D), (S, K, M, D) by a mask (S, 1, N, M): (S, Q, N, D).
small_attention: Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] = _Attention.apply
