"""From nothing to a run over mutual TLS by the commands of docs/security.md."""

from functools import partial
from pathlib import Path

import pytest

from processes import done, stage
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

CLIENTS = ("ada", "bea")


fedpdpo = partial(done, "fedpdpo")


def test_the_documented_commands_lead_to_a_run(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    certs = tmp_path / "certs"
    made = [
        fedpdpo("certs", "init", "--dir", certs),
        fedpdpo("certs", "server", "--dir", certs, "--host", "localhost", "--host", "127.0.0.1"),
        *(fedpdpo("certs", "client", "--dir", certs, "--name", name) for name in CLIENTS),
        fedpdpo("certs", "operator", "--dir", certs, "--name", "root"),
    ]
    assert [one.stderr for one in made if one.returncode] == []
    again = fedpdpo("certs", "init", "--dir", certs)
    assert (again.returncode, "holds a certificate authority" in again.stderr) == (2, True)
    with stage(tmp_path) as on:
        server, port = on.server(
            "--host", "0.0.0.0", "--tls", certs / "server" / "server", "--model", model,
            "--min-clients", 2, "--rounds", 10_000, "--lora.layers", "last-2",
        )  # fmt: skip
        data = {
            name: write_preferences(tmp_path / f"{name}.jsonl", seed=seed, num=24, taste="warm")
            for seed, name in enumerate(CLIENTS)
        }
        posing = on.client("cyd", port, data["ada"], "--tls", certs / "client" / "bea")
        assert posing.ends() == 1
        assert "client bea cannot speak for client cyd" in posing.output
        clients = [
            on.client(name, port, data[name], "--tls", certs / "client" / name) for name in CLIENTS
        ]
        clients[0].says("pushed round=1")
        asked = ("--server", f"localhost:{port}", "--tls")
        status = fedpdpo("status", *asked, certs / "operator" / "root")
        assert "ada" in status.stdout, status.stderr
        refused = fedpdpo("stop", *asked, certs / "client" / "ada")
        assert (refused.returncode, "StopRun is not for client ada" in refused.stderr) == (1, True)
        stopped = fedpdpo("stop", *asked, certs / "operator" / "root")
        assert stopped.returncode == 0, stopped.stderr
        for program in (*clients, server):
            assert program.ends() == 0, program.output
