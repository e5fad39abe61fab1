"""Held-out preference accuracy, margin and loss of a policy [9]."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from fedpdpo.client.model.objective import (
    accuracy,
    anchor_losses,
    combined_margin,
    explicit_margin,
    implicit_margin,
    pair_losses,
)
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.run import MethodSettings


@dataclass(frozen=True)
class Margins:
    """By how much the chosen answer's rewards are the higher ones: (P,) each, in the pairs' order.

    float64, on the CPU; the implicit ones with beta in them, the explicit ones without alpha.
    chosen_shift: log pi(chosen) - log pi_ref(chosen), in nats a token of the answer. Margins grow
    too where it falls, if rejected answers fall faster; a policy that falls far loses the language.
    """

    implicit: Tensor
    explicit: Tensor
    chosen_shift: Tensor

    def combined(self, method: MethodSettings) -> Tensor:
        """The margins of the combined reward, (P,)."""
        return combined_margin(self.implicit, self.explicit, alpha=method.alpha)


def margins(
    policy: Policy,
    pairs: PairSet,
    method: MethodSettings,
    *,
    personalized: Collection[bool] = (True,),
    advance: Callable[[int], None] = lambda _: None,
) -> list[Margins]:
    """Margins by the policy with its present LoRA, for each view: personalised or global."""
    found = {view: torch.zeros(3, len(pairs), dtype=torch.float64) for view in personalized}
    reference_margins, num_tokens = pairs.reference_margins, pairs.num_chosen_tokens
    with torch.no_grad():
        for batch, entering in pairs.packs(range(len(pairs)), device=policy.device):
            h = policy.hidden(batch, entering)
            numbers = list(batch.indices)
            reference = reference_margins[numbers].to(policy.device)
            for view, rows in found.items():
                scores = policy.scores(batch, h, personalized=view)
                implicit = implicit_margin(scores, reference, beta=method.beta)
                rows[0, numbers] = implicit.cpu().double()
                rows[1, numbers] = explicit_margin(scores).cpu().double()
                shift = scores.chosen_logps.cpu().double() - pairs.reference_logps[numbers, 0]
                rows[2, numbers] = shift / num_tokens[numbers]
            advance(len(numbers))
    return [Margins(*rows) for rows in found.values()]


def evaluate(
    policy: Policy,
    pairs: PairSet,
    method: MethodSettings,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[Metrics, Metrics]:
    """Measure the policy with its present LoRA: as the global model and personalised.

    Where it has no private parts the two are one and are computed once.
    """
    views = (False, True) if policy.is_personal else (False,)
    found = margins(policy, pairs, method, personalized=views, advance=advance)
    measured = [_metrics(one, pairs, method) for one in found]
    return measured[0], measured[-1]


def _metrics(found: Margins, pairs: PairSet, method: MethodSettings) -> Metrics:
    combined = found.combined(method)
    losses = pair_losses(
        found.implicit, found.explicit, alpha=method.reward_weight, objective=method.objective
    )
    num_tokens = pairs.num_chosen_tokens
    chosen_logps = found.chosen_shift * num_tokens + pairs.reference_logps[:, 0]
    losses = losses + anchor_losses(chosen_logps, num_tokens, anchor=method.anchor)
    return Metrics(
        implicit_accuracy=accuracy(found.implicit),
        explicit_accuracy=accuracy(found.explicit),
        combined_accuracy=accuracy(combined),
        margin=float(combined.mean()),
        loss=float(losses.mean()),
        chosen_shift=float(found.chosen_shift.mean()),
    )
