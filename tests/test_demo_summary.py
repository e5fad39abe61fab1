"""What the demo tells of its run."""

from pathlib import Path

import pytest

from fedpdpo.common.metrics import Metrics
from summary import show, summarize
from world import World

METRICS = Metrics(0.75, 0.5, 0.75, 0.1, 0.6, 0.0)
VIEWS = {"VIEW_GLOBAL": METRICS, "VIEW_PERSONALIZED": METRICS}


def test_a_client_that_missed_an_adapter_is_told_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path / "server", min_clients=1, rounds=1)
    world.join("ada")
    world.intake.evaluation("ada", version=0, num_pairs=4, views=VIEWS)
    world.settle()
    world.join("bea")
    world.push("ada", 1, 1.0)
    world.settle()
    for name in ("ada", "bea"):
        world.intake.evaluation(name, version=1, num_pairs=4, views=VIEWS)
    world.store.close()
    told = summarize(tmp_path, wall_s=1.0)
    assert told["clients"]["bea"]["accuracy_by_round"] == [None, 0.75]
    assert told["mean_accuracy_after"] == 0.75
    show(told, tmp_path)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().err.splitlines()]
    assert ["bea", "4", "-", "75.0", "75.0", "50.0", "75.0"] in lines
