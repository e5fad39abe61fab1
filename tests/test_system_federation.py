"""Whole federations of real processes: undisturbed, killed, watched on the wire."""

import signal
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from processes import Program, Stage, is_amid_training, stage, status, until
from proxy import proxied
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

CLIENTS = {"ada": "warm", "bea": "harsh", "cyd": "warm"}
METHOD = ("--method.local-epochs", 6, "--lora.layers", "last-2", "--lora.rank", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    files = {}
    for seed, (name, taste) in enumerate(CLIENTS.items()):
        files[name] = folder / f"{name}.jsonl"
        write_preferences(files[name], seed=seed, num=100, taste=taste)
    return files


def start(on: Stage, model: Path, data: dict[str, Path]) -> tuple[Program, dict[str, Program], int]:
    server, port = on.server(*server_arguments(model))
    clients = {name: on.client(name, port, path) for name, path in data.items()}
    return server, clients, port


def server_arguments(model: Path) -> tuple[object, ...]:
    return ("--model", model, "--min-clients", len(CLIENTS), "--rounds", 3, *METHOD)


def final_adapter(folder: Path) -> bytes:
    return (folder / "server/adapters/version-00003.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, model: Path, data: dict[str, Path]
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    with stage(folder) as on:
        server, clients, _ = start(on, model, data)
        for program in (*clients.values(), server):
            assert program.ends() == 0, program.output
    return folder


def test_a_run_ends_by_itself_and_every_client_holds_the_final_adapter(undisturbed: Path) -> None:
    final = final_adapter(undisturbed)
    for name in CLIENTS:
        kept = undisturbed / name / "adapters"
        assert [path.read_bytes() for path in kept.iterdir()] == [final]
        assert "finished adapter=3 stopped=False" in (undisturbed / f"{name}.log").read_text()
    assert not list((undisturbed / "server/deltas").iterdir())


def test_training_moves_the_shared_adapter(undisturbed: Path) -> None:
    first = load_file(undisturbed / "server/adapters/version-00000.safetensors")
    last = load_file(undisturbed / "server/adapters/version-00003.safetensors")
    assert all(not np.array_equal(first[name], last[name]) for name in first)


def test_kill_9_of_server_and_clients_within_a_round_changes_no_bit(
    tmp_path: Path, model: Path, data: dict[str, Path], undisturbed: Path
) -> None:
    with stage(tmp_path) as on:
        server, clients, port = start(on, model, data)
        until(lambda: is_amid_training(port, "bea", round_number=2), "bea amid round 2")
        clients["bea"].kill()
        server.kill()
        assert (tmp_path / "bea/rounds/round-00001").is_dir()
        assert not (tmp_path / "bea/rounds/round-00002").exists()
        until(lambda: (tmp_path / "ada/rounds/round-00002").is_dir(), "ada's trained round 2")
        clients["ada"].kill()
        server, _ = on.server(*server_arguments(model), port=port)
        clients["bea"] = on.client("bea", port, data["bea"])
        clients["ada"] = on.client("ada", port, data["ada"])
        clients["bea"].says("resumed after_round=1")
        clients["ada"].says("resumed after_round=2")
        until(lambda: status(port).round == 3, "round 3")
        server.kill()
        server, _ = on.server(*server_arguments(model), port=port)
        for program in (*clients.values(), server):
            assert program.ends() == 0, program.output
    assert final_adapter(tmp_path) == final_adapter(undisturbed)
    for name in CLIENTS:
        private = "rounds/round-00003/private.safetensors"
        assert (tmp_path / name / private).read_bytes() == (
            undisturbed / name / private
        ).read_bytes()


def test_a_round_cut_off_by_a_signal_goes_on_from_its_step_to_the_same_bits(
    tmp_path: Path, model: Path, data: dict[str, Path], undisturbed: Path
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(*server_arguments(model))
        saving = {"ada": 0, "bea": 1000, "cyd": 0}
        clients = {
            name: on.client(name, port, data[name], "--save-every-s", seconds)
            for name, seconds in saving.items()
        }
        for name, end in (("ada", Program.kill), ("bea", Program.terminate)):
            until(partial(is_amid_training, port, name, round_number=2), f"{name} amid round 2")
            end(clients[name])
        assert "interrupted round=2 step=" in clients["bea"].output
        assert clients["bea"].ends() == 128 + signal.SIGTERM
        for name in ("ada", "bea"):
            clients[name] = on.client(name, port, data[name])
            step = clients[name].says(r"round_resumed round=2 after_step=(\d+)").group(1)
            assert int(step) > 0
        for program in (*clients.values(), server):
            assert program.ends() == 0, program.output
    assert final_adapter(tmp_path) == final_adapter(undisturbed)
    for name in CLIENTS:
        for file in ("private.safetensors", "optimizer.safetensors"):
            kept = f"rounds/round-00003/{file}"
            assert (tmp_path / name / kept).read_bytes() == (undisturbed / name / kept).read_bytes()
        assert not (tmp_path / name / "unfinished").exists()


def test_clients_wait_for_a_server_that_is_not_up_yet(
    tmp_path: Path, model: Path, data: dict[str, Path]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with stage(tmp_path) as on:
        clients = [on.client(name, port, data[name]) for name in ("ada", "bea")]
        for client in clients:
            client.says("waiting_for_server .*attempt=2 .*cannot be reached")
        server, _ = on.server("--model", model, "--rounds", 1, *METHOD, port=port)
        for program in (*clients, server):
            assert program.ends() == 0, program.output


def windows(values: bytes, *, length: int = 16, step: int = 16) -> list[bytes]:
    pieces = (values[at : at + length] for at in range(0, len(values) - length + 1, step))
    return [piece for piece in pieces if len(set(piece)) > 4]


def test_no_private_tensor_and_no_text_is_ever_sent(tmp_path: Path, model: Path) -> None:
    secret = "the cellar door opens at midnight"
    data = tmp_path / "secret.jsonl"
    write_preferences(data, seed=9, num=40, taste="warm", opening=secret)
    with stage(tmp_path) as on:
        server, port = on.server("--model", model, "--min-clients", 1, "--rounds", 2, *METHOD)
        with proxied(port) as tap:
            client = on.client("ada", tap.port, data)
            assert client.ends() == 0, client.output
            assert server.ends() == 0, server.output
            sent = tap.up
    state = tmp_path / "ada/rounds/round-00002"
    delta = windows((state / "delta.safetensors").read_bytes()[-4096:])
    assert sum(piece in sent for piece in delta) > 0.9 * len(delta), "the tap misses what is sent"
    assert b"lora_A.weight" in sent
    assert b"ada" in sent
    kept = [
        *state.parent.glob("*/private.safetensors"),
        *state.parent.glob("*/optimizer.safetensors"),
    ]
    assert len(kept) == 4
    for path in kept:
        for name, tensor in load_file(path).items():
            assert name.encode() not in sent
            assert not [piece for piece in windows(tensor.tobytes()) if piece in sent], name
    for line in data.read_text().splitlines():
        for words in windows_of_text(line):
            assert words.encode() not in sent, words
    assert secret.encode() not in sent


def windows_of_text(line: str) -> list[str]:
    return [line[at : at + 12] for at in range(0, len(line) - 12, 6)]


@pytest.mark.parametrize("encoding", ["bfloat16", "int8", "topk"])
def test_a_run_with_encoded_deltas_ends_and_keeps_what_they_leave_out(
    tmp_path: Path, model: Path, data: dict[str, Path], encoding: str
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(
            "--model", model, "--min-clients", 2, "--rounds", 2, *METHOD,
            "--encoding", encoding, "--topk-share", 0.1, "--zstd",
        )  # fmt: skip
        clients = [on.client(name, port, data[name]) for name in ("ada", "bea")]
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    sizes = {path.stat().st_size for path in tmp_path.rglob("delta.safetensors")}
    whole = len((tmp_path / "server/adapters/version-00002.safetensors").read_bytes())
    headers = 0.4 * whole
    assert max(sizes) < headers + {"bfloat16": 0.5, "int8": 0.3, "topk": 0.2}[encoding] * whole
    left_out = load_file(tmp_path / "ada/rounds/round-00002/residual.safetensors")
    assert any(np.abs(tensor).max() > 0 for tensor in left_out.values())
