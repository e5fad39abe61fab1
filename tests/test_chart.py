"""The Helm chart: rendered, valid for Kubernetes, and saying what the programs understand.

Rendered by Helm where it is at hand, else by chart/render.go with Debian's Go and sprig.
"""

import json
import os
import re
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


def rendered(
    values: dict[str, Any], folder: Path, *, release: str = "demo"
) -> dict[tuple[str, str], dict[str, Any]]:
    """The chart's objects by kind and name."""
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["helm", "template", release, str(CHART), "--values", str(file)]
    environment = dict(os.environ)
    if not shutil.which("helm"):
        command = ["go", "run", str(RENDERER), str(CHART), release, str(file)]
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
    claimed = {
        name: {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", ())}
        for (_, name), one in objects.items()
    }
    for name, pod in pods(objects).items():
        (container,) = pod["spec"]["containers"]
        if name.endswith("server"):
            load_settings(ServerSettings, container["args"], program="fedpdpo-server")
        else:
            load_settings(ClientSettings, container["args"], program="fedpdpo-client")
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | claimed[name]
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        # A Service named fedpdpo-server would else give FEDPDPO_SERVER_PORT=tcp://…
        assert pod["spec"]["enableServiceLinks"] is False
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
        if wanted:
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
    (args,) = (pod["spec"]["containers"][0]["args"] for pod in pods(away).values())
    assert "--server=fed.example.org:50051" in args
    assert ("NetworkPolicy", "demo-server") not in away
    assert ("NetworkPolicy", "demo-clients") in away


def args_of(objects: dict[tuple[str, str], dict[str, Any]], name: str) -> list[str]:
    """The arguments of the pod whose object's name begins so."""
    (pod,) = (pod for found, pod in pods(objects).items() if found.startswith(name))
    return list(pod["spec"]["containers"][0]["args"])


def test_settings_are_flags_that_the_programs_take(tmp_path: Path) -> None:
    values = {"server": {"settings": {"zstd": True, "method.reward-head": False, "norm-bound": 0}}}
    args = args_of(rendered(values, tmp_path), "demo-server")
    assert {"--zstd", "--no-method.reward-head", "--norm-bound=0", "--rounds=3"} < set(args)
    found = load_settings(ServerSettings, args, program="fedpdpo-server")
    assert found.zstd
    assert not found.method.reward_head


def test_a_clients_own_setting_wins_even_where_it_is_nothing(tmp_path: Path) -> None:
    own = {"checkpoint-activations": False, "save-every-s": 0, "model": ""}
    shared = {"checkpoint-activations": True, "save-every-s": 60, "model": "/models/m",
              "max-tokens": 512}  # fmt: skip
    clients = [CLIENTS[0] | {"settings": own}, CLIENTS[1]]
    found = rendered({"client": {"settings": shared}, "clients": clients}, tmp_path)
    ada, bea = (set(args_of(found, f"demo-client-{name}")) for name in ("ada", "bea"))
    assert {"--no-checkpoint-activations", "--save-every-s=0", "--model=", "--max-tokens=512"} < ada
    assert {"--checkpoint-activations", "--save-every-s=60", "--model=/models/m"} < bea


def test_the_server_stays_after_the_run_for_whoever_starts_it_again(tmp_path: Path) -> None:
    args = args_of(rendered(VARIANTS["tls"], tmp_path), "demo-server")
    assert load_settings(ServerSettings, args, program="fedpdpo-server").stay
    values = {"server": {"settings": {"stay": False}}}
    args = args_of(rendered(values, tmp_path), "demo-server")
    assert not load_settings(ServerSettings, args, program="fedpdpo-server").stay


def test_a_job_that_changes_has_another_name_and_the_same_volume(tmp_path: Path) -> None:
    def found(release: str = "demo", **client: Any) -> dict[str, str]:
        values: dict[str, Any] = {"client": client, "clients": [*CLIENTS, long]}
        objects = rendered(values, tmp_path, release=release)
        assert {name for kind, name in objects if kind == "PersistentVolumeClaim"} == {
            f"{release}-client-{one['name']}" for one in values["clients"]
        }
        return {
            one["spec"]["template"]["metadata"]["labels"]["fedpdpo/client"]: name
            for (kind, name), one in objects.items()
            if kind == "Job"
        }

    long = {"name": "c" * 42, "data": {"emptyDir": {}}}
    before = found()
    assert found() == before
    for changed in ({"image": "other"}, {"settings": {"threads": 2}}, {"gpus": 1}):
        assert set(found(**changed).values()).isdisjoint(before.values())
    for name in (*before.values(), *found("r" * 53).values()):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)
    assert len({*found("r" * 53).values()}) == 3


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
