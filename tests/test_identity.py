"""Who gets in: certificates and tokens that hold, and those that do not or no longer do."""

import datetime
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from cryptography import x509

from admitted import Consortium, channel_of
from fedpdpo.client.channel import AccessSettings, open_channel
from fedpdpo.client.tool.authority import SERVER, Authority
from fedpdpo.client.tool.command import main
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.identity import Role
from fedpdpo.common.tls import Credentials
from fedpdpo.common.tokens import digest_of, read_enrolments
from fedpdpo.server import certificates
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import session_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.session_pb2_grpc import SessionServiceStub
from serving import Client, running, settings


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


def said(channel: grpc.Channel) -> tuple[grpc.StatusCode, str]:
    """What the server answers to one who asks for the run."""
    try:
        FederationServiceStub(channel).GetRun(pb.GetRunRequest(), timeout=10)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def raw_channel(port: int, trusted: bytes, folder: Path) -> grpc.Channel:
    """A channel of one who does not look at its own certificate before."""
    key, certificate = (folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes()
    credentials = grpc.ssl_channel_credentials(trusted, key, certificate)
    return grpc.secure_channel(f"localhost:{port}", credentials)


def test_certificates_that_do_not_hold_open_nothing(consortium: Consortium, tmp_path: Path) -> None:
    issue = consortium.authority.issue
    stranger = Authority.begin(tmp_path / "strangers")
    refused = {
        "expired": issue(Role.CLIENT, "old", days=-1 / 1440),
        "foreign": stranger.issue(Role.CLIENT, "ada", days=1),
        "a server's": issue(SERVER, "other", days=1, hosts=["localhost"]),
        "self-signed": tmp_path / "self",
    }
    shutil.copytree(tmp_path / "strangers", tmp_path / "self")
    (tmp_path / "self" / "ca.key").rename(tmp_path / "self" / "tls.key")
    (tmp_path / "self" / "ca.crt").rename(tmp_path / "self" / "tls.crt")
    trusted = Credentials.read(consortium.server, own=False).ca
    nobody = issue("visitor", "ada", days=1)
    with consortium.serving() as port:
        for what, folder in refused.items():
            with raw_channel(port, trusted, folder) as channel:
                assert said(channel)[0] is grpc.StatusCode.UNAVAILABLE, what
        with raw_channel(port, trusted, nobody) as channel:
            code, reason = said(channel)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "organizational unit" in reason


def test_a_client_says_itself_what_is_wrong_with_its_certificate(
    consortium: Consortium, tmp_path: Path
) -> None:
    stranger = Authority.begin(tmp_path / "strangers").issue(Role.CLIENT, "ada", days=1)
    mixed = tmp_path / "mixed"
    shutil.copytree(consortium.certificate("bea").tls or Path(), mixed)
    shutil.copy(stranger / "tls.crt", mixed)
    shutil.copy(stranger / "tls.key", mixed)
    for folder, reason in (
        (consortium.authority.issue(Role.CLIENT, "old", days=-1 / 1440), "which is not now"),
        (mixed, "was not issued by a CA of"),
        (tmp_path / "absent", "cannot read"),
    ):
        with pytest.raises(BadSettings, match=reason):
            open_channel("localhost:1", AccessSettings(tls=folder))
    shutil.copy((consortium.certificate("ada").tls or Path()) / "tls.crt", mixed)
    with pytest.raises(BadSettings, match="is not the key of"):
        open_channel("localhost:1", AccessSettings(tls=mixed))


def test_who_calls_more_often_than_is_set_is_told_when_to_come_again(
    consortium: Consortium,
) -> None:
    ada, bea = consortium.certificate("ada"), consortium.certificate("bea")
    with (
        consortium.serving(calls_per_s=0.01) as port,
        channel_of(port, ada) as of_ada,
        channel_of(port, bea) as of_bea,
    ):
        assert said(of_ada)[0] is grpc.StatusCode.OK
        code, reason = said(of_ada)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "calls too often" in reason
        assert said(of_bea)[0] is grpc.StatusCode.OK


def test_a_revoked_certificate_opens_nothing_from_then_on(consortium: Consortium) -> None:
    ada, bea = consortium.certificate("ada"), consortium.certificate("bea")
    consortium.certificate("ada")
    with (
        consortium.serving() as port,
        channel_of(port, ada) as of_ada,
        channel_of(port, bea) as of_bea,
    ):
        assert said(of_ada)[0] is grpc.StatusCode.OK
        certs = str(consortium.authority.folder)
        assert main(["certs", "revoke", "--dir", certs, "--name", "ada"]) == 0
        code, reason = said(of_ada)
        assert code is grpc.StatusCode.UNAUTHENTICATED
        assert "client ada is revoked" in reason
        assert said(of_bea)[0] is grpc.StatusCode.OK
    found = x509.load_pem_x509_crl((consortium.server / "crl.pem").read_bytes())
    assert len(found) == 2


def test_a_forged_revocation_list_changes_nothing(consortium: Consortium, tmp_path: Path) -> None:
    ada = consortium.certificate("ada")
    stranger = Authority.begin(tmp_path / "strangers")
    stranger.issue(Role.CLIENT, "ada", days=1)
    stranger.revoke(Role.CLIENT, "ada")
    with consortium.serving() as port, channel_of(port, ada) as channel:
        assert said(channel)[0] is grpc.StatusCode.OK
        shutil.copy(tmp_path / "strangers" / "crl.pem", consortium.server)
        assert said(channel)[0] is grpc.StatusCode.OK
        consortium.authority.revoke(Role.CLIENT, "ada")
        assert said(channel)[0] is grpc.StatusCode.UNAUTHENTICATED
        shutil.copy(tmp_path / "strangers" / "crl.pem", consortium.server)
        assert said(channel)[0] is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(BadSettings, match="signed the revocation list"), consortium.serving():
        pass


@pytest.mark.parametrize("gone", ["crl.pem", "ca.crt"])
def test_a_revocation_list_that_vanishes_lets_nobody_in_again(
    consortium: Consortium, gone: str
) -> None:
    ada = consortium.certificate("ada")
    with consortium.serving() as port, channel_of(port, ada) as channel:
        consortium.authority.revoke(Role.CLIENT, "ada")
        assert said(channel)[0] is grpc.StatusCode.UNAUTHENTICATED
        (consortium.server / gone).unlink()
        assert said(channel)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_a_server_shows_its_new_certificate_to_those_who_come_later(
    consortium: Consortium,
) -> None:
    ada = consortium.certificate("ada")
    with consortium.serving() as port:
        with channel_of(port, ada) as channel:
            assert said(channel)[0] is grpc.StatusCode.OK
        consortium.authority.issue(SERVER, "server", days=1, hosts=["elsewhere"])
        with channel_of(port, ada) as channel:
            assert said(channel)[0] is grpc.StatusCode.UNAVAILABLE
        (consortium.server / "tls.key").write_text("damaged")
        consortium.authority.issue(SERVER, "better", days=1, hosts=["localhost"])
        better = consortium.authority.folder / SERVER / "better"
        for name in ("tls.crt", "tls.key"):
            shutil.copy(better / name, consortium.server)
        with channel_of(port, ada) as channel:
            assert said(channel)[0] is grpc.StatusCode.OK


def test_a_session_opens_nothing_from_another_connection(consortium: Consortium) -> None:
    ada = consortium.token("ada")
    token = (ada.token_file or Path()).read_text().strip()
    with consortium.serving(tokens=consortium.tokens) as port:
        with consortium.stranger(port) as mine, consortium.stranger(port) as thiefs:
            request = session_pb2.OpenSessionRequest(token=token)
            session = SessionServiceStub(mine).OpenSession(request, timeout=10).session
            signed = (("authorization", f"Bearer {session}"),)
            run = FederationServiceStub(mine).GetRun
            assert run(pb.GetRunRequest(), metadata=signed, timeout=10).run.run_id
            with pytest.raises(grpc.RpcError, match="belongs to another connection"):
                FederationServiceStub(thiefs).GetRun(
                    pb.GetRunRequest(), metadata=signed, timeout=10
                )
            with pytest.raises(grpc.RpcError, match="exchange a token"):
                run(pb.GetRunRequest(), metadata=signed * 2, timeout=10)
        with channel_of(port, ada) as channel:
            assert said(channel)[0] is grpc.StatusCode.OK


def test_a_session_ends_and_the_client_opens_another(consortium: Consortium) -> None:
    ada = consortium.token("ada")
    with (
        consortium.serving(tokens=consortium.tokens, session_s=2) as port,
        channel_of(port, ada) as channel,
    ):
        client = Client(FederationServiceStub(channel), "ada")
        time.sleep(2.1)
        code, reason = said(channel)
        assert (code, "has ended" in reason) == (grpc.StatusCode.UNAUTHENTICATED, True)
        client.join()


def test_a_token_that_is_struck_out_ends_its_sessions(consortium: Consortium) -> None:
    ada, bea = consortium.token("ada"), consortium.token("bea")
    with (
        consortium.serving(tokens=consortium.tokens) as port,
        channel_of(port, ada) as of_ada,
        channel_of(port, bea) as of_bea,
    ):
        assert said(of_ada)[0] is grpc.StatusCode.OK
        lines = consortium.tokens.read_text().splitlines()
        consortium.tokens.write_text("\n".join(line for line in lines if " ada " not in line))
        assert "revoked" in said(of_ada)[1]
        assert "unknown" in said(of_ada)[1]
        assert said(of_bea)[0] is grpc.StatusCode.OK


def test_a_token_holds_until_the_end_of_its_last_day(consortium: Consortium) -> None:
    ada, bea = consortium.token("ada"), consortium.token("bea")
    today = datetime.datetime.now(datetime.UTC).date()
    with (
        consortium.serving(tokens=consortium.tokens) as port,
        channel_of(port, ada) as of_ada,
        channel_of(port, bea) as of_bea,
    ):
        assert said(of_ada)[0] is grpc.StatusCode.OK
        enrolments = [
            replace(one, expires=today - datetime.timedelta(days=one.caller.name == "ada"))
            for one in read_enrolments(consortium.tokens)
        ]
        consortium.tokens.write_text("\n".join(map(str, enrolments)))
        assert said(of_ada)[0] is grpc.StatusCode.UNAUTHENTICATED
        with channel_of(port, ada) as anew:
            assert "has expired" in said(anew)[1]
        assert said(of_bea)[0] is grpc.StatusCode.OK


def test_a_certificate_that_expires_on_an_open_connection_ends_its_calls(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = {"ada": 1, "bea": 9}
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    later = SimpleNamespace(UTC=datetime.UTC, datetime=SimpleNamespace(now=lambda _: tomorrow))
    with consortium.serving() as port, ExitStack() as closing:
        channels = {
            name: closing.enter_context(channel_of(port, consortium.certificate(name, days=until)))
            for name, until in days.items()
        }
        assert [said(channel)[0] for channel in channels.values()] == [grpc.StatusCode.OK] * 2
        monkeypatch.setattr(certificates, "datetime", later)
        assert "client ada has expired" in said(channels["ada"])[1]
        assert said(channels["bea"])[0] is grpc.StatusCode.OK


def test_only_a_digest_of_a_token_is_kept(consortium: Consortium) -> None:
    ada = consortium.token("ada")
    path = ada.token_file or Path()
    token = path.read_text().strip()
    assert token not in consortium.tokens.read_text()
    (enrolment,) = read_enrolments(consortium.tokens)
    assert (enrolment.caller.name, enrolment.sha256) == ("ada", digest_of(token))
    assert [one.stat().st_mode & 0o777 for one in (path, consortium.tokens)] == [0o600] * 2


def test_keys_are_for_their_owner_alone(consortium: Consortium) -> None:
    consortium.certificate("ada")
    keys = list(consortium.authority.folder.rglob("*.key"))
    assert len(keys) == 3
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"host": "0.0.0.0"}, "--insecure"),
        ({"host": "fed.example.org"}, "--insecure"),
        ({"tokens": Path("tokens.txt")}, "--tokens needs --tls"),
        ({"tls": Path("absent")}, "cannot read absent/ca.crt"),
    ],
)
def test_a_server_does_not_begin_where_it_would_be_open(
    tmp_path: Path, wanted: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadSettings, match=reason), running(settings(tmp_path, **wanted)):
        pass


def test_another_machine_is_not_reached_without_tls(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="--insecure"):
        open_channel("192.0.2.1:50051", AccessSettings())
    open_channel("192.0.2.1:50051", AccessSettings(insecure=True)).close()
    with pytest.raises(BadSettings, match="--token-file needs --tls"):
        open_channel("localhost:1", AccessSettings(token_file=tmp_path / "token"))


def test_without_tls_other_machines_get_in_only_where_that_is_said(tmp_path: Path) -> None:
    with (
        running(settings(tmp_path, host="0.0.0.0", insecure=True)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert said(channel)[0] is grpc.StatusCode.OK
