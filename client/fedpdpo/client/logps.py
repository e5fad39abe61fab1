"""Log-probabilities of response tokens without ever holding all logits.

Shapes: N response tokens, H hidden size, V vocabulary, S responses.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedpdpo.client.private import PrivateHead

_SLICE = 256


def response_logps(
    z: Tensor, head: PrivateHead, targets: Tensor, owner: Tensor, *, num_responses: int
) -> Tensor:
    """Log pi(y|x): the sum over each response's tokens, in nats.

    `z` (N, H) are the states that predict `targets` (N,); `owner` (N,) numbers their responses.
    Gives (S,). The head is applied to slices of positions and again in the backward pass, so at
    most slice x V logits exist at a time.
    """
    pieces = []
    for start in range(0, len(targets), _SLICE):
        piece = slice(start, start + _SLICE)
        arguments: tuple[Any, ...] = (z[piece], head, targets[piece])
        if torch.is_grad_enabled():
            pieces.append(checkpoint(_token_logps, *arguments, use_reentrant=False))
        else:
            pieces.append(_token_logps(*arguments))
    tokens = torch.cat(pieces)
    return tokens.new_zeros(num_responses).index_add(0, owner, tokens)


def _token_logps(z: Tensor, head: PrivateHead, targets: Tensor) -> Tensor:
    return -F.cross_entropy(head(z).float(), targets, reduction="none")
