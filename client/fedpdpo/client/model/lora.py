"""The shared LoRA adapter: put in by PEFT, taken out and set by name.

`SharedState` is what may leave the client: it holds the tensors of the layout and no other, and the
link sends no file that holds anything else. What stays is `fedpdpo.client.state.PrivateState`.
"""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedpdpo.common.errors import BadModel, BadPayload, BadState
from fedpdpo.common.header import Contents
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.run import LoraSettings
from fedpdpo.common.tensorfile import check_file


def with_lora(model: Any, settings: LoraSettings) -> Any:
    """Wrap a causal model with PEFT LoRA, whose matrices are float32 and the only trainable part.

    Raises BadModel where no layer of the settings is there.
    """
    from peft import get_peft_model

    num_layers = model.config.get_text_config().num_hidden_layers
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, peft_config(settings, num_layers=num_layers))
    except ValueError as error:
        raise BadModel(f"cannot put LoRA into the model: {error}") from error


def peft_config(settings: LoraSettings, *, num_layers: int) -> Any:
    """The PEFT configuration of the settings for a backbone of so many layers."""
    from peft import LoraConfig

    only = None
    if settings.last_layers:
        only = list(range(max(0, num_layers - settings.last_layers), num_layers))
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(settings.target_modules),
        layers_to_transform=only,
        task_type="CAUSAL_LM",
    )


def _matrices(peft_model: Any) -> dict[str, Tensor]:
    found = {}
    for name, parameter in peft_model.named_parameters():
        short = name.replace(".default.", ".")
        if short.endswith((".lora_A.weight", ".lora_B.weight")):
            found[short] = parameter
    return dict(sorted(found.items()))


def lora_parameters(peft_model: Any) -> list[Tensor]:
    """The LoRA matrices themselves, in the order of their names."""
    return list(_matrices(peft_model).values())


def layout_of(peft_model: Any) -> LoraLayout:
    """The layout of a model's LoRA matrices, named as in a PEFT adapter file."""
    return LoraLayout(
        tuple((name, tuple(matrix.shape)) for name, matrix in _matrices(peft_model).items())
    )


@dataclass(frozen=True)
class SharedState:
    """LoRA matrices by name, float32, on the CPU: an adapter, or the difference of two.

    Raises BadPayload for tensors that are not exactly the layout's.
    """

    tensors: Mapping[str, Tensor]
    layout: LoraLayout

    def __post_init__(self) -> None:
        shapes = tuple((name, tuple(t.shape)) for name, t in sorted(self.tensors.items()))
        if shapes != self.layout.shapes:
            raise BadPayload("these tensors are not those of the LoRA layout")

    @classmethod
    def of(cls, peft_model: Any) -> "SharedState":
        """A copy of a model's LoRA matrices."""
        copies = {
            name: matrix.detach().to("cpu", torch.float32).clone()
            for name, matrix in _matrices(peft_model).items()
        }
        return cls(copies, layout_of(peft_model))

    @classmethod
    def read(cls, path: Path, layout: LoraLayout) -> "SharedState":
        """Read a file on this disk, after checking it against the layout.

        Raises BadState, naming the file, where it is missing, damaged or of another layout.
        """
        try:
            check_file(path, Contents.of(layout))
            return cls(load_file(path), layout)
        except (OSError, BadPayload) as error:
            raise BadState(f"{path} is damaged or missing: {error}") from error

    def write(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file(dict(self.tensors), path)

    def put_into(self, peft_model: Any) -> None:
        """Set a model's LoRA matrices."""
        with torch.no_grad():
            for name, matrix in _matrices(peft_model).items():
                matrix.copy_(self.tensors[name])

    def digest(self) -> str:
        """SHA-256 over names and values, in the order of the names."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            found.update(name.encode())
            found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()

    def minus(self, other: "SharedState") -> "SharedState":
        """The delta from another state to this one."""
        difference = {name: tensor - other.tensors[name] for name, tensor in self.tensors.items()}
        return SharedState(difference, self.layout)
