"""One run of the domain: joining, tasks, deadlines, and what a crash leaves."""

import contextlib
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save

from fedpdpo.common.errors import (
    BadState,
    Mismatch,
    NotFound,
    NotOpen,
    StorageFull,
)
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.payload import Receiver
from fedpdpo.common.table import status_table
from fedpdpo.server import steps
from fedpdpo.server.intake import Announced
from fedpdpo.server.membership import heartbeat
from fedpdpo.server.operations import set_paused, stop
from fedpdpo.server.rounds import Phase
from fedpdpo.server.rows import AdapterRow
from fedpdpo.server.status import status
from fedpdpo.server.steps import step
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Evaluate, Finish, Train, Wait
from serving import BACKBONE, LAYOUT, tensors
from world import NewWorld, World, begin


def test_the_first_client_fixes_the_run_and_makes_the_first_adapter(world: World) -> None:
    world.join("ada")
    assert world.federation.run.backbone_fingerprint == BACKBONE
    assert world.federation.run.layout == LAYOUT
    assert world.adapter(0) == 0.0
    assert world.task("ada") == Evaluate(0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backbone_fingerprint": "d" * 64}, "backbone has fingerprint dddddddddddd, the run's b"),
        ({"tokenizer_fingerprint": "d" * 64}, "tokenizer has fingerprint d"),
        (
            {"layout": LoraLayout((("m.0.q.lora_A.weight", (9, 3)),))},
            r"layout differs: m.0.q.lora_A.weight is of shape \[2, 3\] here",
        ),
    ],
)
def test_a_client_that_differs_is_refused_by_what_differs(
    world: World, changed: dict[str, Any], words: str
) -> None:
    world.join("ada")
    with pytest.raises(Mismatch, match=words):
        world.join("bea", **changed)
    with pytest.raises(NotFound):
        world.task("bea")


def test_many_first_joins_at_once_fix_the_run_once(world: World) -> None:
    errors: list[BaseException] = []

    def run(name: str) -> None:
        try:
            world.join(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f"c{number}",)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert world.events.count("run_fixed") == 1
    assert world.events.count("client_joined") == 12


def test_clients_that_wait_are_woken_only_where_they_may_have_to_do_something(
    new_world: NewWorld,
) -> None:
    world = new_world(min_clients=3)
    begin(world, "ada", "bea", "cyd")
    woken = world.turns
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    assert world.turns == woken
    world.push("cyd", 1, 1.0)
    world.settle()
    assert world.turns > woken


def test_a_run_goes_from_tasks_to_results_to_its_end(world: World) -> None:
    world.join("ada")
    world.evaluate("ada", 0)
    world.settle()
    assert world.task("ada") == Wait()
    assert world.waiting_for() == "1 more client"
    world.join("bea")
    world.settle()
    assert world.task("bea") == Evaluate(0)
    world.evaluate("bea", 0)
    for number in (1, 2):
        assert world.task("ada") == world.task("bea") == Train(number)
        world.push("ada", number, 1.0, num_pairs=30)
        assert world.task("ada") == Wait()
        assert world.waiting_for() == "deltas of bea"
        world.push("bea", number, 2.0, num_pairs=10)
        world.settle()
        assert world.adapter(number) == pytest.approx(number * 1.25)
        assert world.task("ada") == Evaluate(number)
        world.evaluate("ada", number)
        world.evaluate("bea", number)
    world.settle()
    assert world.task("ada") == Finish(2, stopped=False)
    assert world.phase is Phase.FINISHED
    assert list((world.folder / "deltas").iterdir()) == []


def test_a_run_that_is_reopened_after_every_change_ends_the_same(tmp_path: Path) -> None:
    steady, crashing = World(tmp_path / "one"), World(tmp_path / "two")
    for world in (steady, crashing):
        again = world.reopen if world is crashing else lambda: None
        begin(world, "ada", "bea")
        again()
        for number in (1, 2):
            world.push("bea", number, 0.3)
            again()
            world.push("ada", number, 0.1, num_pairs=7)
            again()
            world.settle()
            again()
            for name in ("ada", "bea"):
                world.evaluate(name, number)
                again()
        world.settle()
        again()
        assert world.task("ada") == Finish(2, stopped=False)
        world.store.close()
    for version in range(3):
        one, two = (w.store.adapter_path(version).read_bytes() for w in (steady, crashing))
        assert one == two


