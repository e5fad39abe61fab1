"""Network namespaces: one for a server and one for each client, joined by links of a quality."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from processes import BIN, Program, Stage

IP = shutil.which("ip")
TUN = Path("/dev/net/tun")
HERE = Path(__file__).parent

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not IP or not TUN.exists(),
    reason="needs root, ip and /dev/net/tun for network namespaces",
)


@dataclass(frozen=True)
class Quality:
    """Of a link: delay of a way, share of packets lost, bytes a second."""

    delay_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = 1e9


class Network:
    """A namespace for the server and one for each client, each joined to it by a link."""

    def __init__(self, names: tuple[str, ...], on: Stage, quality: Quality) -> None:
        self._quality = quality
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
            address, self._quality.delay_s, self._quality.loss, self._quality.bytes_per_s,
            log=f"link-{name}",
        )  # fmt: skip
        link.says("up")

    def space(self, name: str) -> str:
        """The name of somebody's namespace."""
        return f"{self._tag}-{name}"

    def link(self, name: str, state: str) -> None:
        """Take a client's link down, or up again."""
        _run("-n", self.space(name), "link", "set", "tun0", state)

    def start(self, name: str, script: str, *arguments: object) -> Program:
        """Start a console script, or a program by its path, in a namespace."""
        command = ("netns", "exec", self.space(name), BIN / script)
        return self._on.start(str(IP), *command, *arguments, log=name)

    def connecting_s(self, name: str, port: int) -> float:
        """How long a client needs to connect to the server."""
        code = (
            "import socket, sys, time; begun = time.monotonic();"
            "socket.create_connection((sys.argv[1], int(sys.argv[2])), 60).close();"
            "print(time.monotonic() - begun)"
        )
        command = [str(IP), "netns", "exec", self.space(name), sys.executable, "-c", code]
        asked = [*command, self.servers[name], str(port)]
        return float(subprocess.run(asked, check=True, capture_output=True, timeout=90).stdout)

    def close(self) -> None:
        """Remove the namespaces."""
        for name in ("server", *self.servers):
            subprocess.run([str(IP), "netns", "del", self.space(name)], check=False)


def _run(*arguments: str) -> None:
    subprocess.run([str(IP), *arguments], check=True, timeout=30)


@contextmanager
def network(names: tuple[str, ...], on: Stage, quality: Quality) -> Iterator[Network]:
    """The namespaces, and what runs on the stage, to the end of the block."""
    built = Network(names, on, quality)
    try:
        built.build()
        yield built
    finally:
        on.end()
        built.close()
