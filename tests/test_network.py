"""A run across network namespaces: delay, loss, a narrow link, and one that goes down."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from admitted import Consortium
from fedpdpo.client.tool.authority import SERVER
from fedpdpo.common.identity import Role
from processes import BIN, Program, Stage, stage
from tiny import save_tiny_model, write_preferences

IP = shutil.which("ip")
TUN = Path("/dev/net/tun")
CLIENTS = ("ada", "bea")
PORT = 50051
DELAY_S, LOSS, BYTES_PER_S = 0.1, 0.02, 20e6 / 8
DOWN_S = 30.0
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        os.geteuid() != 0 or not IP or not TUN.exists(),
        reason="needs root, ip and /dev/net/tun for network namespaces",
    ),
]


class Network:
    """A namespace for the server and one for each client, each joined to it by a bad link."""

    def __init__(self, names: tuple[str, ...], on: Stage) -> None:
        self._tag = f"fed{os.getpid()}"
        self._on = on
        self.servers = {name: f"10.77.{number}.1" for number, name in enumerate(names)}

    def build(self) -> None:
        """Make the namespaces and the links between them."""
        for name in ("server", *self.servers):
            _run("netns", "add", self.space(name))
            _run("-n", self.space(name), "link", "set", "lo", "up")
        for name, address in self.servers.items():
            self._link(name, address)

    def _link(self, name: str, address: str) -> None:
        mine = f"{address[:-1]}2"
        link = self._on.start(
            sys.executable, HERE / "badlink.py", self.space(name), mine, self.space("server"),
            address, DELAY_S, LOSS, BYTES_PER_S, log=f"link-{name}",
        )  # fmt: skip
        link.says("up")

    def space(self, name: str) -> str:
        """The name of somebody's namespace."""
        return f"{self._tag}-{name}"

    def link(self, name: str, state: str) -> None:
        """Take a client's link down, or up again."""
        _run("-n", self.space(name), "link", "set", "tun0", state)

    def start(self, name: str, script: str, *arguments: object) -> Program:
        """Start a console script in a namespace."""
        command = ("netns", "exec", self.space(name), BIN / script)
        return self._on.start(str(IP), *command, *arguments, log=name)

    def connecting_s(self, name: str) -> float:
        """How long a client needs to connect to the server."""
        code = (
            "import socket, sys, time; begun = time.monotonic();"
            "socket.create_connection((sys.argv[1], int(sys.argv[2])), 60).close();"
            "print(time.monotonic() - begun)"
        )
        command = [str(IP), "netns", "exec", self.space(name), sys.executable, "-c", code]
        asked = [*command, self.servers[name], str(PORT)]
        return float(subprocess.run(asked, check=True, capture_output=True, timeout=90).stdout)

    def close(self) -> None:
        """Remove the namespaces."""
        for name in ("server", *self.servers):
            subprocess.run([str(IP), "netns", "del", self.space(name)], check=False)


def _run(*arguments: str) -> None:
    subprocess.run([str(IP), *arguments], check=True, timeout=30)


@contextmanager
def network(names: tuple[str, ...], on: Stage) -> Iterator[Network]:
    built = Network(names, on)
    try:
        built.build()
        yield built
    finally:
        on.end()
        built.close()


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
    with stage(bad) as on, network(CLIENTS, on) as net:
        hosts = list(net.servers.values())
        tls = consortium.authority.issue(SERVER, "server", days=1, hosts=hosts)
        server = net.start(
            "server", "fedpdpo-server", "--host", "0.0.0.0", "--port", PORT, "--tls", tls,
            *settings(model, bad),
        )  # fmt: skip
        server.says("serving address=")
        assert all(net.connecting_s(name) >= 2 * DELAY_S for name in CLIENTS)
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
