"""The page's data over HTTP: what it tells, to whom, and what an operator may do."""

import contextlib
import itertools
import json
import logging
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from prometheus_client.parser import text_string_to_metric_families

from admitted import Consortium
from fedpdpo.client.tool.authority import SERVER
from fedpdpo.common.errors import BadSettings, StorageAway
from fedpdpo.server.watch import crowd
from fedpdpo.server.watch.overview import Observer, Overview
from processes import until
from serving import Client, connected, running, settings
from watched import Page, free_port, page


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("watched")) as served:
        yield served


def asked(url: str, *, method: str = "GET", **headers: str) -> tuple[int, bytes, Message]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def told(url: str) -> Any:
    status, content, _ = asked(url)
    assert status == 200
    return json.loads(content)


def test_the_overview_tells_rounds_accuracies_and_clients(seen: Page) -> None:
    overview = told(f"{seen.url}/api/overview")
    assert (overview["phase"], overview["round_number"], overview["version"]) == ("training", 3, 2)
    assert overview["waiting_for"] == "deltas of ada, bea"
    assert [one["client_id"] for one in overview["clients"]] == ["ada", "bea"]
    assert all(one["bytes_received"] > 0 for one in overview["clients"])
    newest, *older = overview["rounds"]
    assert newest["missing"] == ["ada", "bea"]
    assert newest["published_at_s"] is None
    assert [(one["number"], one["num_deltas"], one["missing"]) for one in older] == [
        (2, 2, []), (1, 2, [])
    ]  # fmt: skip
    assert [one["version"] for one in overview["measured"]] == [0, 1, 2]
    spread = overview["measured"][-1]["views"]["personalized"]["combined"]
    assert spread == pytest.approx(
        {"mean": 0.75, "worst": 0.7, "best": 0.8, "worst_client": "ada", "best_client": "bea"}
    )
    assert overview["measured"][-1]["by_client"]["ada"]["global"]["explicit"] == pytest.approx(0.7)


def test_a_round_and_a_client_are_told_in_full(seen: Page) -> None:
    parts = told(f"{seen.url}/api/rounds/1")
    assert [(one["client_id"], one["num_pairs"], one["answers"]) for one in parts] == [
        ("ada", 10, 1), ("bea", 10, 1)
    ]  # fmt: skip
    past = told(f"{seen.url}/api/clients/bea")
    assert past["measured"]["2"]["personalized"]["combined"] == pytest.approx(0.8)
    assert asked(f"{seen.url}/api/clients/eve")[0] == 404


def test_events_come_from_a_number_on(seen: Page) -> None:
    events = told(f"{seen.url}/api/events")
    assert [one["kind"] for one in events][:2] == ["run_fixed", "client_joined"]
    assert told(f"{seen.url}/api/events?after={events[4]['number']}") == events[5:]
    assert asked(f"{seen.url}/api/events?after=x")[0] == 400


def test_the_adapter_that_is_downloaded_is_the_published_one(seen: Page) -> None:
    status, content, headers = asked(f"{seen.url}/adapters/2.safetensors")
    assert status == 200
    assert content == (seen.folder / "server/adapters/version-00002.safetensors").read_bytes()
    assert "adapter-00002.safetensors" in headers["Content-Disposition"]
    assert asked(f"{seen.url}/adapters/3.safetensors")[0] == 404


def test_prometheus_reads_the_run_as_it_stands(seen: Page) -> None:
    with connected(seen.grpc_port) as (stub, _), pytest.raises(Exception, match="not joined"):
        Client(stub, "eve").task()
    status, content, headers = asked(f"{seen.url}/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
    }
    assert found["fedpdpo_phase", "training"] == 1
    assert found["fedpdpo_adapter_version",] == 2
    assert found["fedpdpo_clients", "here"] == 2
    assert found["fedpdpo_accuracy", "combined", "worst", "personalized"] == pytest.approx(0.7)
    assert found["fedpdpo_phase_seconds_count", "training"] == 2
    assert found["fedpdpo_phase_seconds_count", "averaging"] == 2
    assert found["fedpdpo_payload_bytes_total", "received"] > 0
    assert found["fedpdpo_refused_total", "GetAssignment", "NotFound"] == 1
    assert found["fedpdpo_transfers", "waiting"] == 0


