"""What the accuracy benchmark rests on: who sees which pairs, what is chosen where, same bits."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import by_wire
import generations
import newcomer
from bench import Bench, ids
from cell import ID_CHARS, Cell
from compare import paired_bootstrap
from fedpdpo.client.model.lora import SharedState
from fedpdpo.client.state import ClientState
from fedpdpo.client.training.reference import _sha256
from fedpdpo.common.files import sha256_of
from fedpdpo.common.layout import LoraLayout
from methods import METHODS
from partitions import SETTINGS, Setting, annotators, debaters, domains
from plan import (
    FURTHER,
    RATES,
    ROUNDS,
    ROWS,
    Opened,
    choice,
    chosen_rate,
    further_cells,
    mean_accuracy,
    table_cell,
    table_cells,
)
from processes import stage
from report import BenchmarkError
from tiny import save_tiny_model, tiny_records
from worlds import SPLITS, pools

POOL = "persona_say"
PEOPLE = {"ada": "warm", "bea": "harsh"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A pool of two people with opposite tastes, as the benchmark reads it."""
    for seed, (part, num) in enumerate((("train", 40), ("eval", 60))):
        lines = [
            json.dumps(record | {"annotator": name}
                       | {key: f"{part} {place}:{record[key]}" for key in ("chosen", "rejected")})
            for name, taste in PEOPLE.items()
            for place, record in enumerate(
                tiny_records(seed=seed, num=num, taste=taste, opening=f"{part} says"))
        ]  # fmt: skip
        (tmp_path / f"{POOL}.{part}.jsonl").write_text("\n".join(lines) + "\n")
    pools.cache_clear()
    return tmp_path


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The two people as a setting of the table."""
    found = Setting("two", "two people", frozenset({POOL}), annotators(POOL, pairs=16, held_out=8))
    monkeypatch.setitem(SETTINGS, "two", found)
    monkeypatch.setattr("plan.TUNED_IN", ("two",))
    return found


def test_no_pair_of_answers_is_in_two_splits_whoever_prefers_which(data: Path) -> None:
    found = pools(POOL, data)
    answers = {
        split: {(frozenset((pair.chosen, pair.rejected)), pair.prompt) for pair in found[split]}
        for split in SPLITS
    }
    assert all(answers.values())
    assert not answers["tune"] & answers["test"]
    assert not answers["train"] & (answers["tune"] | answers["test"])


def test_a_seed_draws_the_pairs_to_train_on_and_no_others(data: Path, setting: Setting) -> None:
    one, again, other = (setting.clients(seed, data) for seed in (0, 0, 1))
    assert one == again
    for name in PEOPLE:
        assert {pair.annotator for some in one[name].values() for pair in some} == {name}
        assert one[name]["train"] != other[name]["train"]
        assert one[name]["tune"] == other[name]["tune"]
        assert one[name]["test"] == other[name]["test"]
        assert [len(one[name][split]) for split in SPLITS] == [16, 8, 8]


def test_nobody_trains_on_an_answer_that_somebody_is_tested_on(
    data: Path, setting: Setting
) -> None:
    file = data / f"{POOL}.train.jsonl"
    held = json.loads((data / f"{POOL}.eval.jsonl").read_text(encoding="utf-8").splitlines()[0])
    mixed = held | {"rejected": "train and another answer"}
    file.write_text(file.read_text(encoding="utf-8") + json.dumps(mixed) + "\n", encoding="utf-8")
    pools.cache_clear()
    assert len(pools(POOL, data)["train"]) == 81
    whole = annotators(POOL, pairs=1000)(0, data)
    assert sum(len(client["train"]) for client in whole.values()) == 80
    for client in whole.values():
        assert all("train" in pair.chosen + pair.rejected for pair in client["train"])


def test_people_are_tuned_on_sides_of_debates_that_nobody_trains_on(data: Path) -> None:
    lines = [
        json.dumps({"prompt": f"side {number % 14}", "chosen": f"yes {number}",
                    "rejected": f"no {number}", "annotator": name})
        for name in PEOPLE for number in range(56)
    ]  # fmt: skip
    (data / f"{POOL}.train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pools.cache_clear()
    clients = debaters(POOL, pairs=12, held_out=100, most_chars=1000)(0, data)
    assert clients.keys() == PEOPLE.keys()
    held, learnt = (
        {pair.prompt for client in clients.values() for pair in client[split]}
        for split in ("tune", "train")
    )
    assert len(held) == 4
    assert not held & learnt
    for name, client in clients.items():
        assert [len(client[split]) for split in SPLITS] == [12, 16, 0]
        assert {pair.annotator for some in client.values() for pair in some} == {name}


def test_a_setting_of_a_part_that_is_left_out_does_not_make_another_cell() -> None:
    rates = {"head_lr": 1e-3, "bottleneck_lr": 1e-3, "reward_lr": 1e-3}

    def keys(method: str, changed: dict[str, Any]) -> set[str]:
        return {Cell("film-3", method, 0, 1, changed={**changed, **one}).key
                for one in ({}, *({name: rate} for name, rate in rates.items()))}  # fmt: skip

    assert len(keys("fedavg", {})) == 1
    assert len(keys("fedpdpo", {})) == 4
    for without in ({"head": "frozen"}, {"bottleneck": 0}, {"reward_head": False}):
        assert len(keys("fedpdpo", without)) == 3


def test_a_domain_has_pairs_that_need_no_cutting(data: Path) -> None:
    lengths = [pair.num_chars for pair in pools(POOL, data)["train"]]
    middle = sorted(lengths)[40]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("partitions.SHORT", middle)
        short = domains((POOL,), pairs=1000, short=True)(0, data)[POOL]["train"]
    assert len(short) == sum(length <= middle for length in lengths) < len(lengths)
    assert len(domains((POOL,), pairs=1000)(0, data)[POOL]["train"]) == len(lengths)


def test_data_that_are_missing_are_named_with_where_they_can_be_had(tmp_path: Path) -> None:
    pools.cache_clear()
    with pytest.raises(BenchmarkError, match=r"persona_say.train.jsonl is missing: .*anthropics"):
        pools(POOL, tmp_path)


def results(cell: Cell, share: float) -> dict[str, Any]:
    told = {"combined": share}
    return {"cell": cell.told(), "clients": {"ada": {"after": told, "local": told}}}


def tuned(method: str, shares: dict[float, float]) -> dict[str, Any]:
    cells = [Cell("two", method, 0, ROUNDS, rate=rate) for rate in shares]
    return {cell.key: results(cell, shares[cell.rate]) for cell in cells}


def test_the_rate_that_was_best_on_tune_is_taken(setting: Setting) -> None:
    for best in RATES:
        found = tuned("fedavg", {rate: 0.7 if rate == best else 0.6 for rate in (*RATES, FURTHER)})
        cell = table_cell(found, ROWS["fedavg"], "two", 1)
        assert (cell.rate, cell.split, cell.seed) == (best, "test", 1)


def test_a_row_that_is_best_at_the_largest_rate_is_tried_at_a_larger_one(setting: Setting) -> None:
    found: dict[str, Any] = {}
    for method in METHODS.values():
        best = RATES[-1] if method.name == "fedavg" else RATES[0]
        found |= tuned(method.name, {rate: 0.7 if rate == best else 0.6 for rate in RATES})
    assert {cell.key for cell in further_cells(found)} == set(tuned("fedavg", {FURTHER: 0.0}))
    with pytest.raises(BenchmarkError, match="chosen before test is opened"):
        chosen_rate(found, ROWS["fedavg-ft"])
    assert chosen_rate(found | tuned("fedavg", {FURTHER: 0.65}), ROWS["fedavg-ft"]) == RATES[-1]
    assert chosen_rate(found | tuned("fedavg", {FURTHER: 0.75}), ROWS["fedavg-ft"]) == FURTHER


def test_the_rate_and_the_stage_are_chosen_together(setting: Setting) -> None:
    found = tuned("local", {1.0: 0.6, 3.0: 0.7, 10.0: 0.5})
    (low,) = tuned("local", {1.0: 0.6})
    found[low]["clients"]["ada"]["after"] = {"combined": 0.8}
    assert choice(found, ROWS["local"]) == (1.0, "after")
    fixed = tuned("fedavg", {1.0: 0.6, 3.0: 0.7, 10.0: 0.5})
    assert choice(fixed, ROWS["fedavg"]) == (3.0, "after")
    assert choice(fixed, ROWS["fedavg-ft"]) == (3.0, "local")
    assert choice({}, ROWS["base"]) == (1.0, "after")


def test_no_table_before_every_rate_was_tried(setting: Setting) -> None:
    found = tuned("fedavg", {RATES[0]: 0.6})
    with pytest.raises(BenchmarkError, match="chosen before test is opened"):
        chosen_rate(found, ROWS["fedavg"])
    with pytest.raises(BenchmarkError, match="chosen before test is opened"):
        list(table_cells(found, Opened({})))


def test_test_pairs_are_opened_for_one_configuration_alone() -> None:
    kept: dict[str, str] = {}
    cell = Cell("two", "fedavg", 0, ROUNDS, rate=1.0, split="test")
    Opened(kept).open(ROWS["fedavg"], cell)
    Opened(kept).open(ROWS["fedavg"], cell)
    for other in (
        Cell("two", "fedavg", 0, ROUNDS, rate=2.0, split="test"),
        Cell("two", "fedavg", 0, ROUNDS, split="test", changed={"beta": 0.3}),
        Cell("two", "fedavg", 0, ROUNDS + 1, split="test"),
    ):
        with pytest.raises(BenchmarkError, match="were opened for"):
            Opened(kept).open(ROWS["fedavg"], other)
    Opened(kept).open(ROWS["fedavg-ft"], Cell("two", "fedavg", 0, ROUNDS, rate=2.0, split="test"))


def test_a_cells_name_changes_with_any_setting_and_not_with_a_default_that_is_told() -> None:
    plain = Cell("two", "fedpdpo", 0, ROUNDS)
    assert plain.key == Cell("two", "fedpdpo", 0, ROUNDS, changed={"averaging": "factors"}).key
    others = (
        {"beta": 0.3},
        {"alpha": 2.0},
        {"lora.alpha": 2.0},
        {"averaging": "products"},
        {"lora.rank": 4},
        {"lora_moments": "keep"},
    )
    keys = {Cell("two", "fedpdpo", 0, ROUNDS, changed=changed).key for changed in others}
    assert len(keys | {plain.key, Cell("two", "fedpdpo", 0, ROUNDS, rate=2.0).key}) == 8
    with pytest.raises(BenchmarkError, match="betta is no setting"):
        _ = Cell("two", "fedpdpo", 0, ROUNDS, changed={"betta": 1}).key


def test_every_method_differs_from_every_other() -> None:
    told = [
        (method.configured({}, rate=1.0).method.model_dump_json(), method.shares, method.twin,
         method.trains)
        for method in METHODS.values()
    ]  # fmt: skip
    assert len(set(told)) == len(METHODS)


def marked(*, first: int = 0, **clients: str) -> dict[str, Any]:
    """Clients with so many pairs of their own each, numbered from the first."""
    found: dict[str, Any] = {}
    for name, marks in clients.items():
        named = "".join(f"{number:0{ID_CHARS}x}" for number in range(first, first + len(marks)))
        found[name] = {"local": {"right": marks}, "ids": named}
        first += len(marks)
    return {"clients": found}


def test_the_bootstrap_gives_the_mean_difference_and_an_interval_around_it() -> None:
    ours = {0: marked(ada="1111h" * 20, bea="10" * 50)}
    theirs = {0: marked(ada="1010h" * 20, bea="10" * 50), 1: marked(ada="0", bea="0")}
    mean, low, high = paired_bootstrap(ours, theirs, stages=("local", "local"))
    assert mean == pytest.approx(0.2)
    assert 0.1 < low < 0.2 < high < 0.3
    assert paired_bootstrap(ours, ours, stages=("local", "local")) == (0, 0, 0)
    with pytest.raises(BenchmarkError, match="no seed in common"):
        paired_bootstrap(ours, {2: theirs[0]}, stages=("local", "local"))


def test_pairs_that_are_tested_on_again_are_not_more_pairs() -> None:
    cells = marked(ada="1110" * 20), marked(ada="1010" * 20)
    once = paired_bootstrap(*({1: cell} for cell in cells), stages=("local", "local"))
    again = [
        {seed: {"clients": cell["clients"] | {"bea": cell["clients"]["ada"]}} for seed in (1, 2)}
        for cell in cells
    ]
    assert paired_bootstrap(*again, stages=("local", "local")) == pytest.approx(once)
    others = marked(first=1000, ada="1110" * 20), marked(first=1000, ada="1010" * 20)
    more = [{1: one, 2: two} for one, two in zip(cells, others, strict=True)]
    mean, low, high = paired_bootstrap(*more, stages=("local", "local"))
    assert mean == once[0]
    assert high - low < 0.8 * (once[2] - once[1])


def test_a_cell_of_the_table_names_its_pairs_whoever_prefers_which(
    tiny_bench: Bench, setting: Setting
) -> None:
    cell = Cell("two", "base", 0, 1, split="test")
    found = tiny_bench.run(cell)["clients"]
    clients = setting.clients(0, tiny_bench.data)
    for place in tiny_bench.places(cell, setting, clients, ("test",)):
        pairs = place.sets["test"]
        assert found[place.name]["ids"] == ids(pairs)
        turned = [replace(one, chosen=one.rejected, rejected=one.chosen) for one in pairs.pairs]
        assert ids(replace(pairs, pairs=turned)) == ids(pairs)
        assert len({ids(replace(pairs, pairs=[pair])) for pair in pairs.pairs}) == 8


@pytest.mark.system
def test_one_process_gives_the_bits_that_real_processes_give(
    tmp_path: Path, data: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")
    monkeypatch.setattr("bench.DTYPE", "float32")
    changed = {"lora.layers": "last-2", "lora.rank": 4, "reward_lr": 5e-2, "lora_lr": 1e-2}
    cell = Cell("two", "fedpdpo", 3, 2, changed=changed)
    virtual = Bench(model=str(model), data=data, cache=tmp_path / "cache")
    clients = setting.clients(3, data)
    with virtual.federation(cell, virtual.places(cell, setting, clients, ())) as federation:
        adapters = [federation.store.adapter_path(version) for version in range(3)]
        expected = [sha256_of(path) for path in adapters]
        expected += [private_digest(one.state.folder, one.name) for one in federation.clients]
    wanted = cell.configured
    told: dict[str, Any] = {"LORA__LAYERS": "last-2", "LORA__RANK": 4, "SEED": 3} | {
        f"METHOD__{key.upper()}": value for key, value in wanted.method.model_dump().items()
    }
    for key, value in told.items():
        monkeypatch.setenv(f"FEDPDPO_SERVER_{key}", str(value))
    with stage(tmp_path / "real") as on:
        server, port = on.server("--model", model, "--min-clients", 2, "--rounds", 2)
        programs = []
        for name, pairs in clients.items():
            files = [tmp_path / f"{name}.{part}.jsonl" for part in ("train", "tune")]
            for file in files:
                part = file.suffixes[-2].removeprefix(".")
                file.write_text("".join(pair.record() for pair in pairs[part]))
            options = ("--eval-data", files[1], "--threads", 1, "--max-tokens", 256)
            programs.append(on.client(name, port, files[0], *options))
        assert [program.ends() for program in (*programs, server)] == [0, 0, 0]
    real = tmp_path / "real"
    found = [sha256_of(real / "server" / "adapters" / path.name) for path in adapters]
    found += [private_digest(real / name, name) for name in clients]
    assert found == expected
    assert len(set(found)) == len(found)


def private_digest(folder: Path, name: str) -> bytes:
    last = ClientState(folder, client_id=name).last_round()
    assert last is not None
    return sha256_of(last[0].delta.with_name("private.safetensors"))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "base"])
def test_every_method_learns_the_tastes_of_two_people(
    tmp_path: Path, data: Path, setting: Setting, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(tmp_path / "model")
    monkeypatch.setattr("bench.DTYPE", "float32")
    changed = {"lora.layers": "last-2", "lora.rank": 4}
    rates = {"reward_lr": 5e-2, "lora_lr": 1e-2, "head_lr": 1e-3, "bottleneck_lr": 1e-2}
    cell = Cell("two", method, 0, 4, changed=changed | rates)
    result = Bench(model=str(model), data=data, cache=tmp_path / "cache").run(cell)
    assert result["clients"].keys() == PEOPLE.keys()
    assert mean_accuracy(result, "local") > 0.6
    for client in result["clients"].values():
        assert client["adapter_bytes"] > 0
        assert "right" not in client["local"]
    assert torch.get_num_threads() == 1


@pytest.fixture
def tiny_bench(
    tmp_path: Path, data: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """A bench on the tiny model, whose films are the two people's pairs."""
    monkeypatch.setattr("bench.DTYPE", "float32")
    for module in (newcomer, generations):
        monkeypatch.setattr(module, "FILM", POOL)
        monkeypatch.setattr(module, "SETTING", "two")
    model = save_tiny_model(tmp_path / "model")
    return Bench(model=str(model), data=data, cache=tmp_path / "cache")


