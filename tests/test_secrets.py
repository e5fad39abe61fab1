"""After a run with tokens, keys and marked texts: none of them is where it has no business."""

import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from admitted import Consortium
from fedpdpo.common.identity import Role
from fedpdpo.common.log import fields
from fedpdpo.common.tokens import new_token
from processes import done, stage
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

CLIENTS = ("ada", "bea")
MARK = "warm7canary"

#: What secrets.token_urlsafe(32) gives, as sessions are.
SESSION = re.compile(rb"(?<![\w/+.-])[\w-]{43}(?![\w/+=.-])")


@dataclass
class Ended:
    """A run that has ended: its folder, its secrets, and what its operator was shown."""

    folder: Path
    secrets: dict[str, bytes]
    shown: dict[str, bytes]

    def outputs(self) -> dict[str, bytes]:
        """Logs, what was shown, the server's files, and an export."""
        found = {path.name: path.read_bytes() for path in self.folder.glob("*.log")}
        for folder in ("server", "model"):
            for path in (self.folder / folder).rglob("*"):
                if path.is_file():
                    found[f"{folder}/{path.name}"] = path.read_bytes()
        return found | self.shown


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    folder = tmp_path_factory.mktemp("secrets")
    model = save_tiny_model(folder / "backbone")
    consortium = Consortium(folder / "consortium")
    people = {name: consortium.token(name) for name in CLIENTS}
    root = consortium.token("root", Role.OPERATOR)
    key_file = folder / "state.key"
    key_file.write_text(secrets.token_hex(32))
    with stage(folder) as on:
        server, port = on.server(
            "--model", model, "--min-clients", 2, "--rounds", 10_000, "--log-level", "DEBUG",
            "--host", "localhost", "--tls", consortium.server, "--tokens", consortium.tokens,
            "--lora.layers", "last-2", "--client-timeout-s", 5,
        )  # fmt: skip
        how = ("--tls", consortium.server, "--token-file")
        shown = {}
        clients = []
        for seed, name in enumerate(CLIENTS):
            data = write_preferences(
                folder / f"{name}.jsonl", seed=seed, num=24, taste="warm", opening=f"the {MARK} is"
            )
            clients.append(
                on.client(name, port, data, *how, people[name].token_file, "--log-level", "DEBUG",
                          "--state-key-file", key_file)
            )  # fmt: skip
        clients[0].says("pushed round=1")
        for command in ("status", "events", "stop"):
            asked = done(
                "fedpdpo", command, "--server", f"localhost:{port}", *how, root.token_file
            )  # fmt: skip
            assert asked.returncode == 0, asked.stderr
            shown[command] = (asked.stdout + asked.stderr).encode()
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    asked = done(
        "fedpdpo", "export", "--state-dir", folder / "ada", "--out", folder / "model",
        "--state-key-file", key_file,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    shown["export"] = (asked.stdout + asked.stderr).encode()
    hidden = {
        f"{name}'s token": (access.token_file or Path()).read_bytes().strip()
        for name, access in (people | {"root": root}).items()
    }
    for path in consortium.authority.folder.rglob("*.key"):
        hidden[f"the key {path.parent.name}"] = path.read_bytes().splitlines()[1]
    hidden["the state's key"] = key_file.read_bytes()
    hidden["a text"] = MARK.encode()
    yield Ended(folder, hidden, shown)


def test_no_secret_is_in_logs_answers_events_or_exports(ended: Ended) -> None:
    outputs = ended.outputs()
    assert {"server.log", "ada.log", "server/run.sqlite", "status", "events", "export",
            "model/private.safetensors"} <= outputs.keys()  # fmt: skip
    for secret, content in ended.secrets.items():
        assert len(content) >= len(MARK)
        for name, output in outputs.items():
            assert content not in output, f"{secret} is in {name}"


def test_no_session_is_in_logs_or_answers(ended: Ended) -> None:
    told = str(fields("opened", session=secrets.token_urlsafe(32)))
    assert SESSION.search(told.encode())
    for name, output in ended.outputs().items():
        if not name.startswith("model/") and not name.endswith(".safetensors"):
            assert not SESSION.search(output), name


def test_a_sealed_state_shows_neither_texts_nor_private_tensors(ended: Ended) -> None:
    private = (ended.folder / "model" / "private.safetensors").read_bytes()
    tensor = private[-64:]
    files = [
        path for name in CLIENTS for path in (ended.folder / name).rglob("*") if path.is_file()
    ]
    assert [path for path in files if path.name == "private.safetensors"]
    for path in files:
        content = path.read_bytes()
        assert MARK.encode() not in content, path
        assert tensor not in content, path
    assert not list(ended.folder.glob("*/trunk-*"))


def test_state_is_for_its_owner_alone(ended: Ended) -> None:
    for holder in ("server", *CLIENTS, "model"):
        for path in ((folder := ended.folder / holder), *folder.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_sealed_state_is_not_exported_without_its_key(ended: Ended, tmp_path: Path) -> None:
    asked = done("fedpdpo", "export", "--state-dir", ended.folder / "ada", "--out", tmp_path / "m")
    assert asked.returncode == 1
    assert "is encrypted; give --state-key-file" in asked.stderr


def test_a_refused_token_is_not_repeated(ended: Ended, tmp_path: Path) -> None:
    wrong, data = tmp_path / "wrong", ended.folder / "ada.jsonl"
    wrong.write_text(new_token())
    consortium = tmp_path / "consortium"
    served = Consortium(consortium)
    with served.serving(tokens=served.tokens) as port:
        asked = done(
            "fedpdpo-client", "--server", f"localhost:{port}", "--data", data, "--state-dir",
            tmp_path / "eve", "--tls", served.server, "--token-file", wrong,
        )  # fmt: skip
    assert asked.returncode == 1
    assert "the token is unknown" in asked.stderr
    assert wrong.read_text() not in asked.stdout + asked.stderr
