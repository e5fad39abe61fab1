"""Both container images, built and run to the end of a run, each in its own network namespace.

Where no Docker engine is at hand buildah builds and runs them, on a base made by debootstrap.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from admitted import Consortium
from fedpdpo.client.tool.authority import SERVER
from fedpdpo.common.identity import Role
from namespaces import Quality, needs_namespaces, network
from processes import stage
from tiny import save_tiny_model, write_preferences

ROOT = Path(__file__).parents[1]
BASE = "docker.io/library/debian:bookworm-slim"
BUILDAH = ("buildah", "--storage-driver", "vfs")
CLIENTS = ("ada", "bea")
PORT = 50051
MOST_BYTES_OF_SERVER = 200e6
USER = "10001"

#: As `make` was told; and files that a build needs to reach the package index here.
TORCH = os.environ.get("FEDPDPO_TORCH", "torch")
MOUNTS = os.environ.get("FEDPDPO_BUILD_MOUNTS", "").split()

pytestmark = [
    pytest.mark.images,
    pytest.mark.timeout(3600),
    needs_namespaces,
    pytest.mark.skipif(
        not all(map(shutil.which, ("buildah", "podman", "debootstrap"))),
        reason="needs Debian's buildah, podman and debootstrap",
    ),
]


def done(*command: object) -> str:
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Debian's slim image, made from its packages where it is not there."""
    if BASE in done(*BUILDAH, "images", "--format", "{{.Name}}:{{.Tag}}"):
        return
    root = tmp_path_factory.mktemp("base") / "root"
    done("debootstrap", "--variant=minbase", "bookworm", root)
    for useless in ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info",
                    "var/cache/apt", "var/lib/apt/lists", "var/log"):  # fmt: skip
        for path in (root / useless).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    packed = root.with_suffix(".tar")
    done("tar", "-C", root, "-cf", packed, ".")
    done("podman", "--storage-driver", "vfs", "import", packed, BASE)


@pytest.fixture(scope="module")
def images(base: None) -> Iterator[dict[str, str]]:
    """A container of each image, by the name of its part."""
    containers = {}
    for part in ("server", "client"):
        mounts = [word for mount in MOUNTS for word in ("-v", mount)]
        build = ("build", "--format", "docker", "--isolation", "chroot", "--network", "host")
        done(
            *BUILDAH, *build, "--layers=false", *mounts, "--build-arg", f"TORCH={TORCH}",
            "-f", ROOT / f"deploy/Dockerfile.{part}", "-t", f"fedpdpo-{part}", ROOT,
        )  # fmt: skip
        containers[part] = done(*BUILDAH, "from", f"fedpdpo-{part}").strip()
    yield containers
    for container in containers.values():
        done(*BUILDAH, "rm", container)


def inside(container: str, folder: Path, *command: object) -> tuple[object, ...]:
    """The arguments of buildah that run a command in a container, with a folder of the test's."""
    run = (*BUILDAH[1:], "run", "--isolation", "chroot", "--user", USER)
    return (*run, "-v", f"{folder}:{folder}", container, "--", *command)


def test_the_servers_image_is_small_without_torch_and_not_roots(images: dict[str, str]) -> None:
    (told,) = json.loads(done(*BUILDAH, "images", "--json", "fedpdpo-server"))
    root = Path(done(*BUILDAH, "mount", images["server"]).strip())
    taken = sum(path.lstat().st_size for path in root.rglob("*") if not path.is_symlink())
    print(f"fedpdpo-server: {told['size']}, {taken / 1e6:.0f} MB of files")
    assert taken < MOST_BYTES_OF_SERVER
    assert not list(root.glob("app/lib/python3*/site-packages/torch"))
    for part in images:
        told = json.loads(done(*BUILDAH, "inspect", "--type", "image", f"fedpdpo-{part}"))
        assert told["OCIv1"]["config"]["User"] == "fedpdpo"
        assert told["Docker"]["config"]["Healthcheck"]["Test"]


def test_a_run_of_both_images_in_their_own_networks_comes_to_its_end(
    images: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    model = save_tiny_model(folder / "model")
    consortium = Consortium(folder / "consortium")
    buildah = str(shutil.which("buildah"))
    with stage(tmp_path / "logs") as on, network(CLIENTS, on, Quality()) as net:
        hosts = list(net.servers.values())
        tls = consortium.authority.issue(SERVER, "server", days=1, hosts=hosts)
        admitted = {name: consortium.authority.issue(Role.CLIENT, name, days=1) for name in CLIENTS}
        for seed, name in enumerate(CLIENTS):
            write_preferences(folder / f"{name}.jsonl", seed=seed, num=40, taste="warm")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, int(USER), int(USER))
        tmp_path.chmod(0o755)
        server = net.start(
            "server", buildah, *inside(
                images["server"], folder, "fedpdpo-server", "--host", "0.0.0.0", "--tls", tls,
                "--port", PORT, "--model", model, "--rounds", 2, "--state-dir", folder / "server",
                "--dashboard-host", "0.0.0.0", "--dashboard-port", 8080,
            ),
        )  # fmt: skip
        server.says("serving address=")
        health = ["ip", "netns", "exec", net.space("server"), buildah, *map(str, inside(
            images["server"], folder, "python3", "-m", "fedpdpo.server.watch.health"))]  # fmt: skip
        assert subprocess.run(health, timeout=60).returncode == 0
        clients = [
            net.start(
                name, buildah, *inside(
                    images["client"], folder, "fedpdpo-client", "--server",
                    f"{net.servers[name]}:{PORT}", "--client-id", name, "--tls", admitted[name],
                    "--data", folder / f"{name}.jsonl", "--state-dir", folder / name,
                    "--threads", 1, "--metrics-port", 9101,
                ),
            )
            for name in CLIENTS
        ]  # fmt: skip
        for program in (*clients, server):
            assert program.ends() == 0, program.output
        assert subprocess.run(health, timeout=60, capture_output=True).returncode == 1
    finals = [next((folder / name / "adapters").iterdir()).read_bytes() for name in CLIENTS]
    assert finals == [(folder / "server/adapters/version-00002.safetensors").read_bytes()] * 2