def test_a_newcomer_is_measured_from_each_start_with_each_number_of_pairs(
    tiny_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newcomer, "PAIRS", (2, 8))
    read: list[Path] = []
    known = SharedState.read

    def noted(path: Path, layout: LoraLayout) -> SharedState:
        read.append(path)
        return known(path, layout)

    monkeypatch.setattr(SharedState, "read", noted)
    found = [newcomer.newcomer(tiny_bench, newcomer.newcomer_cell(seed, 1, 1.0)) for seed in (0, 1)]
    starts = [path.stem for path in read if "server" in path.parts]
    assert starts == ["version-00001", "version-00000"] * 2
    assert [one["taste"] for one in found] == ["warm", "harsh"]
    for one in found:
        assert one["accuracy"].keys() == {"shared", "alone"}
        for by_pairs in one["accuracy"].values():
            assert by_pairs.keys() == {"2", "8"}
            assert all(0 <= told["combined"] <= 1 for told in by_pairs.values())


def test_what_each_clients_model_writes_is_counted_and_judged(
    tiny_bench: Bench, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "PROMPTS", 3)
    monkeypatch.setattr(generations, "NEW_TOKENS", 4)
    cell = replace(generations.generations_cell(1, 1.0), changed={"lora_lr": 0.5})
    found = generations.generations(tiny_bench, cell)
    assert found["prompts"] == 3
    assert found["models"].keys() == {"base", *PEOPLE}
    for told in found["models"].values():
        assert -1 <= told["sentiment"] <= 1
        assert len(told["first"]) == 3
        assert told["sentiment"] == pytest.approx(fmean(told["scores"]))
    base = found["models"].pop("base")
    assert base["change"] == base["change_error"] == 0
    for told in found["models"].values():
        apart = [
            after - before for after, before in zip(told["scores"], base["scores"], strict=True)
        ]
        assert told["change"] == pytest.approx(fmean(apart))
        assert told["change_error"] == pytest.approx(stdev(apart) / 3**0.5)
    assert any(told["first"] != base["first"] for told in found["models"].values())


@pytest.mark.system
def test_the_row_through_processes_has_the_bits_of_one_process(
    tmp_path: Path, tiny_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("by_wire.ROOT", tmp_path)
    cell = Cell("two", "fedpdpo", 0, 2)
    tiny_bench.run(cell)
    for kept in (tmp_path / "cache").rglob("reference.safetensors"):
        of_other_code(kept)
    found = by_wire.same_bits(tiny_bench, cell)
    assert len(found["digests"]) == 3 + len(PEOPLE)
    monkeypatch.setattr(by_wire, "_digests", altered(by_wire._digests))
    with pytest.raises(BenchmarkError, match="other bits through processes: ada"):
        by_wire.same_bits(tiny_bench, cell)


def of_other_code(path: Path) -> None:
    """As if reference log-probabilities had been computed with other rounding."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["logps"][:, 0] += 1e-3
    tensors["sha256"] = _sha256(tensors)
    save_file(tensors, path, metadata=metadata)


def altered(digests: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    """As if ada's private parts had come out differently each time."""
    calls = itertools.count()
    return lambda *given: digests(*given) | {"ada": str(next(calls))}
