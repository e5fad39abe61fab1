"""Several processes train as one client, by gloo on the CPU."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from processes import stage
from tiny import save_tiny_model, write_preferences

pytestmark = pytest.mark.system

METHOD = ("--rounds", 2, "--method.batch-pairs", 5, "--lora.layers", "last-2", "--lora.rank", 4)


def test_processes_that_are_launched_together_train_as_one_client_does(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    data = write_preferences(tmp_path / "data.jsonl", seed=3, num=40, taste="warm")
    launcher = ("torchrun", "--standalone", "--nproc_per_node", 2)
    private = {}
    deltas = {}
    for name, command in (("alone", ()), ("two", launcher)):
        with stage(tmp_path / name) as on:
            server, port = on.server("--model", model, "--min-clients", 1, *METHOD)
            client = on.client("ada", port, data, "--device", "cpu", launched_by=command)
            assert client.ends() == 0, client.output
            assert server.ends() == 0, server.output
            if command:
                assert client.output.count("backbone model=") == 2
                assert client.output.count("trained round=2") == 1
        round_2 = tmp_path / name / "ada/rounds/round-00002"
        private[name] = load_file(round_2 / "private.safetensors")
        deltas[name] = load_file(round_2 / "delta.safetensors")
    for found in (private, deltas):
        for name, expected in found["alone"].items():
            assert np.linalg.norm(found["two"][name] - expected) <= 1e-3 * np.linalg.norm(expected)
