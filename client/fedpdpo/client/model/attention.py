"""Attention over packs by response: queries meet the keys of their own path only.

A prompt's keys and values are computed once and laid into the row of every response that has them.
transformers' models call this by the name BLOCKS with the pack as a keyword argument.
Shapes: T tokens of a pack, Q query heads, K key heads, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from fedpdpo.client.model.packing import Pack
from fedpdpo.client.model.products import MOST_SCORES, small_attention

#: The name of this attention in a transformers configuration.
BLOCKS = "fedpdpo_blocks"

_UNKNOWN = ("softcap", "s_aux", "head_mask")


def block_attention(
    _module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    pack: Pack,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention of a pack's tokens. Shapes: (1, Q, T, D), (1, K, T, D) twice -> (1, T, Q, D).

    Raises NotImplementedError for kinds of attention that it would compute wrongly.
    """
    for name in _UNKNOWN:
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    asked = _ask(query[0].transpose(0, 1), pack)
    keys, values = (_spread(x[0].transpose(0, 1), pack) for x in (key, value))
    mixed = []
    for block, q, k, v in zip(
        pack.blocks,
        torch.split(asked, [block.queries.numel() for block in pack.blocks]),
        *(torch.split(x, [block.keys.numel() for block in pack.blocks]) for x in (keys, values)),
        strict=True,
    ):
        rows = _of_block(
            q.unflatten(0, block.queries.shape).transpose(1, 2),
            k.unflatten(0, block.keys.shape).transpose(1, 2),
            v.unflatten(0, block.keys.shape).transpose(1, 2),
            block.mask if sliding_window is None else block.mask & (block.apart < sliding_window),
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        )
        mixed.append(rows.transpose(1, 2).flatten(0, 1))
    return _answer(torch.cat(mixed), pack)[None], None


def _of_block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    if query.device.type == "cpu" and query.shape[1] * mask.numel() <= MOST_SCORES:
        return small_attention(query, key, value, mask, scale)
    return F.scaled_dot_product_attention(
        query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


class _Spread(torch.autograd.Function):
    """Lays tokens out as the blocks' keys; the gradients of a token's copies add up."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        return tokens.index_select(0, pack.seen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        pack: Pack = ctx.pack
        summed = gradient.index_select(0, pack.places)
        if len(pack.repeats):
            copies = gradient.index_select(0, pack.repeats)
            summed.index_add_(0, pack.seen[pack.repeats], copies)
        return summed, None


class _Ask(torch.autograd.Function):
    """Lays tokens out as the blocks' queries; what a row ends in has no gradient."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        return tokens.index_select(0, pack.asked)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.pack.answers), None


class _Answer(torch.autograd.Function):
    """Takes each token's result from where it was asked."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, pack: Pack) -> Tensor:
        ctx.pack = pack
        return rows.index_select(0, pack.answers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        pack: Pack = ctx.pack
        rows = gradient.new_zeros(len(pack.asked), *gradient.shape[1:])
        return rows.index_copy_(0, pack.answers, gradient), None


_ask: Callable[..., Tensor] = _Ask.apply
_spread: Callable[..., Tensor] = _Spread.apply
_answer: Callable[..., Tensor] = _Answer.apply

AttentionInterface.register(BLOCKS, block_attention)
