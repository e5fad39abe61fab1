"""State on disk: whole or not at all, one process at a time."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fedpdpo.common.errors import BadState, StorageFull
from fedpdpo.common.files import held, space_checked, whole_file, whole_folder
from serving import small_disk


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with whole_file(path) as partial:
        partial.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_fails_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with whole_folder(out) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.txt").write_text("a")
        assert not out.exists()
    assert (out / "deep" / "a.txt").read_text() == "a"
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), whole_folder(tmp_path / "out") as folder:
        (folder / "a.txt").write_text("a")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadState, match="in the way"), whole_folder(tmp_path):
        pytest.fail("the block ran")
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
    ],
)
def test_want_of_space_is_told_with_the_path(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    words = "file: No space left on device; free some space"
    with pytest.raises(StorageFull, match=words), whole_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "old"


def test_other_failures_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), space_checked(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_a_full_device_is_want_of_space() -> None:
    with pytest.raises(StorageFull), space_checked(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")


def test_a_directory_is_held_by_one_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedpdpo.common.files import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BadState, match="in use by another process"), held(tmp_path):
            pytest.fail("it was held twice")
        other.kill()
    with held(tmp_path):
        pass


def test_a_file_that_fills_the_disk_leaves_what_stood_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "file"
        path.write_text("old")
        with pytest.raises(StorageFull, match="No space left"), whole_file(path) as partial:
            partial.write_bytes(bytes(2**20))
        assert path.read_text() == "old"
        assert list(disk.iterdir()) == [path]


def test_a_folder_that_fills_the_disk_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with pytest.raises(StorageFull), whole_folder(disk / "out") as folder:
            (folder / "file").write_bytes(bytes(2**20))
        assert list(disk.iterdir()) == []


def test_the_folder_one_stands_in_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadState, match="in the way"), whole_folder(Path()):
        pytest.fail("the block ran")
