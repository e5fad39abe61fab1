"""The shape of the house: namespace, wheel, and what may be imported where."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("proto", "common", "server", "client", "simulation")
WITHOUT_TRAINING = """
import sys
for name in ("torch", "transformers", "peft", "pyarrow", "gguf", "accelerate", "jinja2", "ray",
             "psycopg", "s3fs", "bitsandbytes", "mlflow", "wandb", "tensorboard"):
    sys.modules[name] = None
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_no_source_root_ends_the_namespace(root: str) -> None:
    assert (ROOT / root / "fedpdpo").is_dir()
    assert not (ROOT / root / "fedpdpo" / "__init__.py").exists()


def test_the_wheel_holds_all_five_roots_and_the_generated_code(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "fedpdpo/v1/federation_pb2.py",
        "fedpdpo/v1/federation_pb2_grpc.py",
        "fedpdpo/v1/operator_pb2.pyi",
        "fedpdpo/common/run.py",
        "fedpdpo/server/cli.py",
        "fedpdpo/server/watch/static/index.html",
        "fedpdpo/client/cli.py",
        "fedpdpo/simulation/engine.py",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "deploy", "fedpdpo/__init__"))]


@pytest.mark.parametrize(
    "call",
    [
        "from fedpdpo.server.cli import main; main(['--help'])",
        "from fedpdpo.client.tool.command import main; main(['--help'])",
        "from fedpdpo.client.cli import main; main(['--help'])",
    ],
)
def test_the_base_install_shows_help_without_any_training_library(call: str) -> None:
    done = python(WITHOUT_TRAINING + call)
    assert "usage:" in done.stdout, done.stderr
    assert done.returncode == 0


def test_the_base_install_says_what_the_client_needs() -> None:
    done = python(
        WITHOUT_TRAINING + "from fedpdpo.client.cli import main; "
        "sys.exit(main(['--server', 'localhost:1', '--data', 'x']))"
    )
    assert done.returncode == 2
    assert "install this package with its extra [client]" in done.stderr


def test_every_module_is_one_room() -> None:
    modules = [path for root in SOURCE_ROOTS for path in (ROOT / root).rglob("*.py")]
    long = {
        path.name: lines
        for path in modules
        if "_pb2" not in path.name and (lines := len(path.read_text().splitlines())) > 300
    }
    assert not long
