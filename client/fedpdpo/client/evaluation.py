"""Held-out preference accuracy, margin and loss of a policy [9]."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fedpdpo.client.objective import (
    accuracy,
    combined_margin,
    explicit_margin,
    implicit_margin,
    pair_losses,
)
from fedpdpo.client.pairset import PairSet
from fedpdpo.client.policy import Policy
from fedpdpo.common.run import MethodSettings


@dataclass(frozen=True)
class Metrics:
    """Means over pairs; the field names are those of the wire's PreferenceMetrics."""

    implicit_accuracy: float
    explicit_accuracy: float
    combined_accuracy: float
    margin: float
    loss: float


def evaluate(
    policy: Policy,
    pairs: PairSet,
    method: MethodSettings,
    *,
    personalized: bool,
    advance: Callable[[int], None] = lambda _: None,
) -> Metrics:
    """Measure the policy with its present LoRA: the client's own, or the global model."""
    implicit, explicit = [], []
    with torch.no_grad():
        for batch, entering in pairs.packs(range(len(pairs)), device=policy.device):
            scores = policy.scores(batch, entering, personalized=personalized)
            reference = pairs.reference_margins[list(batch.indices)].to(policy.device)
            implicit.append(implicit_margin(scores, reference, beta=method.beta).cpu())
            explicit.append(explicit_margin(scores).cpu())
            advance(len(batch.indices))
    implicit_all, explicit_all = torch.cat(implicit).double(), torch.cat(explicit).double()
    combined = combined_margin(implicit_all, explicit_all, alpha=method.alpha)
    losses = pair_losses(implicit_all, explicit_all, alpha=method.alpha, objective=method.objective)
    return Metrics(
        implicit_accuracy=accuracy(implicit_all),
        explicit_accuracy=accuracy(explicit_all),
        combined_accuracy=accuracy(combined),
        margin=float(combined.mean()),
        loss=float(losses.mean()),
    )
