"""`fedpdpo simulate`: virtual clients come to the same bits as real ones, whatever is killed."""

import contextlib
import csv
import json
import secrets
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fedpdpo.common.errors import BadSettings
from fedpdpo.simulation.cluster import num_workers
from fedpdpo.simulation.partition import divided, read_keyed
from fedpdpo.simulation.settings import Partition, SimulationSettings, Workers
from processes import BIN, Program, done, stage, until
from tiny import save_tiny_model, write_preferences

CLIENTS = ("client-001", "client-002", "client-003")
ROUNDS = 3


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    save_tiny_model(folder / "model")
    write_preferences(folder / "pool.jsonl", seed=1, num=90, taste="warm")
    return folder


def asked(scene: Path, out: Path, **more: Any) -> list[str]:
    """The command's arguments; names are flags with _ for - and __ for a point."""
    flags = {
        "data": scene / "pool.jsonl", "clients": len(CLIENTS), "out": out,
        "partition__by": "sizes", "partition__opposed": 0.34, "partition__min_pairs": 20,
        "server__model": scene / "model", "server__rounds": ROUNDS, "server__seed": 5,
        "client__eval_share": 0.2, "workers__live_clients": 1,
    } | more  # fmt: skip
    told = ["simulate"]
    for name, value in flags.items():
        told += ["--" + name.replace("__", ".").replace("_", "-"), str(value)]
    return told


@pytest.fixture(scope="module")
def simulated(scene: Path) -> Path:
    """A simulation that ran to its end undisturbed."""
    found = done("fedpdpo", *asked(scene, scene / "out"))
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"adapter {ROUNDS} of {ROUNDS}: " in found.stdout
    return scene / "out"


def left(out: Path, name: str = "") -> dict[str, bytes]:
    """Every tensor file of the server, or of a client's state, by name."""
    folder = out / "clients" / name / "state" if name else out / "server"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.safetensors"))
        if "trunk" not in str(path)
    }


