"""The demo makes its own folder anew, and touches nobody else's."""

import subprocess
import sys
from pathlib import Path

import pytest

from folder import MARK, make_anew, must_be_ours
from package import DemoError

RUN = Path(__file__).parents[1] / "deploy" / "demo" / "run.py"


def test_a_folder_that_a_demo_made_is_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "demo"
    make_anew(out)
    (out / "server").mkdir()
    (out / "server" / "run.sqlite").touch()
    kept = tmp_path / "kept.txt"
    kept.touch()
    (out / "link").symlink_to(kept)
    make_anew(out)
    assert [path.name for path in out.iterdir()] == [MARK]
    assert kept.exists()


def test_an_empty_folder_is_taken_and_may_be_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        make_anew(Path())
        assert (tmp_path / MARK).is_file()


@pytest.mark.parametrize("kind", ["folder", "file", "link to it"])
def test_what_is_anothers_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "results.csv").touch()
    out = {"folder": theirs, "file": theirs / "results.csv", "link to it": out}[kind]
    if kind == "link to it":
        out.symlink_to(theirs)
    before = sorted(tmp_path.rglob("*"))
    for refuses in (must_be_ours, make_anew):
        with pytest.raises(DemoError, match="give another --out"):
            refuses(out)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemoError, match=r"cannot make .* anew"):
        make_anew(tmp_path / "file" / "demo")


def test_the_demo_refuses_before_it_fetches_anything(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    command = [sys.executable, str(RUN), "--out", "."]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 1
    assert found.stderr.startswith("demo: . holds files but no .fedpdpo-demo")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
