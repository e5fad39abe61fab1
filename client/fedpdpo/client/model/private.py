"""The private parts of a client: bottleneck adapter, LLM head, explicit reward head.

Shapes: U states, S responses, H hidden size, V vocabulary, M bottleneck width, R head rank. Numbers
in brackets are the equations of docs/method.md. All parameters that train are float32.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpdpo.client.model.packing import Pack
from fedpdpo.common.run import MethodSettings


class Bottleneck(nn.Module):
    """z = h + U gelu(D h) [2]; U is zero at the start, so that z is h."""

    def __init__(self, hidden: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = hidden**-0.5
        down = torch.empty(width, hidden).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(torch.zeros(hidden, width))

    def forward(self, h: Tensor) -> Tensor:
        """Shapes: (..., H) -> (..., H)."""
        return h + F.linear(F.gelu(F.linear(h, self.down)), self.up)


class PrivateHead(nn.Module):
    """The LLM head W [3]: trained whole, by a low-rank addition, or not at all.

    Where it is not trained whole the pretrained weight stays as it is given, in its precision.
    """

    def __init__(
        self,
        pretrained: Tensor,
        kind: Literal["full", "lowrank", "frozen"],
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        weight = pretrained.detach()
        if kind == "full":
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        self.kind = kind
        self.weight = nn.Parameter(weight, requires_grad=kind == "full")
        vocabulary, hidden = weight.shape
        self.a: nn.Parameter | None = None
        self.b: nn.Parameter | None = None
        if kind == "lowrank":
            bound = hidden**-0.5
            a = torch.empty(rank, hidden).uniform_(-bound, bound, generator=generator)
            self.a = nn.Parameter(a)
            self.b = nn.Parameter(torch.zeros(vocabulary, rank))

    def forward(self, z: Tensor) -> Tensor:
        """Logits in z's precision. Shapes: (..., H) -> (..., V)."""
        logits = F.linear(z.to(self.weight.dtype), self.weight).to(z.dtype)
        if self.a is not None and self.b is not None:
            logits = logits + F.linear(F.linear(z, self.a), self.b)
        return logits


def pooled(states: Tensor, pack: Pack) -> Tensor:
    """What the reward head reads of each response [6]: the last of its states plus their mean.

    A response's states are those that predict its tokens. Shapes: (U, H) -> (S, H).
    """
    counts = torch.bincount(pack.owner, minlength=len(pack.paths))
    sums = states.new_zeros(len(pack.paths), states.shape[1])
    sums = sums.index_add(0, pack.owner, states[pack.state_of])
    last = pack.state_of[counts.cumsum(0) - 1]
    return states[last] + sums / counts[:, None]


class RewardHead(nn.Module):
    """r_exp = v . pooled z [6], from zero; a bias would cancel in every margin: there is none."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(hidden))

    def forward(self, z: Tensor) -> Tensor:
        """Shapes: (S, H) -> (S,)."""
        return z @ self.v


class PrivateParts(nn.Module):
    """All that a client keeps to itself. Begins as the plain model with zero reward."""

    def __init__(self, pretrained_head: Tensor, method: MethodSettings, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        hidden = pretrained_head.shape[1]
        self.bottleneck = (
            Bottleneck(hidden, method.bottleneck, generator) if method.bottleneck else None
        )
        self.head = PrivateHead(pretrained_head, method.head, method.head_rank, generator)
        self.reward = RewardHead(hidden) if method.reward_head else None

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, though it may rest in a part of a round: not a pretrained W."""
        found = dict(self.named_parameters())
        if self.head.kind != "full":
            del found["head.weight"]
        return found

    def features(self, h: Tensor) -> Tensor:
        """Z from h. Shapes: (..., H) -> (..., H)."""
        return h if self.bottleneck is None else self.bottleneck(h)
