"""Rewards and losses. Numbers in brackets are the equations of docs/method.md.

Shapes: P pairs. Log-probabilities are sums over a response's tokens, in nats.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairScores:
    """What a policy says of P pairs: log-probabilities and explicit rewards, each (P,)."""

    chosen_logps: Tensor
    rejected_logps: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def implicit_margin(scores: PairScores, reference_margin: Tensor, *, beta: float) -> Tensor:
    """r_imp(chosen) - r_imp(rejected) [5].

    `reference_margin` is log pi_ref(chosen) - log pi_ref(rejected), (P,). Gives (P,).
    """
    return beta * (scores.chosen_logps - scores.rejected_logps - reference_margin)


def explicit_margin(scores: PairScores) -> Tensor:
    """r_exp(chosen) - r_exp(rejected) [6]. Gives (P,)."""
    return scores.chosen_rewards - scores.rejected_rewards


def combined_margin(implicit: Tensor, explicit: Tensor, *, alpha: float) -> Tensor:
    """The margin of the combined reward [7]. Shapes: (P,), (P,) -> (P,)."""
    return implicit + alpha * explicit


def pair_losses(
    implicit: Tensor,
    explicit: Tensor,
    *,
    alpha: float,
    objective: Literal["combined", "separate"],
) -> Tensor:
    """The loss of each pair [7], in nats. Shapes: (P,), (P,) -> (P,).

    `combined` is Bradley-Terry on the combined reward; `separate` is the DPO loss plus alpha times
    the reward model's loss.
    """
    if objective == "combined":
        return -F.logsigmoid(combined_margin(implicit, explicit, alpha=alpha))
    return -F.logsigmoid(implicit) - alpha * F.logsigmoid(explicit)


def anchor_losses(chosen_logps: Tensor, num_tokens: Tensor, *, anchor: float) -> Tensor:
    """What the anchor adds to each pair's loss [7]: its weight times the mean loss of a token.

    `num_tokens` are those of the chosen answers. Shapes: (P,), (P,) -> (P,), in nats.
    """
    return -anchor * chosen_logps / num_tokens


def accuracy(margins: Tensor) -> float:
    """The share of pairs ranked right [9]; a tie counts as half. Shape: (P,)."""
    return float(((margins > 0).double() + 0.5 * (margins == 0).double()).mean())