def test_a_change_is_told_as_it_comes(tmp_path: Path) -> None:
    with page(tmp_path) as served, urllib.request.urlopen(f"{served.url}/api/live") as live:
        first = json.loads(live.readline().removeprefix(b"data: "))
        assert live.readline() == b"\n"
        assert not first["paused"]
        answer = asked(f"{served.url}/api/pause", method="POST", **bearer(served.operator))
        assert answer[0] == 204
        assert json.loads(live.readline().removeprefix(b"data: "))["paused"]


def test_all_who_watch_share_what_is_read_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    look = Observer.overview

    def counted(self: Observer) -> Overview:
        looks.append(time.monotonic())
        return look(self)

    monkeypatch.setattr(Observer, "overview", counted)
    with page(tmp_path) as served, contextlib.ExitStack() as watching:
        live = [
            watching.enter_context(urllib.request.urlopen(f"{served.url}/api/live"))
            for _ in range(20)
        ]
        for one in live:
            assert one.readline().startswith(b"data: ")
        begun = time.monotonic()
        until(lambda: looks[-1] > begun + 3, "further looks")
        gaps = [later - one for one, later in itertools.pairwise(looks) if one > begun]
        assert min(gaps) > 0.3


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_only_an_operators_token_lets_do_more_than_look(seen: Page) -> None:
    for headers in ({}, bearer("fedpdpo_nobody"), bearer(seen.client), bearer("x" * 1000)):
        for path, method in (("operator", "GET"), ("pause", "POST"), ("stop", "POST")):
            status, _, told_headers = asked(f"{seen.url}/api/{path}", method=method, **headers)
            assert status == 401
            assert told_headers["WWW-Authenticate"] == "Bearer"
    assert not told(f"{seen.url}/api/overview")["paused"]
    known = asked(f"{seen.url}/api/operator", **bearer(seen.operator))
    assert (known[0], json.loads(known[1])) == (200, "a-operator")
    unknown = asked(f"{seen.url}/api/delete", method="POST", **bearer(seen.operator))
    assert unknown[0] == 404
    assert asked(f"{seen.url}/api/stop", **bearer(seen.operator))[0] == 405


def test_a_run_is_paused_resumed_and_stopped_and_then_no_more(tmp_path: Path) -> None:
    with page(tmp_path) as served:
        for action, paused in (("pause", True), ("resume", False)):
            asked(f"{served.url}/api/{action}", method="POST", **bearer(served.operator))
            assert told(f"{served.url}/api/overview")["paused"] is paused
        asked(f"{served.url}/api/stop", method="POST", **bearer(served.operator))
        assert told(f"{served.url}/api/overview")["phase"] == "stopped"
        late = asked(f"{served.url}/api/pause", method="POST", **bearer(served.operator))
        assert (late[0], late[1]) == (
            409,
            b"the run has ended; there is nothing to pause or resume\n",
        )
        with connected(served.grpc_port) as (stub, _):
            for name in ("ada", "bea"):
                Client(stub, name).leave()


@pytest.mark.parametrize("number", [2**31, 2**63, 10**40])
def test_numbers_that_no_database_holds_are_not_found(seen: Page, number: int) -> None:
    assert asked(f"{seen.url}/api/rounds/{number}")[0] == 404
    assert asked(f"{seen.url}/adapters/{number}.safetensors")[0] == 404
    assert told(f"{seen.url}/api/events?after={number}") == []
    assert told(f"{seen.url}/api/events?after=-{number}") == told(f"{seen.url}/api/events")


def test_every_answer_forbids_what_comes_from_elsewhere(seen: Page) -> None:
    for path in ("", "static/page.js", "api/overview", "api/nothing", "healthz"):
        _, _, headers = asked(f"{seen.url}/{path}")
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert asked(f"{seen.url}/static/../web.py")[0] == 404
    assert asked(f"{seen.url}/api/overview", Host="evil.example")[0] == 400


def test_the_page_is_refused_to_other_machines_without_tls_and_on_a_taken_port(
    tmp_path: Path,
) -> None:
    wide = settings(tmp_path, dashboard_port=0, dashboard_host="0.0.0.0")
    with pytest.raises(BadSettings, match="--tls FOLDER"), running(wide):
        pass
    port = free_port()
    with (
        running(settings(tmp_path, dashboard_port=port)),
        pytest.raises(BadSettings, match="another --dashboard-port"),
        running(settings(tmp_path / "other", dashboard_port=port)),
    ):
        pass


