"""The folder that a demo writes into: made anew, and never another's."""

import shutil
from pathlib import Path

from package import DemoError

#: What shows that the demo made a folder.
MARK = ".fedpdpo-demo"


def must_be_ours(out: Path) -> None:
    """Raise DemoError unless nothing is there, or an empty folder, or one that a demo made."""
    if out.exists() and not out.is_dir():
        raise DemoError(f"{out} is no folder; give another --out")
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise DemoError(
            f"{out} holds files but no {MARK}, by which a demo knows its own; "
            "remove it yourself, or give another --out"
        )


def make_anew(out: Path) -> None:
    """Make a folder, or empty the one that an earlier demo left there.

    Raises DemoError for another's folder, and for one that cannot be made or emptied.
    """
    must_be_ours(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
        for path in out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARK:
                path.unlink()
    except OSError as error:
        raise DemoError(f"cannot make {out} anew: {error}; give another --out") from error