def test_a_server_that_dies_while_averaging_averages_the_same_deltas(
    new_world: NewWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world(quorum=0.5, round_deadline_s=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 0.5)
    world.now += 11

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steps, "write_adapter", die)
        with pytest.raises(KeyboardInterrupt):
            step(world.federation)
    world.reopen()
    with pytest.raises(NotOpen, match="round 1 is being averaged"):
        world.push("bea", 1, 9.0)
    world.settle()
    assert world.adapter(1) == 0.5


def test_an_average_that_was_broken_off_comes_out_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady, broken = World(tmp_path / "one"), World(tmp_path / "two")
    for world in (steady, broken):
        begin(world, "ada", "bea")
        world.push("bea", 1, 0.3, num_pairs=11)
        world.push("ada", 1, 0.1, num_pairs=7)

    def die(path: Path, *_: object) -> None:
        path.write_bytes(b"half of a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steps, "write_tensors", die)
        with pytest.raises(KeyboardInterrupt):
            step(broken.federation)
    broken.reopen()
    for world in (steady, broken):
        world.settle()
        world.store.close()
    one, two = (world.store.adapter_path(1).read_bytes() for world in (steady, broken))
    assert one == two


def test_a_full_disk_stops_the_step_and_it_can_be_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(steps, "write_tensors", full)
        with pytest.raises(StorageFull):
            step(world.federation)
    world.settle()
    assert world.adapter(1) == 1.0


def test_a_round_closes_at_its_deadline_only_with_a_quorum(new_world: NewWorld) -> None:
    world = new_world(quorum=0.5, round_deadline_s=10)
    begin(world, "ada", "bea")
    world.now += 11
    world.settle()
    assert world.phase is Phase.TRAINING
    world.push("bea", 1, 2.0)
    world.settle()
    assert world.adapter(1) == 2.0
    with pytest.raises(NotOpen, match="round 1 is not open, round 2 is open"):
        world.push("ada", 1, 1.0)


def test_a_delta_still_on_its_way_when_its_round_is_averaged_is_late(new_world: NewWorld) -> None:
    world = new_world(quorum=0.5, round_deadline_s=10)
    begin(world, "ada", "bea")
    content = save(tensors(9.0))
    digest = hashlib.sha256(content).digest()
    delta = Announced("ada", 1, 10, len(content), digest, {})
    receiver = world.intake.receiver(delta)
    assert receiver is not None
    with pytest.raises(NotOpen, match="round 1 is not open, round 2 is open"), receiver:
        receiver.write(0, content[:40])
        world.push("bea", 1, 2.0)
        world.now += 11
        world.settle()
        receiver.write(40, content[40:])
        world.intake.accept(delta, receiver)
    assert world.adapter(1) == 2.0
    assert not [path for path in (world.folder / "deltas").rglob("*") if path.is_file()]


def test_a_delta_that_could_not_be_kept_is_still_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(world, "ada", "bea")

    def full(_: Receiver) -> None:
        raise StorageFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(Receiver, "keep", full)
        with pytest.raises(StorageFull):
            world.push("ada", 1, 1.0)
    assert world.task("ada") == Train(1)
    world.push("ada", 1, 1.0)
    assert world.task("ada") == Wait()
    assert world.events.count("delta_received") == 1


def test_deltas_that_cannot_be_put_aside_stop_nothing(world: World) -> None:
    begin(world, "ada", "bea")
    (world.folder / "deltas" / "useless").parent.mkdir(exist_ok=True)
    (world.folder / "deltas" / "useless").touch()
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    world.settle()
    assert world.adapter(1) == 1.0
    assert world.store.delta_path(1, "ada").exists()
    (world.folder / "deltas" / "useless").unlink()
    world.reopen()
    assert not world.store.delta_path(1, "ada").exists()


def test_only_deltas_that_an_average_needs_are_kept(world: World) -> None:
    rounds = (9, 10, 99_999, 100_000)
    names = ("ada.safetensors", ".bea.safetensors.00.part")
    for number in rounds:
        folder = world.store.round_folder(number)
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    world.store.put_aside(but={world.store.delta_path(10, "ada")}, from_round=99_999)
    world.store.remove_useless()
    kept = [
        (number, name)
        for number in rounds
        for name in names
        if (world.store.round_folder(number) / name).exists()
    ]
    assert kept == [(10, names[0]), (99_999, names[1]), (100_000, names[1])]
    left = {path.name for path in (world.folder / "deltas").iterdir()}
    assert left == {"round-00010", "round-99999", "round-100000"}


@pytest.mark.parametrize("order", [("ada", "bea", "cyd"), ("cyd", "bea", "ada")])
def test_the_order_of_arrival_changes_no_bit(new_world: NewWorld, order: tuple[str, ...]) -> None:
    world = new_world(min_clients=3)
    begin(world, "ada", "bea", "cyd")
    values = {"ada": (0.1, 7), "bea": (0.3, 11), "cyd": (-0.7, 1009)}
    for name in order:
        world.push(name, 1, values[name][0], num_pairs=values[name][1])
    world.settle()
    total = np.float64(0)
    for value, pairs in values.values():
        total += pairs * np.float64(np.float32(value))
    assert world.adapter(1) == float(np.float32(total / 1027))


def test_a_paused_run_opens_no_round(world: World) -> None:
    set_paused(world.federation, True)
    begin(world, "ada", "bea")
    assert world.task("ada") == Wait()
    assert world.waiting_for() == "the operator, who paused the run"
    world.reopen()
    world.settle()
    assert world.phase is Phase.WAITING
    set_paused(world.federation, False)
    world.settle()
    assert world.task("ada") == Train(1)


def test_a_stopped_run_ends_with_its_last_adapter_and_takes_nothing_more(world: World) -> None:
    begin(world, "ada", "bea")
    stop(world.federation)
    stop(world.federation)
    assert world.task("ada") == Finish(0, stopped=True)
    with pytest.raises(NotOpen, match="the run has ended"):
        world.push("ada", 1, 1.0)
    with pytest.raises(NotOpen):
        set_paused(world.federation, True)
    with pytest.raises(Mismatch, match="has ended"):
        world.join("cyd")
    world.join("ada")
    assert world.events.count("run_stopped") == 1


def test_an_average_that_is_not_finite_leaves_the_adapter_as_it_was(new_world: NewWorld) -> None:
    world = new_world(server_lr=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 3e38)
    world.push("bea", 1, 3e38)
    world.settle()
    assert np.isfinite(world.adapter(1))
    assert world.adapter(1) == world.adapter(0)
    assert "average_refused" in world.events


def test_a_run_is_evaluated_until_all_have_answered_or_the_deadline(new_world: NewWorld) -> None:
    world = new_world(rounds=1, evaluation_deadline_s=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    world.settle()
    world.evaluate("ada", 1)
    world.settle()
    assert world.phase == "EVALUATING"
    assert world.task("ada") == Wait()
    assert world.waiting_for() == "evaluations of bea"
    world.now += 11
    world.settle()
    assert world.phase == "FINISHED"


def test_other_settings_than_the_runs_are_refused_by_name(tmp_path: Path) -> None:
    World(tmp_path).store.close()
    with pytest.raises(Mismatch, match="rounds is 2 there and 5 here"):
        World(tmp_path, rounds=5)


@pytest.mark.parametrize("damage", [b"", b"garbage" * 1000])
def test_a_damaged_database_is_named(tmp_path: Path, damage: bytes) -> None:
    world = World(tmp_path)
    world.join("ada")
    world.store.close()
    file = tmp_path / "run.sqlite"
    file.write_bytes(damage or file.read_bytes()[:6000])
    for extra in tmp_path.glob("run.sqlite-*"):
        extra.unlink()
    with pytest.raises(BadState, match=r"run\.sqlite cannot be read"):
        World(tmp_path)


@pytest.mark.parametrize("share", range(10))
def test_a_database_cut_short_anywhere_is_told(tmp_path: Path, share: int) -> None:
    world = World(tmp_path)
    begin(world, "ada", "bea")
    world.store.close()
    file = tmp_path / "run.sqlite"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * share // 10])
    with pytest.raises(BadState, match="restore it from a backup"):
        World(tmp_path)


def test_what_a_client_says_of_itself_is_shown_as_it_is_and_harms_no_terminal(
    world: World,
) -> None:
    world.join("ada")
    said = "[/bold] at [red]x\x1b[2J\n"
    heartbeat(world.federation, "ada", activity=said, progress=float("nan"))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(status_table(status(world.federation)))
    assert "[/bold] at [red]x[2J" in shown.get()
    assert status(world.federation).clients[0].progress == 0.0


def test_who_is_told_of_a_change_sees_the_stage_that_came_of_it(world: World) -> None:
    begin(world)
    world.told.clear()
    stop(world.federation)
    assert world.told == [Phase.STOPPED]


def test_files_are_asked_for_while_useless_ones_are_removed(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path)) as store:
        rows = [AdapterRow(version=version) for version in range(3000)]
        for row in rows:
            path = store.adapter_path(row.version)
            path.parent.mkdir(exist_ok=True)
            path.touch()
        asking = threading.Thread(target=lambda: [store.adapter(row) for row in rows])
        asking.start()
        while asking.is_alive():
            store.remove_useless()
        assert all(store.adapter(row).exists() for row in rows)
