"""What bad input gets from the real commands: words that help, an exit code, nothing lost."""

import json
import subprocess
from pathlib import Path

import pytest

from processes import Program, Stage, stage
from serving import small_disk
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

METHOD = ("--min-clients", 1, "--rounds", 1, "--lora.layers", "last-2", "--lora.rank", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_preferences(path, seed=0, num=24, taste="warm")
    return path


def refusal(program: Program, *, code: int = 1) -> str:
    assert program.ends() == code, program.output
    last = program.output.strip().splitlines()[-1]
    assert "Traceback" not in program.output
    return last


def client(on: Stage, *arguments: object, log: str = "client") -> Program:
    return on.start("fedpdpo-client", *arguments, "--connect-timeout-s", 0.5, log=log)


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")
    return path


def test_a_malformed_server_address_is_a_wrong_setting(tmp_path: Path, data: Path) -> None:
    with stage(tmp_path) as on:
        line = refusal(client(on, "--server", "nowhere", "--data", data), code=2)
    assert "setting server" in line
    assert "nowhere" in line


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, data: Path) -> None:
    with stage(tmp_path) as on:
        state = tmp_path / "state"
        arguments = ("--server", "localhost:1", "--data", data, "--state-dir", state)
        line = refusal(client(on, *arguments))
    assert "localhost:1: the server cannot be reached" in line


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "holds no records"),
        ([{"prompt": "p", "chosen": " a", "rejected": " a"}], ":1: chosen and rejected are equal"),
        ([{"prompt": "p", "chosen": " a"}], ":1: the record has no 'rejected'"),
    ],
)
def test_bad_data_is_named_by_file_and_line(
    tmp_path: Path, records: list[object], words: str
) -> None:
    path = write(tmp_path / "bad.jsonl", *records) if records else tmp_path / "bad.jsonl"
    path.touch()
    with stage(tmp_path) as on:
        line = refusal(client(on, "--server", "localhost:1", "--data", path))
    assert f"bad.jsonl{words}" in line or ("bad.jsonl" in line and words in line)


def test_no_data_is_named(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        line = refusal(client(on, "--server", "localhost:1", "--data", tmp_path / "absent"))
        assert "absent" in line
        needed = refusal(client(on, "--server", "localhost:1", log="flag"), code=2)
        assert "data" in needed


def test_an_unknown_model_is_named_with_the_kinds_that_work(tmp_path: Path, data: Path) -> None:
    with stage(tmp_path) as on:
        _, port = on.server("--model", "no-such/model", *METHOD)
        line = refusal(on.client("ada", port, data))
    assert "cannot load the model no-such/model" in line
    assert "--model" in line


def test_another_backbone_is_refused_at_join(tmp_path: Path, model: Path, data: Path) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    with stage(tmp_path) as on:
        _, port = on.server("--model", model, *METHOD, "--min-clients", 2)
        first = on.client("ada", port, data)
        first.says("joined")
        line = refusal(on.client("bea", port, data, "--model", other))
    assert "backbone has fingerprint" in line
    assert "the run's" in line


def test_a_state_directory_in_use_or_of_another_run_is_refused(
    tmp_path: Path, model: Path, data: Path
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server("--model", model, *METHOD, "--min-clients", 2)
        first = on.client("ada", port, data)
        first.says("joined")
        again = on.start(
            "fedpdpo-client", "--server", f"localhost:{port}", "--data", data,
            "--state-dir", tmp_path / "ada", log="again",
        )  # fmt: skip
        assert "is in use by another process" in refusal(again)
        busy = on.start("fedpdpo-server", "--state-dir", tmp_path / "server", "--port", 0, log="b")
        assert "is in use by another process" in refusal(busy)
        first.kill()
        server.kill()
        other, port = Stage(tmp_path / "two"), 0
        other.folder.mkdir()
        with stage(other.folder) as second:
            _, port = second.server("--model", model, *METHOD)
            line = refusal(on.client("ada", port, data))
    assert "holds the private parts of run" in line
    assert "another --state-dir" in line


def test_other_settings_than_the_runs_are_refused_by_name(tmp_path: Path, model: Path) -> None:
    with stage(tmp_path) as on:
        server, _ = on.server("--model", model, *METHOD)
        server.kill()
        again = on.start(
            "fedpdpo-server", "--state-dir", tmp_path / "server", "--port", 0, "--model", model,
            *METHOD, "--lora.rank", 8, log="again",
        )  # fmt: skip
        line = refusal(again)
    assert "lora.rank is 4 there and 8 here" in line


def test_a_port_in_use_is_named(tmp_path: Path, model: Path) -> None:
    with stage(tmp_path) as on:
        _, port = on.server("--model", model, *METHOD)
        second = on.start(
            "fedpdpo-server", "--port", port, "--state-dir", tmp_path / "other", log="second"
        )
        line = refusal(second, code=2)
    assert f"cannot listen on 127.0.0.1:{port}" in line


def test_a_truncated_state_file_is_named_and_the_rest_is_kept(
    tmp_path: Path, model: Path, data: Path
) -> None:
    with stage(tmp_path) as on:
        rounds = ("--min-clients", 1, "--rounds", 2, "--lora.layers", "last-2", "--lora.rank", 4)
        server, port = on.server("--model", model, *rounds)
        first = on.client("ada", port, data)
        assert first.ends() == 0, first.output
        assert server.ends() == 0
        damaged = tmp_path / "ada/rounds/round-00002/private.safetensors"
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2])
        line = refusal(
            on.start("fedpdpo", "export", "--state-dir", tmp_path / "ada", "--out",
                     tmp_path / "out", log="export")
        )  # fmt: skip
        assert str(damaged) in line
        assert "goes on from round-00001" in line
        assert not (tmp_path / "out").exists()
        damaged.write_bytes(whole)
        export = on.start("fedpdpo", "export", "--state-dir", tmp_path / "ada", "--out",
                          tmp_path / "out", log="export2")  # fmt: skip
        assert export.ends() == 0, export.output


def test_a_server_whose_disk_is_full_says_so_and_goes_on_when_there_is_space(
    tmp_path: Path, model: Path, data: Path
) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk, stage(tmp_path) as on:
        server = on.start(
            "fedpdpo-server", "--port", 0, "--state-dir", disk / "server", "--model", model,
            *METHOD, "--lora.rank", 256, log="server",
        )  # fmt: skip
        port = int(server.says(r"serving address=\S+:(\d+)").group(1))
        waiting = on.client("ada", port, data)
        waiting.says("waiting_for_server .*No space left on device")
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert waiting.ends() == 0, waiting.output
        assert server.ends() == 0, server.output


def test_a_client_whose_disk_is_full_keeps_its_old_state_and_goes_on_later(
    tmp_path: Path, model: Path, data: Path
) -> None:
    with stage(tmp_path) as on:
        server, port = on.server("--model", model, *METHOD)
        small = on.start(
            "fedpdpo-client", "--server", f"localhost:{port}", "--data", data,
            "--state-dir", tmp_path / "ada", "--client-id", "ada", log="small",
            max_file_bytes=8192,
        )  # fmt: skip
        line = refusal(small)
        assert "nothing was lost" in line
        assert not list((tmp_path / "ada").rglob("round-*"))
        assert not list((tmp_path / "ada").rglob("*.partial"))
        roomy = on.client("ada", port, data)
        assert roomy.ends() == 0, roomy.output
        assert server.ends() == 0
