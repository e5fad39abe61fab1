"""What a client tells TensorBoard, MLflow and Weights & Biases, without a network."""

from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from fedpdpo.client import tracking
from fedpdpo.client.meters import Meters
from fedpdpo.client.outcome import TrainingReport
from fedpdpo.client.tracking import Tracking
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.metrics import Metrics
from processes import until
from tiny import tiny_run


def told(folder: Path, *names: str) -> None:
    """A run of two rounds, as a client's meters tell it."""
    meters, track = Meters(), Tracking(names, folder, run=tiny_run(), client_id="ada")
    meters.log = track.log
    for number in (1, 2):
        meters.trained(number, TrainingReport(0.7 - 0.1 * number, 0.6, 3, 1.5))
        measured = Metrics(0.5, 0.5, 0.5 + 0.1 * number, 0.1, 0.6, -0.02)
        meters.measured(number, {"VIEW_GLOBAL": measured, "VIEW_PERSONALIZED": measured})
    track.close()


def test_tensorboard_has_each_number_at_its_round(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "fedpdpo-ada"))
    events.Reload()
    losses = events.Scalars("training/loss")
    assert [one.step for one in losses] == [1, 2]
    assert [one.value for one in losses] == pytest.approx([0.6, 0.5])
    found = events.Scalars("personalized/combined_accuracy")
    assert [one.value for one in found] == pytest.approx([0.6, 0.7])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*noload:sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_has_numbers_and_settings_in_a_database_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    told(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("fedpdpo-ada")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["beta"] == str(tiny_run().method.beta)
    assert run.data.metrics["personalized/combined_accuracy"] == pytest.approx(0.7)
    history = client.get_metric_history(run.info.run_id, "training/loss")
    assert [one.step for one in history] == [1, 2]
    assert [one.value for one in history] == pytest.approx([0.6, 0.5])


def test_weights_and_biases_keeps_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    told(tmp_path, "wandb")
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for name in (b"training/loss", b"personalized/combined_accuracy"):
        until(lambda name=name: name in kept.read_bytes(), f"{name!r} in {kept}")  # type: ignore[misc]


def test_a_tool_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "filter_trackers", lambda _names, _folder: [])
    with pytest.raises(BadSettings, match=r"--track wandb needs the package wandb.*\[track\]"):
        Tracking(("wandb",), tmp_path, run=tiny_run(), client_id="ada")


def test_a_tool_that_fails_is_logged_and_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("the tracking server is away")

    track = Tracking(("tensorboard",), tmp_path, run=tiny_run(), client_id="ada")
    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["tensorboard"], "log", away)
    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["tensorboard"], "finish", away)
    track.log({"training/loss": 0.5}, 1)
    track.close()
    assert caplog.text.count("not_tracked tool=tensorboard") == 2
    assert "the tracking server is away" in caplog.text
