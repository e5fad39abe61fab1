"""One run of the domain: joining, tasks, deadlines, and what a crash leaves."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save

from fedpdpo.common.errors import (
    AlreadyPushed,
    BadState,
    Mismatch,
    NotFound,
    NotOpen,
    StorageFull,
)
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.table import status_table
from fedpdpo.server import steps
from fedpdpo.server.federation import Federation
from fedpdpo.server.intake import Announced, Intake
from fedpdpo.server.membership import Newcomer, heartbeat, join, leave
from fedpdpo.server.operations import events_after, set_paused, stop
from fedpdpo.server.rounds import Phase
from fedpdpo.server.status import status
from fedpdpo.server.steps import step
from fedpdpo.server.store import Store
from fedpdpo.server.tasks import Evaluate, Finish, Task, Train, Wait
from serving import BACKBONE, LAYOUT, TOKENIZER, settings, tensors

METRICS = Metrics(0.5, 0.5, 0.5, 0.0, 0.7)


class World:
    """A federation on a state directory, with a clock in hand; it can be closed and opened."""

    def __init__(self, folder: Path, **values: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.values = values
        self.now = 1000.0
        self.open()

    def open(self) -> None:
        self.store = Store(self.folder)
        wanted = settings(self.folder, **self.values)
        self.federation = Federation(
            self.store, wanted, clock=lambda: self.now, ticks=lambda: self.now
        )
        self.intake = Intake(self.federation)

    def reopen(self) -> None:
        """What a crash and a start do: all that was in memory is gone."""
        self.store.close()
        self.open()

    def join(self, name: str, **changed: Any) -> None:
        fields: dict[str, Any] = {
            "client_id": name,
            "backbone_fingerprint": BACKBONE,
            "tokenizer_fingerprint": TOKENIZER,
            "layout": LAYOUT,
            "num_train_pairs": 10,
            "num_eval_pairs": 5,
        }
        join(self.federation, Newcomer(**(fields | changed)))

    def settle(self) -> None:
        while step(self.federation):
            pass

    def task(self, name: str) -> Task:
        return self.federation.task(name)

    def evaluate(self, name: str, version: int) -> None:
        self.intake.evaluation(name, version=version, num_pairs=5, views={"VIEW_GLOBAL": METRICS})

    def push(self, name: str, number: int, value: float, *, num_pairs: int = 10) -> None:
        content = save(tensors(value))
        digest = hashlib.sha256(content).digest()
        delta = Announced(name, number, num_pairs, len(content), digest, {"loss": 0.5})
        receiver = self.intake.receiver(delta)
        if receiver is None:
            return
        with receiver:
            receiver.write(0, content)
            self.intake.accept(delta, receiver)

    @property
    def phase(self) -> Phase:
        with self.federation.reading() as ledger:
            return ledger.phase()

    def adapter(self, version: int) -> float:
        content = load_file(self.store.adapter_path(version))
        return float(content["m.0.q.lora_B.weight"][0, 0])

    @property
    def events(self) -> list[str]:
        return [event.kind for event in events_after(self.federation, 0)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    built = World(tmp_path)
    yield built
    built.store.close()


def begin(world: World, *names: str) -> None:
    for name in names:
        world.join(name)
        world.evaluate(name, 0)
    world.settle()


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


def test_a_run_goes_from_tasks_to_results_to_its_end(world: World) -> None:
    world.join("ada")
    world.evaluate("ada", 0)
    world.settle()
    assert world.task("ada") == Wait("1 more client")
    world.join("bea")
    world.settle()
    assert world.task("bea") == Evaluate(0)
    world.evaluate("bea", 0)
    for number in (1, 2):
        assert world.task("ada") == world.task("bea") == Train(number)
        world.push("ada", number, 1.0, num_pairs=30)
        assert world.task("ada") == Wait("deltas of bea")
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, quorum=0.5, round_deadline_s=10)
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
    world.store.close()


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


def test_a_round_closes_at_its_deadline_only_with_a_quorum(tmp_path: Path) -> None:
    world = World(tmp_path, quorum=0.5, round_deadline_s=10)
    begin(world, "ada", "bea")
    world.now += 11
    world.settle()
    assert world.phase is Phase.TRAINING
    world.push("bea", 1, 2.0)
    world.settle()
    assert world.adapter(1) == 2.0
    with pytest.raises(NotOpen, match="round 1 is not open, round 2 is open"):
        world.push("ada", 1, 1.0)
    world.store.close()


def test_a_delta_still_on_its_way_when_its_round_is_averaged_is_late(tmp_path: Path) -> None:
    world = World(tmp_path, quorum=0.5, round_deadline_s=10)
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
    assert not [path for path in (tmp_path / "deltas").rglob("*") if path.is_file()]
    world.store.close()


def test_only_deltas_that_an_average_needs_are_kept(world: World) -> None:
    rounds = (9, 10, 99_999, 100_000)
    names = ("ada.safetensors", ".bea.safetensors.00.part")
    for number in rounds:
        folder = world.store.round_folder(number)
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    world.store.keep_deltas({world.store.delta_path(10, "ada")}, from_round=99_999)
    kept = [
        (number, name)
        for number in rounds
        for name in names
        if (world.store.round_folder(number) / name).exists()
    ]
    assert kept == [(10, names[0]), (99_999, names[1]), (100_000, names[1])]
    assert not world.store.round_folder(9).exists()


@pytest.mark.parametrize("order", [("ada", "bea", "cyd"), ("cyd", "bea", "ada")])
def test_the_order_of_arrival_changes_no_bit(tmp_path: Path, order: tuple[str, ...]) -> None:
    world = World(tmp_path, min_clients=3)
    begin(world, "ada", "bea", "cyd")
    values = {"ada": (0.1, 7), "bea": (0.3, 11), "cyd": (-0.7, 1009)}
    for name in order:
        world.push(name, 1, values[name][0], num_pairs=values[name][1])
    world.settle()
    total = np.float64(0)
    for value, pairs in values.values():
        total += pairs * np.float64(np.float32(value))
    assert world.adapter(1) == float(np.float32(total / 1027))
    world.store.close()


def test_more_are_asked_than_are_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, sample_clients=3, close_after=2)
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
    world.store.close()


def test_a_late_delta_is_folded_into_the_open_round_and_counts_less(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=3, close_after=2, late="fold", max_staleness=1)
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
    world.store.close()


def test_a_delta_that_is_too_old_or_not_asked_for_is_not_folded(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=4, close_after=1, late="fold", max_staleness=1)
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
    world.store.close()


def test_nothing_is_folded_into_a_round_that_does_not_follow(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=1, close_after=1, late="fold")
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.settle()
    with pytest.raises(NotOpen, match="no round follows"):
        world.push("bea", 1, 1.0)
    world.store.close()


def test_a_client_without_progress_is_not_waited_for_but_may_still_answer(tmp_path: Path) -> None:
    world = World(tmp_path, progress_deadline_s=10, client_timeout_s=1000)
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
    world.store.close()


def test_the_deadline_begins_anew_with_the_server(tmp_path: Path) -> None:
    world = World(tmp_path, quorum=0.5, round_deadline_s=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.now += 9
    world.reopen()
    world.now += 9
    world.settle()
    assert world.phase is Phase.TRAINING
    world.store.close()


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


def test_a_silent_client_is_not_asked_in_the_next_round(tmp_path: Path) -> None:
    world = World(tmp_path, client_timeout_s=10, min_clients=1)
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
    world.store.close()


def test_a_paused_run_opens_no_round(world: World) -> None:
    set_paused(world.federation, True)
    begin(world, "ada", "bea")
    assert world.task("ada") == Wait("the operator, who paused the run")
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


def test_an_average_that_is_not_finite_leaves_the_adapter_as_it_was(tmp_path: Path) -> None:
    world = World(tmp_path, server_lr=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 3e38)
    world.push("bea", 1, 3e38)
    world.settle()
    assert np.isfinite(world.adapter(1))
    assert world.adapter(1) == world.adapter(0)
    assert "average_refused" in world.events
    world.store.close()


def test_a_run_is_evaluated_until_all_have_answered_or_the_deadline(tmp_path: Path) -> None:
    world = World(tmp_path, rounds=1, evaluation_deadline_s=10)
    begin(world, "ada", "bea")
    world.push("ada", 1, 1.0)
    world.push("bea", 1, 1.0)
    world.settle()
    world.evaluate("ada", 1)
    world.settle()
    assert world.phase == "EVALUATING"
    assert world.task("ada") == Wait("evaluations of bea")
    world.now += 11
    world.settle()
    assert world.phase == "FINISHED"
    world.store.close()


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
