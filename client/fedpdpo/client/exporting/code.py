"""The code that goes beside a form's weights, for transformers to run with trust_remote_code."""

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fedpdpo.common.errors import BadModel, BadState

#: The key by which a configuration names code for transformers to run.
_AUTO_MAP = "auto_map"


@dataclass(frozen=True)
class Code:
    """A module of this package, the class that it adds, and the one that it derives from.

    `auto` is the class of transformers by which it is loaded.
    """

    module: str
    kind: str
    base: str
    auto: str

    @property
    def auto_map(self) -> dict[str, str]:
        """How a configuration names it."""
        return {self.auto: f"{self.module}.{self.kind}"}

    def text(self, base: str) -> str:
        """The module's text with another class to derive from."""
        own = resources.files(__package__).joinpath(f"{self.module}.py").read_text("utf-8")
        return own.replace(self.base, base)

    def add_to(self, folder: Path, base: str) -> None:
        """Put the code into a saved model, and tell its configuration.

        Raises BadModel where transformers does not have the class to derive from.
        """
        import transformers

        if not hasattr(transformers, base):
            raise BadModel(f"{base} is not a class of transformers; this form cannot be written")
        (folder / f"{self.module}.py").write_bytes(self.text(base).encode())
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config |= {"architectures": [self.kind], _AUTO_MAP: self.auto_map}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has this code, which its configuration names, and no other.

        Raises BadState where the code is not what is written here, or other code is named.
        """
        path = folder / f"{self.module}.py"
        has = path.exists()
        if has:
            found = path.read_bytes()
            told = re.search(rb"^from transformers import (\w+) as Base$", found, re.MULTILINE)
            if told is None or found != self.text(told.group(1).decode()).encode():
                raise BadState(f"{path} is not what this version writes; export the model again")
        for one in _configurations(folder):
            own = [self.auto_map] if has and one.name == "config.json" else []
            if _auto_maps(one) != own:
                raise BadState(f"{one} names code that this version does not write beside it")
        return has


def forget_code(folder: Path) -> None:
    """Let a saved model's configurations name no code: none of the backbone's is in the folder."""
    for path in _configurations(folder):
        if _auto_maps(path):
            told = json.loads(path.read_text(encoding="utf-8"), object_hook=_without_code)
            path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _configurations(folder: Path) -> list[Path]:
    """All files from which transformers would take an auto_map."""
    return sorted(folder.glob("*config*.json"))


def _auto_maps(path: Path) -> list[Any]:
    """Each auto_map of a configuration, those of its inner parts too. Raises BadState."""
    found = []

    def look(part: dict[str, Any]) -> dict[str, Any]:
        if _AUTO_MAP in part:
            found.append(part[_AUTO_MAP])
        return part

    try:
        json.loads(path.read_text(encoding="utf-8"), object_hook=look)
    except (OSError, ValueError, RecursionError) as error:
        raise BadState(f"{path} is damaged: {error}") from error
    return found


def _without_code(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != _AUTO_MAP}


MODEL = Code("remote_model", "PersonalModel", "LlamaForCausalLM", "AutoModelForCausalLM")
REWARD = Code(
    "remote_reward", "RewardModel", "LlamaPreTrainedModel", "AutoModelForSequenceClassification"
)
