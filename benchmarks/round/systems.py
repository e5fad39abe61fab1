"""The systems compared: how each is started for a case, and when its rounds ended."""

import re
import socket
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from cases import ENGINE, FLOOR, FLOWER, OURS, SECURED, Case
from fedpdpo.client.tool.authority import SERVER, Authority
from fedpdpo.common.identity import Role
from programs import Program, Programs
from untrained import client_name

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent

FLOWER_BIN = HERE.parents[1] / ".cache" / "flower" / "bin"

_START_S = 120.0


class System(ABC):
    """One federation of one system, begun by `start`."""

    def __init__(self, case: Case, rounds: int, programs: Programs) -> None:
        self.case = case
        self.rounds = rounds
        self.programs = programs
        self.servers: list[Program] = []

    @abstractmethod
    def start(self) -> None:
        """Start the server and all clients."""

    def ends(self) -> list[float]:
        """When rounds ended, in seconds since the epoch, as its server says."""
        return _told(self.servers[0].output)

    def _server(self, *command: object, says: str = "", port: int = 0) -> str:
        """Start the server, and wait until it says its port or listens on the one given."""
        server = self.programs.start("server", *command)
        self.servers.append(server)
        told: list[str] = []

        def ready() -> bool:
            told[:] = re.findall(says, server.output) if says else []
            return bool(told) or (port > 0 and _listens(port))

        self.programs.watch(ready, self.servers, patience_s=_START_S)
        return told[0] if told else str(port)


class Floor(System):
    """grpc.aio and numpy alone."""

    def start(self) -> None:
        """Start the server and all clients."""
        program, case = HERE / "floor.py", self.case
        command = (sys.executable, program, "server", case.clients, case.mib)
        port = self._server(*command, says=r"port (\d+)")
        for number in range(case.clients):
            self.programs.start(
                f"client{number}", sys.executable, program, "client", port, case.mib, self.rounds
            )


class Ours(System):
    """fedpdpo-server with its defaults, and clients without training."""

    def start(self) -> None:
        """Start the server and all clients."""
        self.start_server()
        for number in range(self.case.clients):
            self.start_clients(number, number + 1)

    def start_server(self) -> None:
        """Start the server alone."""
        self._state = self.programs.folder / "server"
        self._port = self._server(
            BIN / "fedpdpo-server", "--port", 0, "--state-dir", self._state,
            "--rounds", self.rounds, "--min-clients", self.case.clients, *self._for_server(),
            says=r"serving address=\S+:(\d+)",
        )  # fmt: skip

    def start_clients(self, first: int, last: int) -> Program:
        """Start a process that is these clients."""
        return self.programs.start(
            f"clients{first}", sys.executable, HERE / "untrained.py", self._port, self.case.mib,
            self.programs.folder, first, last, *self._for_clients(range(first, last)),
        )  # fmt: skip

    def _for_server(self) -> Sequence[object]:
        """What else the server is told."""
        return ()

    def _for_clients(self, _: range) -> Sequence[object]:
        """What else the process of these clients is told."""
        return ()

    def ends(self) -> list[float]:
        """When rounds ended, as the server's database says."""
        return self._times("published_at_s")

    def opened(self) -> list[float]:
        """When rounds were opened."""
        return self._times("opened_at_s")

    def _times(self, column: str) -> list[float]:
        found = f"SELECT {column} FROM rounds WHERE {column} NOT NULL ORDER BY number"
        with closing(sqlite3.connect(f"file:{self._state}/run.sqlite?mode=ro", uri=True)) as run:
            return [at_s for (at_s,) in run.execute(found)]


class Secured(Ours):
    """The same over mutual TLS, each client with a certificate of its own."""

    def _for_server(self) -> Sequence[object]:
        self._authority = Authority.begin(self.programs.folder / "certs")
        tls = self._authority.issue(SERVER, "server", days=1, hosts=["127.0.0.1"])
        return ("--tls", tls)

    def _for_clients(self, numbers: range) -> Sequence[object]:
        for number in numbers:
            holder = self._authority.issue(Role.CLIENT, client_name(number), days=1)
        return (holder.parent,)


class Flower(System):
    """Flower's gRPC server and its clients, from an environment of their own."""

    def start(self) -> None:
        """Start the server and all clients."""
        case, port = self.case, free_port()
        python, programs = FLOWER_BIN / "python", HERE / "flower_grpc"
        self._server(
            python, programs / "server.py", port, case.clients, case.mib, self.rounds, port=port
        )
        for number in range(case.clients):
            self.programs.start(f"client{number}", python, programs / "client.py", port, case.mib)


class Engine(System):
    """Flower's deployment engine: one SuperLink, and a SuperNode for each client."""

    def start(self) -> None:
        """Start all of them, and submit the run."""
        case, folder = self.case, self.programs.folder
        port = free_port()
        link = f"127.0.0.1:{port}"
        self._server(
            FLOWER_BIN / "flower-superlink", "--insecure", "--port", port,
            "--disable-runtime-dependency-installation", port=port,
        )  # fmt: skip
        for number in range(case.clients):
            self.programs.start(
                f"client{number}", FLOWER_BIN / "flower-supernode", "--insecure",
                "--superlink", link, "--port", free_port(),
            )  # fmt: skip
        self._ends = folder / "ends"
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{link}"\n'
            "insecure = true\n",
            encoding="utf-8",
        )
        config = f"clients={case.clients} mib={case.mib} rounds={self.rounds} ends='{self._ends}'"
        self.programs.start(
            "run", FLOWER_BIN / "flwr", "run", HERE / "flower_app", "--run-config", config
        )

    def ends(self) -> list[float]:
        """When rounds ended, as the server app has written."""
        return _told(self._ends.read_text(encoding="ascii")) if self._ends.exists() else []


def _told(said: str) -> list[float]:
    return [float(found) for found in re.findall(r"\bround \d+ (\d+\.\d+)", said)]


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


SYSTEMS: dict[str, type[System]] = {FLOOR: Floor, OURS: Ours, SECURED: Secured,
                                    FLOWER: Flower, ENGINE: Engine}  # fmt: skip
