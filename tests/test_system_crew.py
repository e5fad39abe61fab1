"""Several processes train as one client, by gloo on the CPU."""

import signal
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from processes import Program, Stage, is_amid_training, stage, until
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

ROUNDS = 2
METHOD = ("--method.batch-pairs", 5, "--lora.layers", "last-2", "--lora.rank", 4)
LAUNCHER = ("torchrun", "--standalone", "--nproc_per_node", 2)


class Place:
    """The model and the data that all runs have in common."""

    def __init__(self, folder: Path) -> None:
        self.model = save_tiny_model(folder / "model")
        self.data = write_preferences(folder / "data.jsonl", seed=3, num=40, taste="warm")

    def server(self, on: Stage) -> tuple[Program, int]:
        return on.server("--model", self.model, "--min-clients", 1, "--rounds", ROUNDS,
                         "--method.local-epochs", 6, *METHOD)  # fmt: skip

    def client(self, on: Stage, port: int, *arguments: object, crew: bool) -> Program:
        command = LAUNCHER if crew else ()
        return on.client("ada", port, self.data, "--device", "cpu", *arguments, launched_by=command)

    def undisturbed(self, folder: Path, *, crew: bool) -> Path:
        with stage(folder) as on:
            server, port = self.server(on)
            client = self.client(on, port, crew=crew)
            for program in (client, server):
                assert program.ends() == 0, program.output
        return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, place: Place) -> Path:
    return place.undisturbed(tmp_path_factory.mktemp("together"), crew=True)


def last_round(folder: Path) -> Path:
    return folder / f"ada/rounds/round-{ROUNDS:05}"


def test_processes_that_are_launched_together_train_as_one_client_does(
    tmp_path: Path, place: Place, together: Path
) -> None:
    alone = place.undisturbed(tmp_path, crew=False)
    output = (together / "ada.log").read_text()
    assert output.count("backbone model=") == 2
    assert output.count(f"trained round={ROUNDS}") == 1
    for file in ("private.safetensors", "delta.safetensors"):
        found = load_file(last_round(together) / file)
        for name, expected in load_file(last_round(alone) / file).items():
            assert np.linalg.norm(found[name] - expected) <= 1e-3 * np.linalg.norm(expected)


def test_a_killed_process_ends_all_and_the_round_goes_on_to_the_same_bits(
    tmp_path: Path, place: Place, together: Path
) -> None:
    with stage(tmp_path) as on:
        server, port = place.server(on)
        client = place.client(on, port, "--save-every-s", 0, crew=True)
        amid = partial(is_amid_training, port, "ada", round_number=2)
        until(amid, "amid round 2")
        crew = psutil.Process(client.process.pid).children()
        assert len(crew) == 2
        crew[1].kill()
        assert client.ends() != 0
        psutil.wait_procs(crew, timeout=60)
        assert not any(process.is_running() for process in crew)

        client = place.client(on, port, "--save-every-s", 1000, crew=True)
        assert step_after(client) > 0
        until(partial(is_amid_training, port, "ada", round_number=2, least=0.3), "amid round 2")
        client.terminate()
        assert "interrupted round=2 step=" in client.output
        assert client.ends() in (1, 128 + signal.SIGTERM)

        client = place.client(on, port, crew=True)
        assert step_after(client) > 0
        for program in (client, server):
            assert program.ends() == 0, program.output
    for file in ("private.safetensors", "optimizer.safetensors", "delta.safetensors"):
        expected = (last_round(together) / file).read_bytes()
        assert (last_round(tmp_path) / file).read_bytes() == expected


def step_after(client: Program) -> int:
    return int(client.says(r"round_resumed round=2 after_step=(\d+)").group(1))
