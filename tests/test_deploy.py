"""What deploy/ holds is valid, and says what the programs understand."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpdpo.client.settings import ClientSettings
from fedpdpo.common.settings import Settings, load_settings
from fedpdpo.server.settings import ServerSettings
from processes import BIN

DEPLOY = Path(__file__).parents[1] / "deploy"
COMPOSE = DEPLOY / "docker-compose.yml"
CLIENTS = ("ada", "bea", "cyd")
KINDS: dict[str, type[Settings]] = {
    "fedpdpo-server": ServerSettings,
    "fedpdpo-client": ClientSettings,
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    return dict(found)


def test_compose_finds_the_file_valid() -> None:
    compose = shutil.which("docker-compose")
    if compose is None:
        pytest.skip("needs Debian's docker-compose")
    command = [compose, "-f", str(COMPOSE), "config"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    rendered = yaml.safe_load(found.stdout)["services"]
    assert {"certs", "server", *CLIENTS} <= rendered.keys()


def test_each_services_flags_are_known_to_its_program(services: dict[str, Any]) -> None:
    for name in ("server", *CLIENTS):
        program = services[name]["image"]
        data = ["--data", "/data"] * (name in CLIENTS)
        load_settings(KINDS[program], [*services[name]["command"], *data], program=program)


def test_the_server_of_compose_is_there_after_the_run(services: dict[str, Any]) -> None:
    argv = services["server"]["command"]
    assert load_settings(ServerSettings, argv, program="fedpdpo-server").stay


def test_a_part_sees_its_own_certificate_and_nobody_elses(services: dict[str, Any]) -> None:
    for name in ("server", *CLIENTS, "operator"):
        mounted = [one for one in services[name]["volumes"] if "certs" in one or "authority" in one]
        assert mounted == [f"{name}-certs:/certs:ro"]
    given = services["certs"]["volumes"]
    assert {f"{name}-certs:/to/{name}" for name in ("server", *CLIENTS, "operator")} < set(given)


def test_ports_are_open_to_this_machine_alone(services: dict[str, Any]) -> None:
    published = [port for one in services.values() for port in one.get("ports", ())]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_certificates_of_compose_are_made_once_and_handed_out(
    services: dict[str, Any], tmp_path: Path
) -> None:
    script = services["certs"]["command"][0].replace("$$", "$")
    script = script.replace("/authority", f"{tmp_path}/authority").replace("/to", f"{tmp_path}/to")
    script = script.replace("chown -R 10001:10001", "ls")
    for name in ("authority", *(f"to/{one}" for one in ("server", *CLIENTS, "operator"))):
        (tmp_path / name).mkdir(parents=True)
    environment = {"PATH": f"{BIN}:/usr/bin:/bin"}
    kept = b""
    for _ in range(2):
        subprocess.run(["sh", "-euc", script], check=True, env=environment, timeout=120)
        for name in ("server", *CLIENTS, "operator"):
            files = {path.name for path in (tmp_path / "to" / name).iterdir()}
            assert files >= {"ca.crt", "tls.crt", "tls.key"}
        now = (tmp_path / "to/ada/tls.key").read_bytes()
        assert kept in (b"", now)
        kept = now


def test_systemd_finds_the_units_valid(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text(encoding="utf-8")
        assert "/opt/fedpdpo/bin/fedpdpo-" in text
        copied = tmp_path / unit.name.replace("@", "@ada")
        copied.write_text(text.replace("/opt/fedpdpo/bin/fedpdpo-", "/bin/true "), encoding="utf-8")
        command = [analyze, "verify", "--man=no", str(copied)]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stderr
        assert not found.stderr.strip(), found.stderr


def test_the_clients_of_systemd_meet_in_one_folder_and_outlive_one_another() -> None:
    text = (DEPLOY / "systemd" / "fedpdpo-client@.service").read_text(encoding="utf-8")
    (folder,) = re.findall(r"^RuntimeDirectory=(\S+)$", text, re.M)
    assert "%" not in folder
    assert re.findall(r"^Environment=TMPDIR=(\S+)$", text, re.M) == [f"/run/{folder}"]
    assert "\nRuntimeDirectoryPreserve=yes\n" in text
