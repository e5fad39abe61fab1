"""Log-probabilities of response tokens, over slices of the vocabulary.

Shapes: U states, N response tokens, S responses, H hidden size, V vocabulary, R head rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedpdpo.client.model.packing import Pack
from fedpdpo.client.model.private import PrivateHead

#: Logits that exist at a time, and the narrowest slice of the vocabulary: on a CPU a slice of the
#: head and its logits stay in the cache for both products. Widths are multiples of `_ALIGNED`: rows
#: that begin anywhere made the product up to twice as slow.
_LOGITS = {"cpu": 2**20}
_LOGITS_ELSEWHERE = 2**26
_LEAST_SLICE = 1024
_ALIGNED = 64

#: Up to so many shares of the softmax (256 MiB) are kept for the gradient of a head that trains;
#: where there are more, they are computed again.
_KEPT = 2**26


def response_logps(z: Tensor, head: PrivateHead, pack: Pack) -> Tensor:
    """Log pi(y|x) of a pack's responses: the sum over each one's tokens, in nats.

    `z` (U, H) are the states that predict. Gives (S,).
    """
    tokens = _token_logps(z, head.weight, head.a, head.b, pack.state_of, pack.targets)
    return tokens.new_zeros(len(pack.paths)).index_add(0, pack.owner, tokens)


class _TokenLogps(torch.autograd.Function):
    """log softmax(W z)[target] with W = weight + b a, over slices of the vocabulary.

    The softmax is accumulated slice by slice, and with it its product with W: that is the gradient
    by z up to factors known only in the backward pass, so a frozen head needs no second pass. The
    gradient of a trained head takes the shares themselves, as they were kept of each slice by the
    peak of that moment, or computed again. A head in bfloat16 takes states and shares in bfloat16;
    what is summed over the vocabulary and over slices is float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor,
        a: Tensor | None,
        b: Tensor | None,
        state_of: Tensor,
        targets: Tensor,
    ) -> Tensor:
        z = z.contiguous()
        low = None if a is None else z @ a.T
        peak = z.new_full((len(z), 1), -torch.inf)
        total = z.new_zeros(len(z), 1)
        needs_mean, trains_head, trains_a, trains_b = ctx.needs_input_grad[:4]
        trains_head |= trains_b
        keeps = needs_mean and trains_head and len(z) * len(weight) <= _KEPT
        kept: list[Tensor] = []
        mean = torch.zeros_like(z)
        mean_low = None if low is None else torch.zeros_like(low)
        for part in _slices(z, weight):
            logits = _logits(z, weight, low, b, part)
            higher = torch.maximum(peak, logits.amax(-1, keepdim=True))
            shrink = (peak - higher).exp_()
            shares = logits.sub_(higher).exp_()
            total.mul_(shrink).add_(shares.sum(-1, keepdim=True))
            if needs_mean:
                _add_product(mean.mul_(shrink), shares, weight[part])
            if b is not None and mean_low is not None and (needs_mean or trains_a):
                mean_low.mul_(shrink).addmm_(shares, b[part])
            peak = higher
            if keeps:
                kept += shares, higher
        normaliser = (peak + total.log())[:, 0]
        rounded = z.to(weight.dtype).to(z.dtype)
        of_target = (rounded[state_of] * weight[targets]).sum(-1)
        if low is not None and b is not None:
            of_target += (low[state_of] * b[targets]).sum(-1)
        mean.div_(total)
        if mean_low is not None:
            mean_low.div_(total)
        ctx.save_for_backward(z, weight, a, b, state_of, targets, normaliser, mean, mean_low, *kept)
        return of_target - normaliser[state_of]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (by_token,) = gradients
        z, weight, a, b, state_of, targets, normaliser, mean, mean_low, *kept = ctx.saved_tensors
        by_state = by_token.new_zeros(len(z)).index_add_(0, state_of, by_token)
        by_z = by_weight = by_a = by_b = None
        if ctx.needs_input_grad[0]:
            by_z = torch.zeros_like(z).addcmul_(mean, by_state[:, None], value=-1)
            by_z.index_add_(0, state_of, by_token[:, None] * weight[targets])
        if a is not None and b is not None:
            by_low = torch.zeros_like(mean_low).addcmul_(mean_low, by_state[:, None], value=-1)
            by_low.index_add_(0, state_of, by_token[:, None] * b[targets])
            by_a = by_low.T @ z
            if by_z is not None:
                by_z.addmm_(by_low, a)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            low = None if a is None else z @ a.T
            factor: Tensor = z if low is None or ctx.needs_input_grad[1] else low
            gradient = torch.empty_like(weight if ctx.needs_input_grad[1] else b)
            for number, part in enumerate(_slices(z, weight)):
                scale = -by_state[:, None]
                if kept:
                    shares, peak = kept[2 * number : 2 * number + 2]
                    scale = scale * (peak - normaliser[:, None]).exp_()
                else:
                    shares = _logits(z, weight, low, b, part).sub_(normaliser[:, None]).exp_()
                torch.mm(shares.T, factor * scale, out=gradient[part])
            gradient.index_add_(0, targets, by_token[:, None] * factor[state_of])
            by_weight, by_b = (gradient, None) if ctx.needs_input_grad[1] else (None, gradient)
        return by_z, by_weight, by_a, by_b, None, None


def _slices(z: Tensor, weight: Tensor) -> list[slice]:
    most = _LOGITS.get(z.device.type, _LOGITS_ELSEWHERE)
    width = max(_LEAST_SLICE, most // len(z) // _ALIGNED * _ALIGNED)
    return [slice(start, start + width) for start in range(0, len(weight), width)]


def _logits(z: Tensor, weight: Tensor, low: Tensor | None, b: Tensor | None, part: slice) -> Tensor:
    """A slice of the logits in z's precision, (U, width), whatever the weight's is."""
    logits = (z.to(weight.dtype) @ weight[part].T).to(z.dtype)
    return logits if low is None or b is None else logits.addmm_(low, b[part].T)


def _add_product(total: Tensor, shares: Tensor, weight: Tensor) -> None:
    """Add shares times weight to a total, whichever precision the weight is in."""
    if weight.dtype == total.dtype:
        total.addmm_(shares, weight)
    else:
        total.add_(shares.to(weight.dtype) @ weight)


_token_logps: Callable[..., Tensor] = _TokenLogps.apply
