"""A real server with its page, and two clients that have come to the end of its second round."""

import datetime
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpdpo.common.identity import Caller, Role
from fedpdpo.common.tokens import Enrolment, digest_of, new_token
from serving import Client, connected, running, settings, tensors


@dataclass(frozen=True)
class Page:
    """Where the page is, and what opens more than looking."""

    url: str
    folder: Path
    grpc_port: int
    operator: str
    client: str


@contextmanager
def page(folder: Path, **values: Any) -> Iterator[Page]:
    """Serve it; two rounds have been averaged and the third is open."""
    folder.mkdir(exist_ok=True)
    lines, tokens = [], {}
    ends = datetime.date(2999, 1, 1)
    for role in Role:
        tokens[role] = new_token()
        lines.append(str(Enrolment(Caller(role, f"a-{role}"), ends, digest_of(tokens[role]))))
    file = folder / "tokens"
    file.write_text("\n".join(lines), encoding="utf-8")
    port = free_port()
    wanted = settings(
        folder / "server", rounds=5, dashboard_port=port, dashboard_tokens=file, **values
    )
    with running(wanted) as grpc_port:
        with connected(grpc_port) as (stub, _):
            clients = [Client(stub, "ada"), Client(stub, "bea")]
            play(clients)
        yield Page(
            f"http://127.0.0.1:{port}", folder, grpc_port, tokens[Role.OPERATOR],
            tokens[Role.CLIENT],
        )  # fmt: skip


def play(clients: list[Client], *, rounds: int = 2) -> None:
    """Join, and measure and train so many rounds; bea is measured better than ada."""
    for client in clients:
        client.join()
    for version in range(rounds + 1):
        for place, client in enumerate(clients):
            assert client.task().WhichOneof("task") == "evaluate"
            client.report(version, 0.5 + 0.1 * version + 0.1 * place)
        for client in clients:
            task = client.task()
            assert task.train.round == version + 1
            if version < rounds:
                client.push(version + 1, tensors(0.01))


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
