"""The examples run as they stand, with a small model, on this machine."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fedpdpo.client import PersonalPolicy
from fedpdpo.client.data.preferences import read_preferences
from fedpdpo.client.settings import ClientSettings
from fedpdpo.common.settings import load_settings
from fedpdpo.server.settings import ServerSettings
from fedpdpo.simulation.settings import SimulationSettings
from processes import BIN
from tiny import save_tiny_model, write_preferences
from watched import free_port

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def tried(name: str, out: Path, *data: Path, **environment: str) -> str:
    """Run an example's try.sh to its end; gives what it said."""
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "OUT": str(out), "PORT": str(free_port()),
           "HF_HUB_OFFLINE": "1"}  # fmt: skip
    found = subprocess.run(
        [str(EXAMPLES / name / "try.sh"), *map(str, data)],
        env=os.environ | own | environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout + found.stderr


def data_of(folder: Path, name: str) -> Path:
    path = folder / f"{name}.jsonl"
    write_preferences(path, seed=len(name), num=24, taste="warm")
    return path


@pytest.mark.parametrize("name", ["laptops", "hospitals"])
def test_two_members_train_and_leave_with_a_model_each(
    name: str, model: Path, tmp_path: Path
) -> None:
    files = [data_of(tmp_path, member) for member in ("ada", "charite")]
    said = tried(name, tmp_path / "out", *files, MODEL=str(model), ROUNDS="2")
    for member in ("ada", "charite"):
        policy = PersonalPolicy.load(tmp_path / "out" / f"{member}-model")
        assert policy.identity.client_id == member
        assert policy.identity.run.num_rounds == 2
    assert "finished" in said


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_hospitals_private_parts_are_encrypted(model: Path, tmp_path: Path) -> None:
    data = data_of(tmp_path, "mary")
    tried("hospitals", tmp_path / "out", data, MODEL=str(model), ROUNDS="1")
    parts = list((tmp_path / "out" / "mary").rglob("private*"))
    assert parts
    for part in parts:
        assert b"head" not in part.read_bytes()[:4096]


def test_each_annotator_is_a_client(model: Path, tmp_path: Path) -> None:
    data = data_of(tmp_path, "pool")
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()] * 2
    for number, row in enumerate(rows):
        row["annotator"] = "ab"[number % 2] if number < 44 else "rare"
        row["prompt"] += str(number)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tried("annotators", tmp_path / "out", data, MODEL=str(model), ROUNDS="1")
    assert {path.name for path in (tmp_path / "out" / "clients").iterdir()} == {"a", "b"}
    table = (tmp_path / "out" / "accuracies.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 1 + 2 * 2 * 2


def test_qlora_trains_in_4_bits(model: Path, tmp_path: Path) -> None:
    data = data_of(tmp_path, "prefs")
    more = {"MODEL": str(model), "ROUNDS": "1", "DEVICE": "cpu", "DTYPE": "float32"}
    said = tried("qlora-7b", tmp_path / "out", data, **more)
    assert "quantize=4bit" in said
    assert (tmp_path / "out" / "model" / "private.safetensors").exists()


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.parent.name
)
def test_the_settings_are_known(path: Path) -> None:
    flags = ["--config", str(path)]
    match path.stem:
        case "server":
            load_settings(ServerSettings, flags, program="fedpdpo-server")
        case "client":
            flags += ["--server", "localhost:1", "--data", "x.jsonl"]
            load_settings(ClientSettings, flags, program="fedpdpo-client")
        case _:
            load_settings(SimulationSettings, [*flags, "--data", "x.jsonl"], program="fedpdpo")


def test_the_files_to_try_are_two_opposite_tastes() -> None:
    ada, bea = (read_preferences(EXAMPLES / f"prefs/{name}.jsonl").preferences
                for name in ("ada", "bea"))  # fmt: skip
    assert len(ada) == len(set(ada)) == 24
    assert [(one.prompt, one.rejected, one.chosen) for one in ada] == [
        (one.prompt, one.chosen, one.rejected) for one in bea
    ]
