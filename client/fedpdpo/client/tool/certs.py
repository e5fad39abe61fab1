"""What an operator makes before a run: certificates and tokens."""

import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.console import Console

from fedpdpo.client.tool.authority import SERVER, Authority
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.files import whole_file
from fedpdpo.common.identity import Caller, Role
from fedpdpo.common.run import check_client_id
from fedpdpo.common.settings import Settings
from fedpdpo.common.tokens import Enrolment, digest_of, new_token, read_enrolments


class InitSettings(Settings):
    """Make a certificate authority for a federation of your own."""

    dir: Path = Field(Path("certs"), description="the authority's folder; keep it off the server")


class _Issue(InitSettings):
    days: int = Field(365, ge=1, le=3650, description="days that the certificate holds")


class ServerCertificate(_Issue):
    """Issue the server's certificate; it needs every name and address that clients use."""

    host: list[str] = Field(
        ["localhost", "127.0.0.1"],
        min_length=1,
        description="name or address of the server; may be given several times",
    )
    name: str = Field("server", description="name of its folder")


class HolderCertificate(_Issue):
    """Issue a certificate to a client or an operator."""

    name: str = Field(description="who it is; of a client, its --client-id")


class RevokeSettings(InitSettings):
    """Revoke all certificates of somebody; a server that reads the list lets them in no more."""

    name: str = Field(description="whose certificates")
    role: Literal["client", "operator"] = Field("client", description="of whose")


class TokenSettings(Settings):
    """Make an enrolment token; it is written for its holder, and its digest for the server."""

    name: str = Field(description="who it is; of a client, its --client-id")
    role: Literal["client", "operator"] = Field("client", description="what it may do")
    tokens: Path = Field(Path("tokens.txt"), description="file of digests that the server reads")
    out: Path = Field(description="file to write the token to; hand it over and remove it")
    days: int = Field(365, ge=1, le=3650, description="days that the token holds")


def init(settings: InitSettings, console: Console) -> None:
    """Make the authority."""
    Authority.begin(settings.dir)
    _say(console, f"wrote {settings.dir}; next: fedpdpo certs server --dir {settings.dir} --host …")


def server(settings: ServerCertificate, console: Console) -> None:
    """Issue a server's certificate."""
    authority = Authority.of(settings.dir)
    folder = authority.issue(SERVER, settings.name, days=settings.days, hosts=settings.host)
    _say(console, f"wrote {folder}; on the server: fedpdpo-server --host 0.0.0.0 --tls {folder}")


def client(settings: HolderCertificate, console: Console) -> None:
    """Issue a client's certificate."""
    folder = Authority.of(settings.dir).issue(Role.CLIENT, settings.name, days=settings.days)
    _say(
        console,
        f"wrote {folder}; hand it over safely; there: fedpdpo-client --client-id {settings.name} "
        f"--tls {folder} …",
    )


def operator(settings: HolderCertificate, console: Console) -> None:
    """Issue an operator's certificate."""
    folder = Authority.of(settings.dir).issue(Role.OPERATOR, settings.name, days=settings.days)
    _say(console, f"wrote {folder}; try: fedpdpo status --tls {folder} --server …")


def revoke(settings: RevokeSettings, console: Console) -> None:
    """Revoke somebody's certificates."""
    count = Authority.of(settings.dir).revoke(Role(settings.role), settings.name)
    _say(
        console,
        f"revoked {count}; copy {settings.dir}/crl.pem into the server's --tls folder, where it is "
        "read at once",
    )


def token(settings: TokenSettings, console: Console) -> None:
    """Make a token. Raises BadSettings where the file for it is there already."""
    if settings.out.exists():
        raise BadSettings(f"{settings.out} is in the way; give another --out")
    before = ""
    if settings.tokens.exists():
        read_enrolments(settings.tokens)
        before = settings.tokens.read_text(encoding="utf-8")
        before += "" if before.endswith("\n") or not before else "\n"
    made = new_token()
    expires = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=settings.days)
    caller = Caller(Role(settings.role), check_client_id(settings.name))
    line = Enrolment(caller, expires, digest_of(made))
    for path, content in ((settings.out, f"{made}\n"), (settings.tokens, f"{before}{line}\n")):
        with whole_file(path) as partial:
            partial.touch(mode=0o600)
            partial.write_text(content, encoding="utf-8")
    _say(
        console,
        f"wrote {settings.out} for {caller}, and its digest to {settings.tokens}; on the server: "
        f"fedpdpo-server --tls … --tokens {settings.tokens}",
    )


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)
