"""The Helm chart: rendered, valid for Kubernetes, and saying what the programs understand.

Rendered by Helm where it is at hand, else by chart/render.go with Debian's Go and sprig.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from fedpdpo.client.settings import ClientSettings
from fedpdpo.common.settings import load_settings
from fedpdpo.server.settings import ServerSettings

CHART = Path(__file__).parents[1] / "deploy" / "helm" / "fedpdpo"
RENDERER = Path(__file__).with_name("chart") / "render.go"
GOCODE = Path("/usr/share/gocode")

CLIENTS = [
    {"name": "ada", "data": {"persistentVolumeClaim": {"claimName": "ada"}},
     "tlsSecret": "ada-cert"},
    {"name": "bea", "data": {"hostPath": {"path": "/prefs"}}, "tokenSecret": "bea-token",
     "settings": {"max-tokens": 512}},
]  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "alone": {},
    "tls": {"server": {"tlsSecret": "cert",
                       "settings": {"method.beta": 0.2, "max-pairs": 2_000_000}},
            "clients": CLIENTS},
    "tokens": {"server": {"tlsSecret": "cert", "tokensSecret": "tokens"}, "clients": CLIENTS,
               "client": {"kind": "Deployment", "gpus": 1, "modelsClaim": "models"}},
    "far state": {"server": {"stateUrl": "s3://bucket/run", "environmentSecret": "reached"}},
    "elsewhere": {"server": {"enabled": False}, "client": {"server": "fed.example.org:50051"},
                  "clients": CLIENTS[:1]},
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (shutil.which("helm") or (shutil.which("go") and GOCODE.exists())),
    reason="needs helm, or Debian's golang-go and golang-github-masterminds-sprig-dev",
)


def rendered(values: dict[str, Any], folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The chart's objects by kind and name."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["helm", "template", "demo", str(CHART), "--values", str(file)]
    environment = dict(os.environ)
    if not shutil.which("helm"):
        command = ["go", "run", str(RENDERER), str(CHART), "demo", str(file)]
        environment |= {"GO111MODULE": "off", "GOPATH": str(GOCODE),
                        "GOCACHE": str(folder.parent / "gocache")}  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert found.returncode == 0, found.stderr
    documents = [one for one in yaml.safe_load_all(found.stdout) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


@pytest.fixture(params=VARIANTS)
def objects(
    request: pytest.FixtureRequest, tmp_path: Path
) -> dict[tuple[str, str], dict[str, Any]]:
    return rendered(VARIANTS[request.param], tmp_path)


def pods(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: one["spec"]["template"]
        for (_, name), one in objects.items()
        if "template" in one["spec"]
    }


def test_every_object_is_valid_for_kubernetes(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    for one in objects.values():
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_flags_are_known_and_every_mount_has_its_volume(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert pods(objects)
    for name, pod in pods(objects).items():
        (container,) = pod["spec"]["containers"]
        if name.endswith("server"):
            load_settings(ServerSettings, container["args"], program="fedpdpo-server")
        else:
            load_settings(ClientSettings, container["args"], program="fedpdpo-client")
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | {"state"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_selectors_find_their_pods(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    labels = [pod["metadata"]["labels"] for pod in pods(objects).values()]
    for (kind, _), one in objects.items():
        spec = one["spec"]
        wanted = {
            "Service": lambda spec: spec["selector"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
            "StatefulSet": lambda spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
        }.get(kind)
        if wanted and not one["metadata"]["name"].endswith("-clients"):
            assert any(wanted(spec).items() <= found.items() for found in labels)


def test_what_is_asked_for_is_there(tmp_path: Path) -> None:
    found = rendered(VARIANTS["tokens"], tmp_path)
    server = found["StatefulSet", "demo-server"]["spec"]["template"]["spec"]["containers"][0]
    assert {"--tls=/certs", "--tokens=/tokens/tokens.txt"} < set(server["args"])
    assert server["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    client = found["Deployment", "demo-client-bea"]["spec"]["template"]["spec"]
    assert client["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert "--max-tokens=512" in client["containers"][0]["args"]
    assert "--server=demo-server:50051" in client["containers"][0]["args"]
    assert "--token-file=/token/token" in client["containers"][0]["args"]
    plain = rendered(VARIANTS["alone"], tmp_path)
    (open_server,) = (pod["spec"]["containers"][0] for pod in pods(plain).values())
    assert open_server["readinessProbe"]["grpc"] == {"port": 50051}
    assert "--insecure" in open_server["args"]
    far = rendered(VARIANTS["far state"], tmp_path)
    assert "volumeClaimTemplates" not in far["StatefulSet", "demo-server"]["spec"]
    (server,) = (pod["spec"]["containers"][0] for pod in pods(far).values())
    assert {"--state-dir=s3://bucket/run", "--cache-dir=/state"} < set(server["args"])
    assert server["envFrom"] == [{"secretRef": {"name": "reached"}}]
    assert far["NetworkPolicy", "demo-server"]["spec"]["egress"] == [{}]
    assert plain["NetworkPolicy", "demo-server"]["spec"]["egress"] == []
    away = rendered(VARIANTS["elsewhere"], tmp_path)
    assert ("StatefulSet", "demo-server") not in away
    args = away["Job", "demo-client-ada"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--server=fed.example.org:50051" in args


def test_values_that_are_unknown_or_wrong_are_refused_by_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), schema)
    for values in VARIANTS.values():
        jsonschema.validate(values, schema)
    mistakes: list[dict[str, Any]] = [
        {"servers": {}},
        {"client": {"kind": "Pod"}},
        {"clients": [{"name": "ada"}]},
        {"clients": [{"name": "A_b", "data": {"emptyDir": {}}}]},
    ]
    for wrong in mistakes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
