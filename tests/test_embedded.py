"""Server and client for notebooks and programs."""

import os
from pathlib import Path

import pytest

from fedpdpo.client import Client, PersonalPolicy
from fedpdpo.client.data.preferences import Preference, read_preferences
from fedpdpo.common.errors import BadSettings, FedPDPOError
from fedpdpo.server import Server
from processes import stage
from serving import connected
from tiny import save_tiny_model, write_preferences


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "ada.jsonl"
    write_preferences(path, seed=1, num=30, taste="warm")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Server, Client]:
    """A server and one client in this process, after two rounds."""
    folder = tmp_path_factory.mktemp("run")
    model = save_tiny_model(folder / "model")
    with Server(
        state_dir=folder / "server", model=str(model), rounds=2, min_clients=1, seed=3
    ) as server:
        client = Client(server.address, data, state_dir=folder / "ada", client_id="ada", threads=1)
        client.run()
        assert server.wait(60)
    return server, client


def test_a_run_in_one_process_is_the_run_of_the_daemons_to_the_bit(
    run: tuple[Server, Client], data: Path, tmp_path: Path
) -> None:
    server, _ = run
    with stage(tmp_path) as on:
        model = server.settings.model
        daemon, port = on.server("--model", model, "--rounds", 2, "--min-clients", 1, "--seed", 3)
        on.client("ada", port, data).ends()
        daemon.ends()
    files = list((tmp_path / "server").rglob(server.adapter.name))
    assert [file.read_bytes() for file in files] == [server.adapter.read_bytes()]
    assert server.adapter.name.endswith("00002.safetensors")


def test_accuracies_come_as_rows_of_numbers(run: tuple[Server, Client]) -> None:
    rows = run[0].accuracies()
    assert [(row["adapter"], row["view"]) for row in rows] == [
        (adapter, view) for adapter in (0, 1, 2) for view in ("global", "personalized")
    ]
    assert {row["client"] for row in rows} == {"ada"}
    assert rows[0]["combined_accuracy"] == 0.5 and rows[0]["chosen_shift"] == 0.0
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert run[0].status().adapter_version == 2


def test_the_personal_model_speaks_ranks_and_measures_in_any_order(
    run: tuple[Server, Client], data: Path
) -> None:
    policy = run[1].personal()
    pairs = read_preferences(data).preferences
    measured = policy.measure(pairs)
    ranked = policy.rank("The plot is", [" dull.", " a joy."], continue_text=True)
    said = policy.reply("The plot is", continue_text=True, max_new_tokens=5)
    policy.reply("The plot is", continue_text=True, max_new_tokens=5, plain=True)
    assert policy.measure(pairs) == measured
    assert policy.rank("The plot is", [" dull.", " a joy."], continue_text=True) == ranked
    assert policy.reply("The plot is", continue_text=True, max_new_tokens=5) == said
    assert measured.personal.combined_accuracy > 0.6
    assert {one.answer for one in ranked} == {" dull.", " a joy."}


def test_as_many_answers_are_ranked_right_as_are_measured_right(
    run: tuple[Server, Client], data: Path
) -> None:
    policy = run[1].personal()
    pairs = list(read_preferences(data).preferences)
    for place, pair in enumerate(pairs[:10]):
        pairs[place] = Preference(pair.prompt, pair.rejected, pair.chosen)
    first = [
        policy.rank(str(pair.prompt), [str(pair.rejected), str(pair.chosen)], continue_text=True)[0]
        for pair in pairs
    ]
    right = [one.answer == pair.chosen for one, pair in zip(first, pairs, strict=True)]
    assert right.count(False) >= 5 and right.count(True) >= 15
    assert sum(right) / len(right) == policy.measure(pairs).personal.combined_accuracy


def test_an_exported_folder_is_the_same_policy(run: tuple[Server, Client], tmp_path: Path) -> None:
    _, client = run
    out = client.export(tmp_path / "ada")
    answers = [" dull.", " a joy."]
    told = PersonalPolicy.load(out).rank("The plot is", answers, continue_text=True)
    assert told == client.personal().rank("The plot is", answers, continue_text=True)
    assert (client.export(tmp_path / "whole", form="model") / "config.json").exists()


def test_a_server_that_is_stopped_goes_on_in_the_next_block(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with Server(state_dir=tmp_path, model="tiny", rounds=2) as server:
            ids.append(server.status().run.run_id)
            with connected(server.port):
                assert not server.wait(0.01)
    assert ids[0] == ids[1] == server.status().run.run_id
    assert server.accuracies() == []


def test_errors_are_told_where_the_caller_is(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"unknown setting round; did you mean rounds\?"):
        Server(round=3)
    with pytest.raises(BadSettings, match="unknown setting eval_shar"):
        Client("localhost:1", "x.jsonl", eval_shar=0.1)
    with pytest.raises(FedPDPOError, match="with block"):
        Server(state_dir=tmp_path / "a").status()
    with Server(state_dir=tmp_path / "b", model="tiny") as first:
        port = first.port
        with (
            pytest.raises(BadSettings, match="in use"),
            Server(state_dir=tmp_path / "c", model="tiny", port=port),
        ):
            pass


def test_settings_from_the_environment_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "FEDPDPO_SERVER_ROUNDS" not in os.environ
    monkeypatch.setenv("FEDPDPO_SERVER_ROUNDS", "7")
    with Server(state_dir=tmp_path, model="tiny") as server:
        assert server.status().run.num_rounds == 7
