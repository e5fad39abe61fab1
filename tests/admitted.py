"""A federation with an authority of its own: certificates and tokens, and who holds them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from fedpdpo.client.channel import AccessSettings, open_channel
from fedpdpo.client.tool.authority import SERVER, Authority
from fedpdpo.client.tool.command import main
from fedpdpo.common.identity import Role
from fedpdpo.common.tls import Credentials
from serving import running, settings


class Consortium:
    """An authority that issues to a server, clients and operators."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.authority = Authority.begin(folder / "certs")
        self.server = self.authority.issue(SERVER, "server", days=1, hosts=["localhost"])
        self.tokens = folder / "tokens.txt"
        self.tokens.touch()

    def certificate(self, name: str, role: str = Role.CLIENT, *, days: float = 1) -> AccessSettings:
        """A certificate's holder."""
        return AccessSettings(tls=self.authority.issue(role, name, days=days))

    def token(self, name: str, role: str = Role.CLIENT) -> AccessSettings:
        """A token's holder."""
        out = self.folder / f"{name}.token"
        made = ["token", "--name", name, "--role", role, "--out", str(out)]
        assert main([*made, "--tokens", str(self.tokens)]) == 0
        return AccessSettings(tls=self.server, token_file=out)

    @contextmanager
    def serving(self, **values: Any) -> Iterator[int]:
        """A server with TLS; gives its port."""
        wanted = settings(self.folder / "state", tls=self.server, host="localhost", **values)
        with running(wanted) as port:
            yield port

    def stranger(self, port: int) -> grpc.Channel:
        """A channel of one who trusts the server and does not say who it is."""
        trusted = grpc.ssl_channel_credentials(Credentials.read(self.server, own=False).ca)
        return grpc.secure_channel(f"localhost:{port}", trusted)


@contextmanager
def channel_of(port: int, access: AccessSettings) -> Iterator[grpc.Channel]:
    """A channel of somebody."""
    with open_channel(f"localhost:{port}", access) as channel:
        yield channel
