"""State that outgrows one machine: an object store and a PostgreSQL server, both on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest

from processes import until

#: What s3fs and boto3 are told by the environment.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


class ObjectStore:
    """moto's S3 server as a process."""

    def __init__(self) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, empty."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: _listens(self.port), "the object store")

    def stop(self) -> None:
        """End it; what it held is gone."""
        self._process.kill()
        self._process.wait()

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex}"
        self.client().create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        return name

    def client(self) -> Any:
        """A client of another library than the product's."""
        return boto3.client("s3", endpoint_url=self.url)


class Database:
    """A PostgreSQL server as a process; it does not run as root."""

    def __init__(self, programs: Path) -> None:
        self.port = _free_port()
        self._programs = programs
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="fedpdpo-postgres-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        initialise: list[Any] = [programs / "initdb", "-D", self._folder / "data", "-A", "trust",
                      "-U", "fedpdpo", "--no-sync"]  # fmt: skip
        subprocess.run(initialise, check=True, user=self._user, cwd="/", stdout=subprocess.DEVNULL)
        self.start()

    def start(self) -> None:
        """Start it with what it held."""
        options = (f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=",
                   "fsync=off")  # fmt: skip
        command: list[Any] = [self._programs / "postgres", "-D", self._folder / "data"]
        for option in options:
            command += ["-c", option]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, user=self._user, cwd="/", stdout=log, stderr=log
            )
        until(self._answers, "PostgreSQL")

    def stop(self) -> None:
        """End it, and all connections with it."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait()

    def remove(self) -> None:
        """End it for good."""
        self.stop()
        shutil.rmtree(self._folder)

    def url(self, name: str = "postgres") -> str:
        """What the product is given."""
        return f"postgresql://fedpdpo@127.0.0.1:{self.port}/{name}"

    def connect(self, name: str = "postgres") -> psycopg.Connection:
        """A connection of the test's own."""
        return psycopg.connect(self.url(name), autocommit=True)

    def new(self) -> str:
        """The name of a new database."""
        name = f"run_{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return name

    def cut_off(self, name: str) -> None:
        """End all connections to a database."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            return False
        return True


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An object store, which the environment names."""
    store = ObjectStore()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": store.url}).items():
            patch.setenv(name, value)
        yield store
    store.stop()


@pytest.fixture(scope="session")
def database() -> Iterator[Database]:
    """A PostgreSQL server; skips where Debian's package is not there."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("PostgreSQL is not installed (make system)")
    built = Database(found[-1].parent)
    yield built
    built.remove()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0
