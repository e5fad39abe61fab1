"""The local round: repeatable to the bit, learning, resumable."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedpdpo.client.interrupt import Interruption
from fedpdpo.client.machine import CoreShare, Neighbours
from fedpdpo.client.model.layers import checkpoint_layers
from fedpdpo.client.model.lora import SharedState
from fedpdpo.client.model.packing import pack
from fedpdpo.client.model.policy import Policy, private_parameters, put_private_parameters
from fedpdpo.client.state import ClientState, PrivateState
from fedpdpo.client.trainer import Trainer
from fedpdpo.client.training.crew import Crew
from fedpdpo.client.training.evaluation import evaluate
from fedpdpo.client.training.local_round import Point, num_pair_visits, train_round
from fedpdpo.client.training.optimizer import LocalOptimizer, Moments
from fedpdpo.client.training.schedule import rate_factor, steps_of_round
from fedpdpo.client.unfinished import Unfinished, UnfinishedRound
from fedpdpo.common.errors import BadState
from fedpdpo.common.run import MethodSettings
from tiny import CPU, save_tiny_model, tiny_pairs, tiny_pairset, tiny_policy, tiny_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


class Trained:
    """A policy with its optimizer and pairs, ready for rounds."""

    def __init__(
        self,
        model: Path,
        folder: Path,
        *,
        num: int = 24,
        pack: int = 256,
        head_moments: Moments = "float32",
        **method: Any,
    ) -> None:
        self.run = tiny_run(**method)
        self.method = self.run.method
        self.policy = tiny_policy(model, self.run)
        self.pairs = tiny_pairset(
            self.policy, tiny_pairs(num=num), folder, tokens_per_step=pack, key=str(num)
        )
        self.optimizer = LocalOptimizer(self.policy, self.method, head_moments=head_moments)

    def round(self, number: int, **options: Any) -> Point:
        return train_round(
            self.policy,
            self.pairs,
            self.run,
            self.optimizer,
            seed=7,
            round_number=number,
            **options,
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
    assert one.round(1).report().loss == other.round(1).report().loss
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
    report = steady.round(1).report()
    shared = SharedState.of(steady.policy.peft_model)
    private = PrivateState(
        private_parameters(steady.policy), steady.optimizer.moments(shared=False)
    )
    ClientState(tmp_path, client_id="ada").save_round(
        1, private=private, delta=shared, num_pairs=len(steady.pairs), report=report
    )
    steady.round(2)
    found = ClientState(tmp_path, client_id="ada").last_round()
    assert found is not None
    SharedState.read(found[0].delta, shared.layout).put_into(restarted.policy.peft_model)
    put_private_parameters(restarted.policy, found[1].parameters)
    restarted.optimizer.put_moments(found[1].moments)
    restarted.round(2)
    assert equal(steady, restarted)


class Killed(Exception):
    """What ends a process amid a round."""


@pytest.mark.parametrize("moments", ["float32", "8bit", "factored"])
@pytest.mark.parametrize(
    ("schedule", "last"), [("joint", 3), ("private_then_shared", 3), ("private_then_shared", 8)]
)
def test_a_round_that_was_cut_off_goes_on_from_the_step_saved_last_to_the_same_bits(
    model: Path, tmp_path: Path, moments: Moments, schedule: str, last: int
) -> None:
    method: dict[str, Any] = {"local_epochs": 2, "schedule": schedule, "lr_schedule": "cosine",
                              "proximal": 0.1, "lora_moments": "keep"}  # fmt: skip
    steady, killed, resumed = (
        Trained(model, tmp_path, head_moments=moments, **method) for _ in range(3)
    )
    whole = steady.round(1)

    def trainer(trained: Trained, key: str = "same") -> Trainer:
        return Trainer(
            trained.policy,
            trained.run,
            trained.pairs,
            trained.optimizer,
            Unfinished(tmp_path / "unfinished", key=key),
            seed=7,
            save_every_s=0.0,
            crew=Crew(),
            cores=CoreShare(1, Neighbours(tmp_path / "clients")),
            interruption=Interruption(),
        )

    visited: list[int] = []

    def die(pairs: int) -> None:
        visited.append(pairs)
        if len(visited) == last + 2:
            raise Killed

    with pytest.raises(Killed):
        trainer(killed).train(1, die)
    visited.clear()
    assert replace(trainer(resumed).train(1, visited.append), seconds=0) == replace(
        whole, seconds=0
    )
    assert equal(resumed, steady)
    # The steps up to the one saved last are counted at once, and not trained again.
    assert visited == [last * 8, *[8] * (whole.steps - last)]
    kept = next((tmp_path / "unfinished").iterdir())
    begun_from = json.loads((kept / "state.json").read_text())["begun_from"]

    def goes_on(key: str, number: int, adapter: str) -> bool:
        unfinished = Unfinished(tmp_path / "unfinished", key=key)
        return unfinished.last(number, begun_from=adapter) is not None

    assert goes_on("same", 1, begun_from)
    assert not goes_on("other pairs", 1, begun_from)
    assert not goes_on("same", 2, begun_from)
    assert not goes_on("same", 1, "another adapter")


@pytest.mark.parametrize("file", ["shared.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_step_is_left_aside_and_said(
    model: Path, tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = UnfinishedRound(Point(steps=3), {"a": torch.ones(9)}, {}, {}, threads=1)
    unfinished = Unfinished(tmp_path, key="key")
    unfinished.save(2, replace(state, point=Point(steps=2)), begun_from="a")
    unfinished.save(2, state, begun_from="a")
    assert len(list(tmp_path.iterdir())) == 1
    found = unfinished.last(2, begun_from="a")
    assert found is not None
    assert found.point == Point(steps=3)
    assert torch.equal(found.shared["a"], torch.ones(9))
    path = tmp_path / "round-00002-step-0000003" / file
    path.write_bytes(path.read_bytes()[:-9])
    assert unfinished.last(2, begun_from="a") is None
    assert "round_begins_anew" in caplog.text


def test_a_step_whose_gradient_is_not_finite_is_dropped_and_said(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = Trained(model, tmp_path)
    clean = Trained(model, tmp_path)
    spoilt = clean.pairs.reference_logps.clone()
    first = steps_of_round(trained.method, num_pairs=24, seed=7, round_number=1)[0].pairs
    spoilt[first[0]] = torch.nan
    trained.pairs = replace(trained.pairs, reference_logps=spoilt)
    before = trained.shared
    points: list[Point] = []
    states: list[list[Tensor]] = []

    def look(point: Point) -> None:
        points.append(point)
        states.append(trained.shared)

    done = trained.round(1, after_step=look)
    assert [point.dropped for point in points] == [1, 1, 1]
    torch.testing.assert_close(states[0], before, rtol=0, atol=0)
    assert not torch.equal(states[1][0], before[0])
    assert done.pairs == 16
    assert math.isfinite(done.report().loss)
    assert all(part.isfinite().all() for part in trained.private.values())
    assert "step_dropped step=1 loss=nan" in caplog.text


def test_where_every_step_is_dropped_the_loss_is_none(model: Path, tmp_path: Path) -> None:
    trained = Trained(model, tmp_path)
    nothing = torch.full((24, 2), torch.nan)
    trained.pairs = replace(trained.pairs, reference_logps=nothing)
    point = trained.round(1)
    assert (point.dropped, point.steps, point.pairs) == (3, 3, 0)
    assert math.isnan(point.report().loss)


def test_rates_rise_over_the_warm_up_and_fall_along_half_a_cosine() -> None:
    def factors(**method: Any) -> list[float]:
        settings = tiny_run(**method).method
        return [
            rate_factor(settings, rounds_done=done, num_rounds=10) for done in (0.5, 1, 2, 6, 10)
        ]

    assert factors() == [1, 1, 1, 1, 1]
    assert factors(warmup_rounds=2) == [0.25, 0.5, 1, 1, 1]
    assert factors(warmup_rounds=2, lr_schedule="cosine") == pytest.approx([0.25, 0.5, 1, 0.5, 0])
    assert factors(warmup_rounds=20, lr_schedule="cosine")[-1] == 0.5


def test_every_part_moves_by_its_rate_times_the_factor(model: Path, tmp_path: Path) -> None:
    moved = {}
    for schedule in ("constant", "cosine"):
        trained = Trained(model, tmp_path, num=8, lr_schedule=schedule)
        before = trained.private | {"lora": trained.shared[0]}
        trained.round(3)
        after = trained.private | {"lora": trained.shared[0]}
        moved[schedule] = {name: after[name] - before[name] for name in before}
    # One step in round 3 of 3: at 5/6 of the run. Adam's first step is the sign of the gradient.
    factor = 0.5 * (1 + math.cos(math.pi * 5 / 6))
    for name, constant in moved["constant"].items():
        torch.testing.assert_close(
            moved["cosine"][name], factor * constant, rtol=1e-2, atol=1e-5, msg=name
        )


@pytest.mark.parametrize("moments", ["8bit", "factored"])
def test_lighter_moments_of_the_head_learn_as_well(
    model: Path, tmp_path: Path, moments: Moments
) -> None:
    trained = Trained(model, tmp_path, num=64, local_epochs=3, anchor=0.0, head_moments=moments)
    before = trained.private["head.weight"]
    trained.round(1)
    assert not torch.equal(trained.private["head.weight"], before)
    assert trained.round(2).report().loss < 0.3
    kept = trained.optimizer.moments(shared=False)
    size = sum(part.nbytes for name, part in kept.items() if name.startswith("head."))
    assert size < {"8bit": 0.4, "factored": 0.1}[moments] * 2 * before.nbytes


def test_moments_of_another_kind_are_left_aside(model: Path, tmp_path: Path) -> None:
    one = Trained(model, tmp_path)
    other = Trained(model, tmp_path, head_moments="factored")
    one.round(1)
    other.optimizer.put_moments(one.optimizer.moments(shared=False))
    names = {name.partition("/")[0] for name in other.optimizer.moments(shared=False)}
    assert names == {"bottleneck.down", "bottleneck.up", "reward.v"}
    other.round(2)


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"objective": "combined"},
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
    trained = Trained(model, tmp_path, num=64, local_epochs=3, anchor=0.0, **method)
    trained.round(1)
    assert trained.round(2).report().loss < 0.3
    held_out = tiny_pairs(seed=5, num=40)
    pairs = tiny_pairset(trained.policy, held_out, tmp_path, key="held out")
    _, personal = evaluate(trained.policy, pairs, trained.method)
    assert personal.combined_accuracy > 0.8


def test_an_anchor_keeps_the_chosen_answers_likely(model: Path, tmp_path: Path) -> None:
    def chosen_logps(trained: Trained) -> Tensor:
        packed = pack(tiny_pairs(num=24), range(24), device=CPU)
        with torch.no_grad():
            return trained.policy.scores(packed, trained.policy.hidden(packed)).chosen_logps

    loose = Trained(model, tmp_path, local_epochs=5, anchor=0.0)
    before = chosen_logps(loose)
    loose.round(1)
    held = Trained(model, tmp_path, local_epochs=5, anchor=10.0)
    held.round(1)
    assert (chosen_logps(held) - before).mean() > (chosen_logps(loose) - before).mean() + 1.0


def test_an_anchor_is_the_mean_loss_of_the_chosen_answers_tokens(
    model: Path, tmp_path: Path
) -> None:
    loose, held = (Trained(model, tmp_path, num=8, anchor=anchor) for anchor in (0.0, 0.5))
    pairs = tiny_pairs(num=8)
    packed = pack(pairs, range(8), device=CPU)
    with torch.no_grad():
        logps = loose.policy.scores(packed, loose.policy.hidden(packed)).chosen_logps
    lengths = torch.tensor([len(pair.chosen) for pair in pairs])
    added = -0.5 * float((logps / lengths).mean())
    held_out = tiny_pairset(loose.policy, pairs, tmp_path, key="held out")
    measured = [evaluate(loose.policy, held_out, one.method)[1].loss for one in (loose, held)]
    assert measured[1] == pytest.approx(measured[0] + added, rel=1e-4)
    expected = loose.round(1).report().loss + added
    assert held.round(1).report().loss == pytest.approx(expected, rel=1e-4)


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
    gradients: list[dict[str, Tensor]] = []
    for size in (10_000, 100, 1):
        trained = Trained(model, tmp_path, num=8, pack=size, max_grad_norm=1e6)

        def look(_: Point, trained: Trained = trained) -> None:
            parts = trained.optimizer.named.items()
            gradients.append({name: p.grad.clone() for name, p in parts if p.grad is not None})

        trained.round(1, after_step=look)
        assert gradients[-1].keys() == trained.optimizer.named.keys()
    for some in gradients[1:]:
        torch.testing.assert_close(some, gradients[0], rtol=1e-4, atol=1e-6)


def test_layers_that_are_computed_twice_give_the_same_step(model: Path, tmp_path: Path) -> None:
    once, twice = Trained(model, tmp_path), Trained(model, tmp_path)
    assert checkpoint_layers(twice.policy.decoder._whole) == 4
    once.round(1)
    twice.round(1)
    assert equal(once, twice)


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

    trained.round(1, advance=look)
    assert [moved for moved, _ in seen] == [False, False, False, True, True]
    _, first, end_of_private, _, last = (private for _, private in seen)
    assert not torch.equal(first["reward.v"], end_of_private["reward.v"])
    assert all(torch.equal(last[name], end_of_private[name]) for name in last)
    assert num_pair_visits(trained.run, 16) == 8 * 4


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