def test_virtual_clients_come_to_the_bits_of_real_ones(
    scene: Path, simulated: Path, tmp_path: Path
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server(
            "--model", scene / "model", "--rounds", ROUNDS, "--seed", 5, "--min-clients", 3
        )
        clients = [
            on.client(name, port, simulated / "clients" / name / "preferences.jsonl",
                      "--eval-share", 0.2)
            for name in CLIENTS
        ]  # fmt: skip
        assert [one.ends() for one in (*clients, server)] == [0, 0, 0, 0]
    real = {path.name: path.read_bytes() for path in (tmp_path / "server").rglob("version-*")}
    virtual = {path.name: path.read_bytes() for path in (simulated / "server").rglob("version-*")}
    assert real == virtual
    assert f"version-{ROUNDS:05}.safetensors" in real
    for name in CLIENTS:
        own = {str(path.relative_to(tmp_path / name)): path.read_bytes()
               for path in (tmp_path / name).rglob("*.safetensors")}  # fmt: skip
        private = {key: value for key, value in left(simulated, name).items() if key in own}
        rounds = {key for key in own if key.startswith("rounds/")}
        assert rounds
        assert rounds == {key for key in private if key.startswith("rounds/")}
        assert private == {key: own[key] for key in private}


def test_the_table_has_what_every_client_measured_on_every_adapter(simulated: Path) -> None:
    with (simulated / "accuracies.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {(row["adapter"], row["client"], row["view"]) for row in rows} == {
        (str(adapter), name, view)
        for adapter in range(ROUNDS + 1)
        for name in CLIENTS
        for view in ("global", "personalized")
    }
    last = [float(row["combined_accuracy"]) for row in rows
            if row["adapter"] == str(ROUNDS) and row["view"] == "personalized"]  # fmt: skip
    assert sum(last) / len(last) > 0.6
    with (simulated / "clients.csv").open(encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert sum(int(row["pairs"]) for row in told) == 90
    assert [row["opposed"] for row in told].count("True") == 1


def test_clients_have_the_pairs_that_the_partition_gives_them(scene: Path, simulated: Path) -> None:
    how = Partition(by="sizes", opposed=0.34, min_pairs=20)
    shares = divided(read_keyed(scene / "pool.jsonl", how), how, num_clients=3, seed=0)
    for name, share in shares.items():
        lines = (simulated / "clients" / name / "preferences.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line) for line in lines.splitlines()] == [
            pair.record for pair in share.pairs
        ]


def hosts(program: Program) -> list[psutil.Process]:
    """The workers below a simulation."""
    found = psutil.Process(program.process.pid).children(recursive=True)
    return [one for one in found if "ray::_Host" in " ".join(one.cmdline())]


@pytest.fixture
def begun(scene: Path, tmp_path: Path) -> Iterator[Program]:
    """A simulation that has published its first adapter."""
    with stage(tmp_path) as on:
        program = on.start("fedpdpo", *asked(scene, tmp_path / "out"), log="simulate")
        program.says(r"adapter 1 of 3")
        yield program


def test_a_killed_worker_is_replaced_and_the_bits_are_the_same(
    begun: Program, simulated: Path, tmp_path: Path
) -> None:
    killed = hosts(begun)[0]
    killed.kill()
    assert begun.ends() == 0, begun.output
    assert left(tmp_path / "out") == left(simulated)


def test_a_killed_simulation_goes_on_by_the_same_command_to_the_same_bits(
    begun: Program, scene: Path, simulated: Path, tmp_path: Path
) -> None:
    children = psutil.Process(begun.process.pid).children(recursive=True)
    begun.kill()
    until(lambda: not any(one.is_running() for one in children), "Ray's end")
    assert not (tmp_path / "out" / "accuracies.csv").exists()
    found = done("fedpdpo", *asked(scene, tmp_path / "out"))
    assert found.returncode == 0, found.stderr
    assert left(tmp_path / "out") == left(simulated)
    assert (tmp_path / "out" / "accuracies.csv").read_bytes() == (
        simulated / "accuracies.csv"
    ).read_bytes()


@pytest.mark.parametrize("still_there", [0, 1])
def test_an_ended_simulation_starts_again_and_has_its_table(
    scene: Path, simulated: Path, tmp_path: Path, still_there: int
) -> None:
    out = tmp_path / "out"
    shutil.copytree(simulated, out)
    (out / "accuracies.csv").unlink()
    with contextlib.closing(sqlite3.connect(out / "server" / "run.sqlite")) as run, run:
        run.executemany(
            "UPDATE clients SET left = 0 WHERE client_id = ?",
            [(one,) for one in CLIENTS[:still_there]],
        )
    found = done("fedpdpo", *asked(scene, out))
    assert found.returncode == 0, found.stdout + found.stderr
    assert ("1 clients in 1 workers" in found.stdout) == bool(still_there)
    assert left(out) == left(simulated)
    assert (out / "accuracies.csv").read_bytes() == (simulated / "accuracies.csv").read_bytes()


def test_a_simulation_that_ended_before_any_measured_says_so(
    scene: Path, simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(simulated, out)
    (out / "accuracies.csv").unlink()
    with contextlib.closing(sqlite3.connect(out / "server" / "run.sqlite")) as run, run:
        run.execute("DELETE FROM evaluations")
    found = done("fedpdpo", *asked(scene, out))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "before any client had measured" in found.stdout
    assert not (out / "accuracies.csv").exists()


def test_a_ray_of_others_is_left_alone_by_default(
    scene: Path, simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    shutil.copytree(simulated, tmp_path / "out")
    found = done("fedpdpo", *asked(scene, tmp_path / "out"))
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("nodes", "each", "expected"),
    [
        ([{"CPU": 3}, {"CPU": 3}], {"cpus": 2}, 2),
        ([{"CPU": 8, "GPU": 2}], {"gpus": 0.4}, 4),
        ([{"CPU": 64, "GPU": 1}], {"gpus": 0.1}, 10),
        ([{"CPU": 8, "GPU": 3}, {"CPU": 8, "GPU": 3}], {"gpus": 2}, 2),
        ([{"CPU": 8}, {"CPU": 2, "GPU": 4}], {"gpus": 1}, 2),
        ([{"CPU": 8, "memory": 3 * 2**30}] * 2, {"memory_gib": 2}, 2),
    ],
    ids=str,
)
def test_each_worker_fits_on_one_node_and_on_one_gpu(
    nodes: list[dict[str, float]], each: dict[str, Any], expected: int
) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 64, "GPU": 8, "memory": 2**40}}
    ray = SimpleNamespace(
        nodes=lambda: [gone, *({"Alive": True, "Resources": one} for one in nodes)],
        cluster_resources=lambda: sum(map(Counter, nodes), Counter()),
    )
    assert num_workers(Workers(**each), ray, 100) == expected
    with pytest.raises(BadSettings, match=f"with room for {expected}"):
        num_workers(Workers(**each, count=expected + 1), ray, 100)


def test_a_folder_of_other_settings_or_of_something_else_is_refused(
    scene: Path, simulated: Path, tmp_path: Path
) -> None:
    found = done("fedpdpo", *asked(scene, simulated, server__rounds=9))
    assert found.returncode == 1
    assert "holds a simulation of other data or settings" in found.stderr
    found = done("fedpdpo", *asked(scene, tmp_path))
    assert found.returncode == 1
    assert "no simulation's; choose another --out" in found.stderr
    (tmp_path / "simulation.json").write_text('{"partition": {"by"', encoding="utf-8")
    found = done("fedpdpo", *asked(scene, tmp_path))
    assert found.returncode == 1
    assert "holds a simulation of other data or settings" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"workers__cpus": 4096}, 2, "1 workers do not fit: there are "),
        ({"workers__address": "127.0.0.1:1"}, 2, "no Ray cluster at 127.0.0.1:1"),
        ({"clients": 80}, 1, "90 pairs do not give 80 clients 20 each"),
        ({"partition__by": "field"}, 2, "partition by field needs --partition.field"),
        ({"server__round": 3}, 2, "did you mean --server.rounds?"),
        ({"server__method__beta": -1}, 2, "server.method.beta"),
    ],
)
def test_errors_are_one_line(
    scene: Path, tmp_path: Path, more: dict[str, Any], code: int, words: str
) -> None:
    found = done("fedpdpo", *asked(scene, tmp_path / "out", **more))
    assert (found.returncode, found.stdout) == (code, "")
    assert words in found.stderr
    lines = [line for line in found.stderr.splitlines() if "--help shows all flags" not in line]
    assert len(lines) == 1


