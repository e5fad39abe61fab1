"""Rewards and losses: laws and worked numbers."""

import math

import pytest
import torch
from torch import tensor

from fedpdpo.client.model.objective import (
    PairScores,
    accuracy,
    combined_margin,
    explicit_margin,
    implicit_margin,
    pair_losses,
)

SCORES = PairScores(tensor([-10.0]), tensor([-14.0]), tensor([0.5]), tensor([0.2]))


def test_the_implicit_margin_is_beta_times_what_the_policy_gained_over_the_reference() -> None:
    assert implicit_margin(SCORES, tensor([1.0]), beta=0.1).item() == pytest.approx(0.3)


def test_the_combined_margin_adds_alpha_times_the_explicit_one() -> None:
    implicit, explicit = implicit_margin(SCORES, tensor([1.0]), beta=0.1), explicit_margin(SCORES)
    assert explicit.item() == pytest.approx(0.3)
    assert combined_margin(implicit, explicit, alpha=2.0).item() == pytest.approx(0.9)


def test_swapping_chosen_and_rejected_negates_both_margins() -> None:
    swapped = PairScores(tensor([-14.0]), tensor([-10.0]), tensor([0.2]), tensor([0.5]))
    reference = tensor([1.0])
    assert torch.equal(
        implicit_margin(swapped, -reference, beta=0.1),
        -implicit_margin(SCORES, reference, beta=0.1),
    )
    assert torch.equal(explicit_margin(swapped), -explicit_margin(SCORES))


def test_the_loss_at_margin_zero_is_ln_2() -> None:
    zero = tensor([0.0])
    assert pair_losses(zero, zero, alpha=1.0, objective="combined").item() == pytest.approx(
        math.log(2)
    )
    assert pair_losses(zero, zero, alpha=0.5, objective="separate").item() == pytest.approx(
        1.5 * math.log(2)
    )


def test_the_combined_loss_is_bradley_terry_on_the_summed_rewards() -> None:
    loss = pair_losses(tensor([0.3]), tensor([0.3]), alpha=2.0, objective="combined").item()
    assert loss == pytest.approx(-math.log(1 / (1 + math.exp(-0.9))))


def test_the_separate_loss_is_dpo_plus_alpha_times_the_reward_models_loss() -> None:
    loss = pair_losses(tensor([0.3]), tensor([-0.4]), alpha=2.0, objective="separate").item()
    dpo, reward = math.log(1 + math.exp(-0.3)), math.log(1 + math.exp(0.4))
    assert loss == pytest.approx(dpo + 2.0 * reward)


def test_a_loss_far_from_zero_is_finite() -> None:
    far = tensor([-1e4, 1e4])
    losses = pair_losses(far, far, alpha=1.0, objective="combined")
    assert losses.tolist() == [pytest.approx(2e4), 0.0]


def test_accuracy_counts_a_tie_as_half() -> None:
    assert accuracy(tensor([1.0, -1.0, 0.0, 2.0])) == 0.625
