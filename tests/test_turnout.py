"""Who is asked in a round, who is waited for, and what becomes of those who are late or gone."""

from typing import Any

import pytest

from fedpdpo.common.errors import AlreadyPushed, BadRequest, NotFound, NotOpen
from fedpdpo.common.metrics import Metrics
from fedpdpo.server import status
from fedpdpo.server.intake import Announced
from fedpdpo.server.membership import heartbeat, leave
from fedpdpo.server.rounds import Phase
from fedpdpo.server.steps import step
from fedpdpo.server.tasks import Evaluate, Train
from world import NewWorld, World, begin


def test_more_are_asked_than_are_waited_for(new_world: NewWorld) -> None:
    world = new_world(sample_clients=3, close_after=2)
    begin(world, "ada", "bea", "cyd", "dan")
    with world.federation.reading() as ledger:
        opened = ledger.open_round()
        assert opened is not None
        asked = opened.sampled
    assert len(asked) == 3
    for name in asked[:2]:
        world.push(name, 1, 1.0)
    world.settle()
    assert world.adapter(1) == 1.0
    with pytest.raises(NotOpen, match="round 1 is not open"):
        world.push(asked[2], 1, 9.0)


def test_a_share_of_those_who_are_there_is_asked(new_world: NewWorld) -> None:
    world = new_world(sample_fraction=0.5)
    begin(world, "ada", "bea", "cyd", "dan")
    with world.federation.reading() as ledger:
        opened = ledger.open_round()
        assert opened is not None
        assert len(opened.sampled) == 2
    for name in opened.sampled:
        world.push(name, 1, 3.0)
    world.settle()
    assert world.adapter(1) == 3.0


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_how_much_less_a_late_delta_counts_is_as_set(new_world: NewWorld, power: float) -> None:
    world = new_world(close_after=1, late="fold", max_staleness=1, staleness_power=power)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.settle()
    for name in ("ada", "bea"):
        world.evaluate(name, 1)
    world.push("bea", 1, 4.0)
    world.push("ada", 2, 1.0)
    world.settle()
    late = 2**-power
    assert world.adapter(2) == pytest.approx(1.0 + (4.0 * late + 1.0) / (late + 1.0))


def test_a_late_delta_is_folded_into_the_open_round_and_counts_less(new_world: NewWorld) -> None:
    world = new_world(rounds=3, close_after=2, late="fold", max_staleness=1)
    begin(world, "ada", "bea", "cyd")
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    world.settle()
    for name in ("ada", "bea"):
        world.evaluate(name, 1)
    assert world.task("ada") == Train(2)
    world.push("cyd", 1, 4.0)
    world.push("cyd", 1, 4.0)
    assert world.store.delta_path(1, "cyd").exists()
    world.reopen()
    world.settle()
    assert world.phase is Phase.TRAINING
    world.push("ada", 2, 1.0)
    world.settle()
    late = 2**-0.5
    assert world.adapter(2) == pytest.approx(1.0 + (4.0 * late + 1.0) / (late + 1.0))
    assert world.events.count("delta_received") == 4
    assert not world.store.delta_path(1, "cyd").exists()
    with pytest.raises(AlreadyPushed):
        world.push("cyd", 1, 5.0)


def test_a_delta_that_is_too_old_or_not_asked_for_is_not_folded(new_world: NewWorld) -> None:
    world = new_world(rounds=4, close_after=1, late="fold", max_staleness=1)
    begin(world, "ada", "bea")
    for number in (1, 2):
        world.push("ada", number, 1.0)
        world.settle()
        world.evaluate("ada", number)
        world.settle()
    with pytest.raises(NotOpen, match="round 1 is not open, round 3 is open"):
        world.push("bea", 1, 1.0)
    world.join("cyd")
    with pytest.raises(NotOpen, match="did not ask cyd"):
        world.push("cyd", 2, 1.0)
    world.push("bea", 2, 1.0)


def test_a_client_has_one_delta_in_an_average_the_newest(new_world: NewWorld) -> None:
    world = new_world(rounds=5, close_after=2, late="fold", max_staleness=4, norm_bound=3.0)
    names = ("ada", "bea", "eve")
    begin(world, *names)
    for number in (1, 2):
        for name in names[:2]:
            world.push(name, number, 1.0)
        world.settle()
        for name in names:
            world.evaluate(name, number)
        world.settle()
    for number in (1, 2, 3):
        world.push("eve", number, 9.0)
        assert world.federation.stage.arrived == 1
    with pytest.raises(NotOpen, match="a newer delta of eve counts"):
        world.push("eve", 2, 9.0)
    assert world.events.count("delta_replaced") == 2
    world.reopen()
    assert world.federation.stage.arrived == 1
    assert not world.store.delta_path(1, "eve").exists()
    world.push("ada", 3, 1.0)
    world.settle()
    assert world.adapter(3) == pytest.approx(2.0 + (9.0 + 1.0) / 2)


def test_a_late_delta_is_there_after_a_crash_while_its_round_was_closing(
    new_world: NewWorld,
) -> None:
    world = new_world(rounds=4, close_after=2, late="fold", max_staleness=1)
    begin(world, "ada", "bea", "cyd")
    for name in ("ada", "bea"):
        world.push(name, 1, 1.0)
    with world.federation.turning() as ledger:
        opened = ledger.open_round()
        assert opened is not None
        opened.closing = True
    world.push("cyd", 1, 4.0)
    world.reopen()
    assert world.store.delta_path(1, "cyd").exists()
    world.settle()
    for name in ("ada", "bea", "cyd"):
        world.evaluate(name, 1)
    world.settle()
    world.push("ada", 2, 1.0)
    world.settle()
    assert world.federation.stage.version == 2


