"""What a client measured, for the tools in which people compare runs.

By accelerate's trackers; each needs its package: tensorboard, mlflow, wandb (the extra `track` has
them all). All write below a folder, unless MLFLOW_TRACKING_URI or WANDB_DIR say otherwise; Weights
& Biases sends it on unless WANDB_MODE is offline.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, filter_trackers

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.log import fields
from fedpdpo.common.run import Run

log = logging.getLogger(__name__)


class Tracking:
    """Trackers by name, of one client in one run. Raises BadSettings where a package lacks."""

    def __init__(self, names: Sequence[str], folder: Path, *, run: Run, client_id: str) -> None:
        self._trackers: list[GeneralTracker] = []
        if not names:
            return
        PartialState()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.absolute()}/mlflow.db")
        os.environ.setdefault("WANDB_DIR", str(folder))
        for name in names:
            if not filter_trackers([name], str(folder)):
                raise BadSettings(
                    f"--track {name} needs the package {name}; install this package with its "
                    "extra [track]"
                )
            kind = LOGGER_TYPE_TO_CLASS[name]
            where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            self._trackers.append(kind(f"fedpdpo-{client_id}", **where))
        settings: dict[str, Any] = {"run": run.run_id, "model": run.model, "client": client_id}
        settings |= run.method.model_dump(mode="json")
        settings |= {f"lora_{key}": str(value) for key, value in run.lora}
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(settings)

    def log(self, values: dict[str, float], step: int) -> None:
        """Note numbers of a round or an adapter. A tool that fails does not end the training."""
        for tracker in self._trackers:
            try:
                tracker.log(values, step=step)
            except Exception as error:
                log.warning(fields("not_tracked", tool=tracker.name, step=step, reason=repr(error)))

    def close(self) -> None:
        """Let the tools finish."""
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:
                log.warning(fields("not_tracked", tool=tracker.name, reason=repr(error)))
