"""The code that goes beside a form's weights, for transformers to run with trust_remote_code."""

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fedpdpo.common.errors import BadModel, BadState


@dataclass(frozen=True)
class Code:
    """A module of this package, the class that it adds, and the one that it derives from.

    `auto` is the class of transformers by which it is loaded.
    """

    module: str
    kind: str
    base: str
    auto: str

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
        (folder / f"{self.module}.py").write_text(self.text(base), encoding="utf-8")
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        auto_map = {self.auto: f"{self.module}.{self.kind}"}
        config |= {"architectures": [self.kind], "auto_map": auto_map}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def is_in(self, folder: Path) -> bool:
        """Whether a folder has this code. Raises BadState where it is not what is written here."""
        path = folder / f"{self.module}.py"
        if not path.exists():
            return False
        found = path.read_text(encoding="utf-8")
        told = re.search(r"^from transformers import (\w+) as Base$", found, re.MULTILINE)
        if told is None or found != self.text(told.group(1)):
            raise BadState(f"{path} is not what this version writes; export the model again")
        return True


MODEL = Code("remote_model", "PersonalModel", "LlamaForCausalLM", "AutoModelForCausalLM")
REWARD = Code(
    "remote_reward", "RewardModel", "LlamaPreTrainedModel", "AutoModelForSequenceClassification"
)
