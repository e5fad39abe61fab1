"""The Python of docs/python.md runs as it stands there, with a small model and free ports."""

import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedpdpo.client import Client, PersonalPolicy
from fedpdpo.server import Server
from processes import stage, until
from tiny import save_tiny_model, write_preferences

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def block(title: str) -> str:
    """The code below a heading of the page."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    lines = re.findall(r"^(?: {4}.*)?$", section, re.MULTILINE)
    return "\n".join(line.removeprefix("    ") for line in lines)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_preferences(tmp_path / "prefs.jsonl", seed=1, num=30, taste="warm")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_client_and_its_personal_model(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own: dict[str, Any] = {}
    with Server(state_dir=folder / "s", model=str(model), rounds=1, min_clients=1) as server:
        exec(block("A client").replace("localhost:50051", server.address), own)
    assert isinstance(own["client"], Client) and isinstance(own["model"], PersonalPolicy)
    assert capsys.readouterr().out == own["model"].reply("How do I boil an egg?") + "\n"
    own["client"].export("ada-model")
    exec(block("A personal model"), own)
    words = capsys.readouterr().out.splitlines()[-1].split()
    assert words[0] in ("bores.", "enthrals.")
    assert float(words[1]) == pytest.approx(float(words[2]) + float(words[3]))


def test_a_server(model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own: dict[str, Any] = {}
    code = block("A server").replace(MODEL, str(model))
    running = threading.Thread(target=exec, args=(code, own), daemon=True)
    running.start()
    with stage(folder) as on:
        until(lambda: "server" in own and own["server"].port, "the server")
        for name in ("ada", "bea"):
            on.client(name, own["server"].port, folder / "prefs.jsonl")
        running.join(120)
    assert not running.is_alive()
    assert {row["adapter"] for row in own["rows"]} == {0, 1, 2, 3, 4}
    address, adapter = capsys.readouterr().out.split()
    assert address == own["server"].address
    assert Path(adapter).name == "version-00004.safetensors"


def test_a_simulation(model: Path, folder: Path) -> None:
    write_preferences(folder / "prefs.jsonl", seed=1, num=80, taste="warm")
    code = block("A simulation").replace(
        "clients=20,", f"clients=20, server={{'model': {str(model)!r}}},"
    )
    code += "\nprint(len(rows))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == str(20 * 4 * 2)
