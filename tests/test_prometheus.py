"""Metrics end to end: a real run, scraped by a real Prometheus with the configuration we ship."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from processes import stage, until
from tiny import save_tiny_model, write_preferences
from watched import free_port

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
BOARD = ROOT / "deploy" / "grafana" / "dashboard.json"

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs Debian's prometheus",
)


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Where the server's and a client's metrics are, in a run that has one round behind it."""
    folder = tmp_path_factory.mktemp("run")
    model = save_tiny_model(folder / "model")
    of_server, of_client = free_port(), free_port()
    with stage(folder) as on:
        _, port = on.server("--model", model, "--rounds", 500, "--dashboard-port", of_server)
        for name, more in (
            ("ada", ("--metrics-port", of_client, "--track", "tensorboard")),
            ("bea", ()),
        ):
            data = folder / f"{name}.jsonl"
            write_preferences(data, seed=len(name), num=40, taste="warm")
            on.client(name, port, data, *more)
        until(lambda: told(of_server).get("fedpdpo_adapter_version", 0) >= 1, "the first round")
        until(lambda: told(of_client).get("fedpdpo_client_round", 0) >= 1, "a trained round")
        yield of_server, of_client


def told(port: int) -> dict[str, float]:
    """Samples by name; of several the sum. None while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_a_client_tells_what_it_spent_its_time_on_and_what_came_of_it(
    ports: tuple[int, int],
) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    for doing in ("training", "measuring", "fetching", "sending", "scoring"):
        assert re.search(rf'spent_seconds_count\{{doing="{doing}"\}} [1-9]', text)
    found = told(ports[1])
    assert found["fedpdpo_client_payload_bytes_total"] > 0
    assert found["fedpdpo_client_loss"] > 0
    assert re.search(r'accuracy\{kind="combined",view="personalized"\} [01]\.', text)
    assert found["process_resident_memory_bytes"] > 2**20


def test_every_metric_in_rules_and_dashboard_is_told_by_a_run(ports: tuple[int, int]) -> None:
    board = json.loads(BOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))
    asked += [rule["expr"] for rule in rules["groups"][0]["rules"]]
    names = set(re.findall(r"\b(?:fedpdpo|process)_[a-z_]+", " ".join(asked)))
    assert len(names) > 15
    rare = {"fedpdpo_refused_total", "fedpdpo_deltas_left_out_total",
            "fedpdpo_client_gpu_memory_bytes"}  # fmt: skip
    assert names - rare <= told(ports[0]).keys() | told(ports[1]).keys()


@needs_prometheus
def test_prometheus_scrapes_a_run_and_evaluates_the_rules(
    ports: tuple[int, int], tmp_path: Path
) -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
    for job, port in zip(config["scrape_configs"], ports, strict=True):
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(PROMETHEUS / "alerts.yml", tmp_path)
    with stage(tmp_path) as on:
        prometheus = on.start(
            str(shutil.which("prometheus")),
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}",
            "--web.listen-address=127.0.0.1:0",
            log="prometheus",
        )
        port = int(prometheus.says(r'msg="Listening on" address=127.0.0.1:(\d+)').group(1))
        until(
            lambda: len(answered(port, "up == 1")) == 2,
            lambda: f"both jobs scraped: {api(port, 'targets')}\n{prometheus.output}",
        )
        (version,) = answered(port, "fedpdpo_adapter_version")
        assert float(version["value"][1]) >= 1
        assert answered(port, "fedpdpo_client_round > 0")
        until(lambda: health(port) == {"ok"}, "all rules evaluated")
        assert answered(port, 'ALERTS{alertstate="firing"}') == []
        prometheus.terminate()


def answered(port: int, query: str) -> list[dict[str, Any]]:
    found = api(port, f"query?query={urllib.parse.quote(query)}")
    return list(found.get("result", []))


def health(port: int) -> set[str]:
    groups = api(port, "rules").get("groups", [])
    return {rule["health"] for group in groups for rule in group["rules"]}


def api(port: int, path: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=5) as answer:
            return dict(json.load(answer)["data"])
    except OSError:
        return {}


@needs_prometheus
def test_alerts_rise_when_they_should() -> None:
    for command in (
        ("check", "config", PROMETHEUS / "prometheus.yml"),
        ("test", "rules", Path(__file__).with_name("prometheus_alerts.yml")),
    ):
        found = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stdout + found.stderr