def test_a_clients_error_ends_the_simulation_with_its_words(scene: Path, tmp_path: Path) -> None:
    found = done("fedpdpo", *asked(scene, tmp_path / "out", server__model=tmp_path / "absent"))
    assert found.returncode == 1
    assert "absent" in found.stderr.splitlines()[-1]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of two nodes of one core each; Ray's sockets need a short path."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with TemporaryDirectory(prefix="ray-") as folder:
        store = ("--num-cpus", 1, "--object-store-memory", 2**27, "--disable-usage-stats")
        try:
            ray("start", "--head", "--port", 0, "--temp-dir", folder,
                "--include-dashboard", "false", *store)  # fmt: skip
            address = (Path(folder) / "ray_current_cluster").read_text(encoding="utf-8").strip()
            ray("start", "--address", address, *store)
            yield address
        finally:
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if any(folder in word for word in process.cmdline()):
                        process.kill()


def ray(*arguments: object) -> None:
    command = [str(BIN / "ray"), *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr


def test_on_a_cluster_of_two_nodes_both_are_used_and_the_bits_are_the_same(
    cluster: str, scene: Path, simulated: Path, tmp_path: Path
) -> None:
    found = done("fedpdpo", *asked(scene, tmp_path / "out", workers__address=cluster))
    assert found.returncode == 0, found.stderr
    assert "3 clients in 2 workers" in found.stdout
    assert left(tmp_path / "out") == left(simulated)


def test_settings_are_those_of_server_and_client_with_their_defaults() -> None:
    settings = SimulationSettings(data=Path("pool.jsonl"))
    assert settings.server.model_dump()["rounds"] == 3
    assert settings.client.model_dump()["max_tokens"] == 1024
