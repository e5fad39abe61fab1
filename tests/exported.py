"""A client that has trained, and what `fedpdpo export` makes of its state directory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedpdpo.client.model.policy import Policy
from fedpdpo.client.tool.command import main
from left import left_by
from tiny import save_tiny_model, tiny_run


class Left:
    """A trained policy, and the state directory that its client left.

    `model` is where its backbone lies; without it a tiny one is made.
    """

    def __init__(
        self, folder: Path, *, family: str = "llama", model: Path | None = None, **method: Any
    ) -> None:
        folder.mkdir()
        self.model = model or save_tiny_model(folder / "backbone", family=family)
        self.folder = folder
        self.run = tiny_run(**method)
        self.policy = left_by(self.model, folder / "state", self.run)

    def exported(self, form: str, *more: str) -> Path:
        out = self.folder / "-".join((form, *more))
        state, model = str(self.folder / "state"), str(self.model)
        assert main(["export", "--state-dir", state, "--out", str(out), "--form", form,
                     "--model", model, *more]) == 0  # fmt: skip
        return out


def own_logits(policy: Policy, ids: Tensor) -> Tensor:
    with torch.no_grad():
        z = policy.private.features(policy.decoder.alone(ids))
        logits: Tensor = policy.private.head(z)
    return logits
