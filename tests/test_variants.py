"""Variants of the local round that baselines are made of: proximal term, kept moments, no parts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedpdpo.client.model.policy import private_parameters
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.local_round import train_round
from fedpdpo.client.training.optimizer import LocalOptimizer
from fedpdpo.common.run import Run
from tiny import save_tiny_model, tiny_pairs, tiny_pairset, tiny_policy, tiny_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def trained(
    model: Path, folder: Path, run: Run, *, rounds: int = 1, centre: list[Tensor] | None = None
) -> list[Tensor]:
    """LoRA after rounds that go on where the one before ended."""
    policy = tiny_policy(model, run)
    pairs = tiny_pairset(policy, tiny_pairs(num=16), folder)
    optimizer = LocalOptimizer(policy, run.method)
    for number in range(1, rounds + 1):
        train_round(policy, pairs, run, optimizer, seed=7, round_number=number, centre=centre)
    return [matrix.detach().clone() for matrix in policy.lora()]


def moved(matrices: list[Tensor], start: list[Tensor]) -> float:
    gone = [(a - b).square().sum() for a, b in zip(matrices, start, strict=True)]
    return float(torch.stack(gone).sum().sqrt())


def test_the_proximal_term_keeps_lora_near_where_the_round_began(
    model: Path, tmp_path: Path
) -> None:
    start = trained(model, tmp_path, tiny_run(), rounds=0)
    ways = [moved(trained(model, tmp_path, tiny_run(proximal=mu)), start) for mu in (0.0, 0.3, 3.0)]
    assert ways[0] > 1.2 * ways[1] > 1.2**2 * ways[2] > 0


def test_another_centre_pulls_lora_there(model: Path, tmp_path: Path) -> None:
    start = trained(model, tmp_path, tiny_run(), rounds=0)
    centre = [matrix + 0.5 for matrix in start]
    found = trained(model, tmp_path, tiny_run(proximal=3.0), centre=centre)
    assert moved(found, centre) < moved(start, centre)


def test_a_proximal_step_is_the_gradient_of_half_mu_times_the_squared_distance(
    model: Path, tmp_path: Path
) -> None:
    run = tiny_run()
    policy = tiny_policy(model, run)
    optimizer = LocalOptimizer(policy, run.method)
    centre = [torch.randn_like(matrix) for matrix in policy.lora()]
    away = sum(
        (0.7 / 2 * (matrix - anchor).square().sum()
         for matrix, anchor in zip(policy.lora(), centre, strict=True)), torch.zeros(())
    )  # fmt: skip
    expected = torch.autograd.grad(away, policy.lora())
    optimizer.gradients()
    optimizer.pull(centre, 0.7)
    for matrix, gradient in zip(policy.lora(), expected, strict=True):
        assert matrix.grad is not None
        assert torch.allclose(matrix.grad, gradient)
    assert all(not part.grad.any() for part in policy.private.parameters() if part.grad is not None)


def test_moments_that_are_kept_make_another_second_round_and_the_same_first(
    model: Path, tmp_path: Path
) -> None:
    runs = tiny_run(), tiny_run(lora_moments="keep")
    for rounds, same in ((1, True), (2, False)):
        one, other = (trained(model, tmp_path, run, rounds=rounds) for run in runs)
        equal = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert equal == same


def test_two_clients_on_one_backbone_have_private_parts_of_their_own(
    model: Path, tmp_path: Path
) -> None:
    run = tiny_run(head="full")
    one = tiny_policy(model, run, seed=1)
    other = one.with_private_parts(run.method, seed=2)
    pairs = tiny_pairset(one, tiny_pairs(num=16), tmp_path)
    alone = tiny_policy(model, run, seed=2)
    expected = private_parameters(alone)
    assert {name: tensor.tolist() for name, tensor in private_parameters(other).items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }
    train_round(one, pairs, run, LocalOptimizer(one, run.method), seed=1, round_number=1)
    assert all(torch.equal(private_parameters(other)[name], expected[name]) for name in expected)
    assert all(a is b for a, b in zip(one.lora(), other.lora(), strict=True))
    assert not torch.equal(one.private.head.weight, other.private.head.weight)
    assert torch.equal(other.pretrained.weight, alone.pretrained.weight)


def test_a_policy_without_private_parts_is_measured_once(model: Path, tmp_path: Path) -> None:
    bare: dict[str, Any] = {"head": "frozen", "reward_head": False, "bottleneck": 0}
    for method, personal in ((bare, False), (bare | {"reward_head": True}, True), ({}, True)):
        run = tiny_run(**method)
        policy = tiny_policy(model, run)
        assert policy.is_personal == personal
        pairs = tiny_pairset(policy, tiny_pairs(), tmp_path / f"{len(method)}{personal}")
        shared, own = evaluate(policy, pairs, run.method)
        assert (shared is own) == (not personal)
        assert 0 <= shared.combined_accuracy <= 1
