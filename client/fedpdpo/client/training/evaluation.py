"""Held-out preference accuracy, margin and loss of a policy [9]."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedpdpo.client.model.objective import (
    accuracy,
    combined_margin,
    explicit_margin,
    implicit_margin,
    pair_losses,
)
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.run import MethodSettings


@dataclass
class _Margins:
    implicit: list[Tensor] = field(default_factory=list)
    explicit: list[Tensor] = field(default_factory=list)


def evaluate(
    policy: Policy,
    pairs: PairSet,
    method: MethodSettings,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Metrics, Metrics]:
    """Measure the policy with its present LoRA: as the global model and personalised."""
    views = {False: _Margins(), True: _Margins()}
    with torch.no_grad():
        for batch, entering in pairs.packs(range(len(pairs)), device=policy.device):
            h = policy.hidden(batch, entering)
            reference = pairs.reference_margins[list(batch.indices)].to(policy.device)
            for personalized, margins in views.items():
                scores = policy.scores(batch, h, personalized=personalized)
                implicit = implicit_margin(scores, reference, beta=method.beta)
                margins.implicit.append(implicit.cpu())
                margins.explicit.append(explicit_margin(scores).cpu())
            advance(len(batch.indices))
    return _metrics(views[False], method), _metrics(views[True], method)


def _metrics(margins: _Margins, method: MethodSettings) -> Metrics:
    implicit, explicit = torch.cat(margins.implicit).double(), torch.cat(margins.explicit).double()
    combined = combined_margin(implicit, explicit, alpha=method.alpha)
    losses = pair_losses(implicit, explicit, alpha=method.alpha, objective=method.objective)
    return Metrics(
        implicit_accuracy=accuracy(implicit),
        explicit_accuracy=accuracy(explicit),
        combined_accuracy=accuracy(combined),
        margin=float(combined.mean()),
        loss=float(losses.mean()),
    )
