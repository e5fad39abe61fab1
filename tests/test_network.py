"""A run across network namespaces: delay, loss, a narrow link, and one that goes down."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from processes import BIN, Program, Stage, stage
from tiny import save_tiny_model, write_preferences

IP, TC = shutil.which("ip"), shutil.which("tc")
CLIENTS = ("ada", "bea")
SERVER = "10.77.0.1"
PORT = 50051
BAD = ("delay", "100ms", "loss", "2%", "rate", "20mbit")
DOWN_S = 30.0

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or not IP or not TC, reason="needs root, ip and tc"),
]


class Network:
    """A namespace for the server and one for each client, joined by a bridge of bad links."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._tag = f"fed{os.getpid()}"
        self._spaces = [self.space("server"), *map(self.space, names)]
        for space in self._spaces:
            _run(IP, "netns", "add", space)
            self._ip(space, "link", "set", "lo", "up")
        hub = self._spaces[0]
        self._ip(hub, "link", "add", "br0", "type", "bridge")
        self._ip(hub, "addr", "add", f"{SERVER}/24", "dev", "br0")
        self._ip(hub, "link", "set", "br0", "up")
        for number, space in enumerate(self._spaces[1:]):
            near = f"port{number}"
            self._ip(hub, "link", "add", near, "type", "veth", "peer", "eth0", "netns", space)
            self._ip(hub, "link", "set", near, "master", "br0", "up")
            self._ip(space, "addr", "add", f"10.77.0.{10 + number}/24", "dev", "eth0")
            self._ip(space, "link", "set", "eth0", "up")
            for where, device in ((hub, near), (space, "eth0")):
                _run(IP, "netns", "exec", where, TC, "qdisc", "add", "dev", device, "root",
                     "netem", *BAD)  # fmt: skip

    def space(self, name: str) -> str:
        """The name of somebody's namespace."""
        return f"{self._tag}-{name}"

    def link(self, name: str, state: str) -> None:
        """Take a client's link down, or up again."""
        self._ip(self.space(name), "link", "set", "eth0", state)

    def start(self, on: Stage, name: str, script: str, *arguments: object) -> Program:
        """Start a console script in a namespace."""
        command = ("netns", "exec", self.space(name), BIN / script)
        return on.start(str(IP), *command, *arguments, log=name)

    def close(self) -> None:
        """Remove the namespaces, and with them their links."""
        for space in self._spaces:
            subprocess.run([str(IP), "netns", "del", space], check=False)

    def _ip(self, space: str, *arguments: str) -> None:
        _run(IP, "-n", space, *arguments)


def _run(program: str | None, *arguments: str | None) -> None:
    subprocess.run([str(program), *map(str, arguments)], check=True, timeout=30)


@contextmanager
def network(names: tuple[str, ...]) -> Iterator[Network]:
    built = Network(names)
    try:
        yield built
    finally:
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
    with network(CLIENTS) as net, stage(bad) as on:
        server = net.start(
            on, "server", "fedpdpo-server", "--host", SERVER, "--port", PORT, *settings(model, bad)
        )
        server.says("serving address=")
        clients = [
            net.start(on, name, "fedpdpo-client", *wanted(name, f"{SERVER}:{PORT}", path, bad))
            for name, path in data.items()
        ]
        clients[0].says("pushed round=1")
        net.link("ada", "down")
        time.sleep(DOWN_S)
        net.link("ada", "up")
        for program in (*clients, server):
            assert program.ends() == 0, program.output
    assert final(bad) == final(good)
