"""The local step of a round: personalised DPO from the global LoRA [7, 8]."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedpdpo.client.model.objective import (
    anchor_losses,
    combined_margin,
    explicit_margin,
    implicit_margin,
    pair_losses,
)
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.outcome import TrainingReport
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.client.training.pairset import PairSet
from fedpdpo.client.training.schedule import Step, rate_factor, steps_of_round
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """How far a round has come: steps done, and what its last epoch has added up.

    `dropped` counts the steps whose gradient was not finite.
    """

    steps: int = 0
    loss: float = 0.0
    right: float = 0.0
    pairs: int = 0
    dropped: int = 0
    seconds: float = 0.0

    def report(self) -> TrainingReport:
        """What the whole round comes to; the loss is NaN where every step was dropped."""
        of = self.pairs or math.nan
        return TrainingReport(self.loss / of, self.right / of, self.steps, self.seconds)


BEGINNING = Point()


def train_round(
    policy: Policy,
    pairs: PairSet,
    run: Run,
    optimizer: LocalOptimizer,
    *,
    seed: int,
    round_number: int,
    crew: Crew | None = None,
    centre: Sequence[Tensor] | None = None,
    start: Point = BEGINNING,
    after_step: Callable[[Point], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
) -> Point:
    """Train a round from the policy's present LoRA, or go on with it from `start`.

    `centre` are the LoRA matrices that the method's proximal term pulls to, those of the round's
    beginning by default. The order of pairs follows from seed and round. With a crew of several
    processes each of them must call this alike. `after_step` is called after each step with how far
    the round has come; with that, parameters and moments the round can be gone on with.
    """
    method = run.method
    crew = crew or Crew()
    if not start.steps and method.lora_moments == "restart":
        optimizer.forget_shared()
    if centre is None:
        centre = [matrix.detach().clone() for matrix in policy.lora()]
    steps = steps_of_round(method, num_pairs=len(pairs), seed=seed, round_number=round_number)
    advance(sum(len(step.pairs) for step in steps[: start.steps]))
    point = start
    for number in range(start.steps, len(steps)):
        begun = time.perf_counter()
        done = round_number - 1 + (number + 0.5) / len(steps)
        rate = rate_factor(method, rounds_done=done, num_rounds=run.num_rounds)
        point = _step(policy, pairs, run, optimizer, crew, steps[number], rate, centre, point)
        point = replace(point, seconds=point.seconds + time.perf_counter() - begun)
        advance(len(steps[number].pairs))
        after_step(point)
    optimizer.zero()
    _enable(policy, shared=True, private=True)
    return point


def num_pair_visits(run: Run, num_pairs: int) -> int:
    """How many pairs a local round goes over, counting repeats."""
    steps = steps_of_round(run.method, num_pairs=num_pairs, seed=0, round_number=1)
    return sum(len(step.pairs) for step in steps)


def _step(
    policy: Policy,
    pairs: PairSet,
    run: Run,
    optimizer: LocalOptimizer,
    crew: Crew,
    step: Step,
    rate: float,
    centre: Sequence[Tensor],
    point: Point,
) -> Point:
    method = run.method
    _enable(policy, shared=step.shared, private=step.private)
    optimizer.zero()
    loss = right = 0.0
    for batch, entering in pairs.packs(crew.share(step.pairs), device=policy.device):
        scores = policy.scores(batch, policy.hidden(batch, entering))
        reference = pairs.reference_margins[list(batch.indices)].to(policy.device)
        implicit = implicit_margin(scores, reference, beta=method.beta)
        explicit = explicit_margin(scores)
        losses = pair_losses(
            implicit, explicit, alpha=method.reward_weight, objective=method.objective
        )
        if method.anchor:
            losses = losses + anchor_losses(
                scores.chosen_logps, batch.num_chosen_tokens, anchor=method.anchor
            )
        (losses.sum() / len(step.pairs)).backward()  # type: ignore[no-untyped-call]
        combined = combined_margin(implicit, explicit, alpha=method.alpha).detach()
        loss += float(losses.detach().sum())
        right += float((combined > 0).sum() + 0.5 * (combined == 0).sum())
    crew.add_up(optimizer.gradients())
    loss, right = crew.sum(loss, right)
    if method.proximal:
        optimizer.pull(centre, method.proximal)
    norm = optimizer.clip(method.max_grad_norm)
    finite = math.isfinite(norm) and math.isfinite(loss)
    if finite:
        optimizer.step(rate_factor=rate)
    else:
        log.warning(fields("step_dropped", step=point.steps + 1, loss=loss, gradient_norm=norm))
    point = replace(point, steps=point.steps + 1, dropped=point.dropped + (not finite))
    if not finite or not step.last_epoch:
        return point
    return replace(
        point,
        loss=point.loss + loss,
        right=point.right + right,
        pairs=point.pairs + len(step.pairs),
    )


def _enable(policy: Policy, *, shared: bool, private: bool) -> None:
    for parameter in policy.lora():
        parameter.requires_grad_(shared)
    for part in policy.private.trained().values():
        part.requires_grad_(private)
