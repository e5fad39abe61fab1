"""The local round: repeatable to the bit, learning, resumable."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedpdpo.client.evaluation import evaluate
from fedpdpo.client.lora import SharedState
from fedpdpo.client.optimizer import optimizer_for, private_moments, put_private_moments
from fedpdpo.client.policy import Policy, private_parameters, put_private_parameters
from fedpdpo.client.state import ClientState, PrivateState
from fedpdpo.client.training import TrainingReport, num_pair_visits, train_round
from fedpdpo.common.errors import BadState
from fedpdpo.common.run import MethodSettings
from tiny import save_tiny_model, tiny_pairs, tiny_pairset, tiny_policy, tiny_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


class Trained:
    """A policy with its optimizer and pairs, ready for rounds."""

    def __init__(self, model: Path, folder: Path, *, num: int = 24, pack: int = 256, **m: Any):
        self.method = tiny_run(**m).method
        self.policy = tiny_policy(model, tiny_run(**m))
        self.pairs = tiny_pairset(
            self.policy, tiny_pairs(num=num), folder, tokens_per_pack=pack, key=str(num)
        )
        self.optimizer = optimizer_for(self.policy, self.method)

    def round(self, number: int) -> TrainingReport:
        return train_round(
            self.policy, self.pairs, self.method, self.optimizer, seed=7, round_number=number
        )

    @property
    def shared(self) -> list[Tensor]:
        return [matrix.detach().clone() for matrix in self.policy.lora()]

    @property
    def private(self) -> dict[str, Tensor]:
        found = private_parameters(self.policy)
        return {name: tensor.clone() for name, tensor in found.items()}


def equal(one: Trained, other: Trained) -> bool:
    shared = all(torch.equal(a, b) for a, b in zip(one.shared, other.shared, strict=True))
    private = one.private.keys() == other.private.keys() and all(
        torch.equal(one.private[name], other.private[name]) for name in one.private
    )
    return shared and private


def test_the_same_round_gives_the_same_bits(model: Path, tmp_path: Path) -> None:
    one, other = Trained(model, tmp_path), Trained(model, tmp_path)
    assert one.round(1).loss == other.round(1).loss
    assert equal(one, other)


def test_another_round_goes_over_the_pairs_in_another_order(model: Path, tmp_path: Path) -> None:
    one, other = Trained(model, tmp_path), Trained(model, tmp_path)
    one.round(1)
    other.round(2)
    assert not equal(one, other)


def test_a_client_that_was_restarted_between_rounds_goes_on_to_the_same_bits(
    model: Path, tmp_path: Path
) -> None:
    steady, restarted = Trained(model, tmp_path), Trained(model, tmp_path)
    report = steady.round(1)
    shared = SharedState.of(steady.policy.peft_model)
    private = PrivateState(
        private_parameters(steady.policy), private_moments(steady.optimizer, steady.policy)
    )
    ClientState(tmp_path, client_id="ada").save_round(
        1, private=private, delta=shared, num_pairs=len(steady.pairs), report=report
    )
    steady.round(2)
    found = ClientState(tmp_path, client_id="ada").last_round()
    assert found is not None
    SharedState.read(found[0].delta, shared.layout).put_into(restarted.policy.peft_model)
    put_private_parameters(restarted.policy, found[1].parameters)
    put_private_moments(restarted.optimizer, restarted.policy, found[1].moments)
    restarted.round(2)
    assert equal(steady, restarted)


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"objective": "separate"},
        {"schedule": "private_then_shared"},
        {"head": "lowrank", "head_rank": 4},
        {"head": "frozen"},
        {"bottleneck": 0},
        {"reward_head": False},
    ],
)
def test_what_is_learnt_holds_on_pairs_not_seen(
    model: Path, tmp_path: Path, method: dict[str, Any]
) -> None:
    trained = Trained(model, tmp_path, num=64, local_epochs=3, **method)
    trained.round(1)
    assert trained.round(2).loss < 0.3
    held_out = tiny_pairs(seed=5, num=40)
    pairs = tiny_pairset(trained.policy, held_out, tmp_path, key="held out")
    _, personal = evaluate(trained.policy, pairs, trained.method)
    assert personal.combined_accuracy > 0.8


def test_one_pack_or_many_give_the_same_step(model: Path, tmp_path: Path) -> None:
    whole, parts = Trained(model, tmp_path), Trained(model, tmp_path, pack=1)
    whole.round(1)
    parts.round(1)
    for name, tensor in whole.private.items():
        torch.testing.assert_close(parts.private[name], tensor, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(parts.shared, whole.shared, rtol=1e-3, atol=2e-4)


def test_a_steps_gradient_does_not_depend_on_how_its_pairs_are_packed(
    model: Path, tmp_path: Path
) -> None:
    gradients = []
    for pack in (10_000, 100, 1):
        trained = Trained(model, tmp_path, num=8, pack=pack, max_grad_norm=1e6)
        trained.round(1)
        matrices = [*trained.policy.lora(), *trained.policy.private.parameters()]
        gradients.append([matrix.grad for matrix in matrices if matrix.grad is not None])
    assert len(gradients[0]) == len(trained.policy.lora()) + 4
    for some in gradients[1:]:
        torch.testing.assert_close(some, gradients[0], rtol=1e-4, atol=1e-6)


def test_private_then_shared_trains_lora_on_the_private_parts_as_they_ended(
    model: Path, tmp_path: Path
) -> None:
    trained = Trained(model, tmp_path, num=16, schedule="private_then_shared")
    before = trained.shared
    seen: list[tuple[bool, dict[str, Tensor]]] = []

    def look(_: int) -> None:
        moved = any(not torch.equal(a, b) for a, b in zip(before, trained.shared, strict=True))
        private = {
            name: p.detach().clone() for name, p in trained.policy.private.named_parameters()
        }
        seen.append((moved, private))

    train_round(
        trained.policy, trained.pairs, trained.method, trained.optimizer,
        seed=0, round_number=1, advance=look,
    )  # fmt: skip
    assert [moved for moved, _ in seen] == [False, False, True, True]
    first, end_of_private, _, last = (private for _, private in seen)
    assert not torch.equal(first["reward.v"], end_of_private["reward.v"])
    assert all(torch.equal(last[name], end_of_private[name]) for name in last)
    assert len(seen) * 8 == num_pair_visits(trained.method, 16)


def test_a_schedule_without_anything_private_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs a private part"):
        MethodSettings(
            schedule="private_then_shared", head="frozen", bottleneck=0, reward_head=False
        )


def test_private_parts_of_other_settings_are_refused(model: Path, tmp_path: Path) -> None:
    narrow, wide = Trained(model, tmp_path), Trained(model, tmp_path, bottleneck=16)
    with pytest.raises(BadState, match="not those of the run's method settings"):
        put_private_parameters(wide.policy, narrow.private)
    assert isinstance(wide.policy, Policy)