@pytest.mark.parametrize("changed", [{"late": "drop"}, {"late": "fold", "max_staleness": 1}])
def test_a_delta_that_counts_stays_where_later_ones_of_its_age_would_not_count(
    new_world: NewWorld, changed: dict[str, Any]
) -> None:
    world = new_world(rounds=5, close_after=1, late="fold", max_staleness=3)
    begin(world, "ada", "bea")
    for number in (1, 2):
        world.push("ada", number, 1.0)
        world.settle()
        world.evaluate("ada", number)
        world.settle()
    world.values |= {"close_after": 2}
    world.reopen()
    world.push("bea", 1, 1.0)
    world.values |= changed
    world.reopen()
    world.push("ada", 3, 1.0)
    world.settle()
    assert world.federation.stage.version == 3


def test_nothing_is_folded_into_a_round_that_does_not_follow(new_world: NewWorld) -> None:
    world = new_world(rounds=1, close_after=1, late="fold")
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.settle()
    with pytest.raises(NotOpen, match="no round follows"):
        world.push("bea", 1, 1.0)


def test_a_client_without_progress_is_not_waited_for_but_may_still_answer(
    new_world: NewWorld,
) -> None:
    world = new_world(progress_deadline_s=10, client_timeout_s=1000)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    for progress in (0.1, 0.2, 0.3):
        world.now += 9
        heartbeat(world.federation, "bea", activity="training round 1", progress=progress)
        world.settle()
        assert world.phase is Phase.TRAINING
    world.now += 11
    heartbeat(world.federation, "bea", activity="training round 1", progress=0.3)
    assert world.task("bea") == Train(1)
    world.settle()
    assert world.adapter(1) == 1.0


def test_the_deadline_begins_anew_with_the_server(new_world: NewWorld) -> None:
    world = new_world(quorum=0.5, round_deadline_s=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.now += 9
    world.reopen()
    world.now += 9
    world.settle()
    assert world.phase is Phase.TRAINING


def test_a_round_does_not_open_for_clients_that_were_lost_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ada", "bea"):
        world.join(name)
        world.evaluate(name, 0)
    here = iter([["ada", "bea"], ["ada"]])
    with monkeypatch.context() as patched:
        patched.setattr(world.federation, "active", lambda: next(here))
        assert not step(world.federation)
    assert "round_opened" not in world.events
    world.settle()
    assert world.phase is Phase.TRAINING


def test_of_many_clients_a_few_are_named_where_they_are_waited_for(world: World) -> None:
    begin(world, *(f"c{number:02}" for number in range(23)))
    assert world.waiting_for().endswith("c18, c19 and 3 more")


@pytest.mark.parametrize(("most", "expected"), [(100, {0, 1, 2}), (4, {0, 2}), (3, {2})])
def test_of_many_clients_the_newest_accuracies_are_told(
    world: World, monkeypatch: pytest.MonkeyPatch, most: int, expected: set[int]
) -> None:
    monkeypatch.setattr(status, "_SHOWN_EVALUATIONS", most)
    begin(world, "ada", "bea")
    for number in (1, 2):
        for name in ("ada", "bea"):
            world.push(name, number, 1.0)
        world.settle()
        for name in ("ada", "bea"):
            world.evaluate(name, number)
        world.settle()
    told = status.status(world.federation).evaluations
    assert {one.adapter_version for one in told} == expected


def test_numbers_that_would_overflow_in_a_sum_are_refused(world: World) -> None:
    begin(world, "ada", "bea")
    with pytest.raises(BadRequest, match="beyond 1e\\+30"):
        world.intake.receiver(Announced("ada", 1, 10, 64, b"0" * 32, {"loss": 1.7e308}))
    with pytest.raises(BadRequest, match="metric loss"):
        Metrics(0.5, 0.5, 0.5, 0.0, 1.7e308, 0.0)


@pytest.mark.parametrize("off", [-86_400.0, 86_400.0])
def test_deadlines_go_by_seconds_that_pass_not_by_a_clock_that_is_set(
    new_world: NewWorld, off: float
) -> None:
    world = new_world(quorum=0.5, round_deadline_s=10, progress_deadline_s=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.clock_is_off = off
    world.settle()
    assert world.phase is Phase.TRAINING
    assert world.federation.presence.remarks("bea", patience_s=10) == []
    world.now += 11
    world.settle()
    assert world.adapter(1) == 1.0


def test_a_client_that_leaves_is_not_awaited_and_may_come_back(world: World) -> None:
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    leave(world.federation, "bea")
    leave(world.federation, "bea")
    world.settle()
    assert world.adapter(1) == 1.0
    with pytest.raises(NotFound):
        world.task("bea")
    world.join("bea")
    assert world.task("bea") == Evaluate(1)
    assert world.events.count("client_left") == 1


def test_a_silent_client_is_not_asked_in_the_next_round(new_world: NewWorld) -> None:
    world = new_world(client_timeout_s=10, min_clients=1)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    world.now += 11
    world.evaluate("ada", 0)
    world.task("ada")
    world.settle()
    assert world.task("ada") == Evaluate(1)
    world.evaluate("ada", 1)
    assert world.task("ada") == Train(2)
    with world.federation.reading() as ledger:
        opened = ledger.open_round()
        assert opened is not None
        assert opened.sampled == ["ada"]