def test_where_the_storage_is_that_does_not_answer_stays_the_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_: Observer) -> Overview:
        raise StorageAway("the database postgresql://fed@db.internal/run does not answer")

    with page(tmp_path) as served, urllib.request.urlopen(f"{served.url}/api/live") as live:
        assert live.readline().startswith(b"data: ")
        monkeypatch.setattr(Observer, "overview", away)
        for path in ("api/overview", "metrics"):
            status, content, _ = asked(f"{served.url}/{path}")
            assert status == 503
            assert content == b"the server's storage does not answer; ask again\n"
        assert b"db.internal" not in live.read()
        assert asked(f"{served.url}/api/live")[1] == b""
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


def shown(port: int, name: str | None) -> int:
    """The serial number of the certificate that the page shows to one who asks for a host."""
    unsure = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unsure.check_hostname, unsure.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        unsure.wrap_socket(plain, server_hostname=name) as connection,
    ):
        return serial(connection.getpeercert(binary_form=True) or b"")


def serial(der: bytes) -> int:
    return x509.load_der_x509_certificate(der).serial_number


@pytest.mark.parametrize("name", ["localhost", None])
def test_the_page_shows_the_certificate_that_is_there_when_a_browser_connects(
    tmp_path: Path, name: str | None
) -> None:
    consortium, port = Consortium(tmp_path), free_port()
    used = x509.load_pem_x509_certificate((consortium.server / "tls.crt").read_bytes())
    with consortium.serving(dashboard_port=port, dashboard_host="0.0.0.0"):
        assert shown(port, name) == used.serial_number
        (consortium.server / "tls.key").write_text("damaged")
        assert shown(port, name) == used.serial_number
        issued = consortium.authority.issue(SERVER, "next", days=1, hosts=["localhost"])
        for file in ("tls.crt", "tls.key"):
            shutil.copy(issued / file, consortium.server)
        following = x509.load_pem_x509_certificate((issued / "tls.crt").read_bytes())
        assert shown(port, name) == following.serial_number
        trusting = ssl.create_default_context(cafile=str(consortium.server / "ca.crt"))
        url = f"https://localhost:{port}/healthz"
        with urllib.request.urlopen(url, timeout=10, context=trusting) as answer:
            assert answer.read() == b"ok\n"


def connection(served: Page) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_connections_on_which_nothing_is_asked_keep_nobody_out(seen: Page) -> None:
    with contextlib.ExitStack() as idle:
        for _ in range(300):
            idle.enter_context(connection(seen))
        for path in ("healthz", "api/overview"):
            assert asked(f"{seen.url}/{path}")[0] == 200


@pytest.mark.parametrize("answered_before", [False, True])
def test_who_asks_nothing_for_a_while_is_given_up_though_bytes_come(
    seen: Page, monkeypatch: pytest.MonkeyPatch, answered_before: bool
) -> None:
    monkeypatch.setattr(crowd, "REQUEST_S", 0.5)
    with connection(seen) as slow:
        if answered_before:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with slow.makefile("rb") as answer:
                assert b"ok\n" in iter(answer.readline, b"")
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        slow.settimeout(0.1)

        def ended() -> bool:
            try:
                slow.sendall(b"A: b\r\n")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        until(ended, "the connection's end")


def test_who_watches_is_not_given_up(seen: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "REQUEST_S", 0.5)
    with urllib.request.urlopen(f"{seen.url}/api/live", timeout=10) as live:
        for _ in range(2):
            assert live.readline().startswith(b"data: ")
            assert live.readline() == b"\n"


def test_the_server_says_that_it_lives_however_many_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "MOST_ANSWERS", 2)
    with page(tmp_path) as served:
        with contextlib.ExitStack() as watching:
            for _ in range(2):
                watching.enter_context(urllib.request.urlopen(f"{served.url}/api/live"))
            status, _, headers = asked(f"{served.url}/api/overview")
            assert (status, headers["Retry-After"]) == (503, "1")
            assert asked(f"{served.url}/healthz")[0] == 200
        until(lambda: asked(f"{served.url}/api/overview")[0] == 200, "a free place")
