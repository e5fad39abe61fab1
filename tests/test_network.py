"""A run across network namespaces: delay, loss, a narrow link, and one that goes down."""

import time
from pathlib import Path

import pytest

from admitted import Consortium
from fedpdpo.client.tool.authority import SERVER
from fedpdpo.common.identity import Role
from namespaces import Quality, needs_namespaces, network
from processes import stage
from tiny import save_tiny_model, write_preferences

CLIENTS = ("ada", "bea")
PORT = 50051
BAD = Quality(delay_s=0.1, loss=0.02, bytes_per_s=20e6 / 8)
DOWN_S = 30.0

pytestmark = [pytest.mark.network, pytest.mark.timeout(600), needs_namespaces]


def settings(model: Path, folder: Path) -> tuple[object, ...]:
    return ("--model", model, "--min-clients", len(CLIENTS), "--rounds", 2, "--lora.rank", 256,
            "--lora.layers", "last-2", "--state-dir", folder / "server")  # fmt: skip


def wanted(name: str, server: str, data: Path, folder: Path) -> tuple[object, ...]:
    return ("--server", server, "--client-id", name, "--data", data, "--threads", 1,
            "--state-dir", folder / name, "--stall-timeout-s", 20)  # fmt: skip


def final(folder: Path) -> bytes:
    return (folder / "server/adapters/version-00002.safetensors").read_bytes()


def test_a_run_over_bad_links_of_which_one_goes_down_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    model = save_tiny_model(tmp_path / "model")
    data = {
        name: write_preferences(tmp_path / f"{name}.jsonl", seed=seed, num=40, taste="warm")
        for seed, name in enumerate(CLIENTS)
    }
    good, bad = tmp_path / "good", tmp_path / "bad"
    with stage(good) as on:
        server, port = on.server(*settings(model, good)[:-2])
        clients = [on.client(name, port, data[name]) for name in CLIENTS]
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    consortium = Consortium(tmp_path / "consortium")
    with stage(bad) as on, network(CLIENTS, on, BAD) as net:
        hosts = list(net.servers.values())
        tls = consortium.authority.issue(SERVER, "server", days=1, hosts=hosts)
        server = net.start(
            "server", "fedpdpo-server", "--host", "0.0.0.0", "--port", PORT, "--tls", tls,
            *settings(model, bad),
        )  # fmt: skip
        server.says("serving address=")
        assert all(net.connecting_s(name, PORT) >= 2 * BAD.delay_s for name in CLIENTS)
        clients = [
            net.start(
                name,
                "fedpdpo-client",
                *wanted(name, f"{net.servers[name]}:{PORT}", path, bad),
                "--tls",
                consortium.authority.issue(Role.CLIENT, name, days=1),
            )
            for name, path in data.items()
        ]
        clients[0].says("pushed round=1")
        net.link("ada", "down")
        time.sleep(DOWN_S)
        net.link("ada", "up")
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    assert final(bad) == final(good)
