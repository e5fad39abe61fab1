"""The forms: what each writes into a folder from a loaded personal model.

Shapes: H hidden size, V vocabulary, M bottleneck width, R head rank. Weights are float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fedpdpo.client.exporting.code import MODEL, REWARD
from fedpdpo.client.exporting.remote_model import PersonalHead
from fedpdpo.client.model.backbone import Backbone
from fedpdpo.client.model.lora import SharedState, peft_config
from fedpdpo.client.model.policy import Policy
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.run import Run


@dataclass(frozen=True)
class Personal:
    """A personal model that is loaded on the CPU, in float32; writing it may use it up."""

    policy: Policy
    backbone: Backbone
    run: Run

    @property
    def head(self) -> Tensor:
        """The private head's weight (V, H), a low-rank addition put in."""
        head = self.policy.private.head
        low = 0.0 if head.a is None or head.b is None else head.b @ head.a
        return (head.weight + low).detach()

    def merged(self) -> Any:
        """The causal model with LoRA in its weights."""
        self.policy.decoder.restore()
        return self.policy.peft_model.merge_and_unload()


def write_peft(personal: Personal, folder: Path) -> None:
    """A PEFT adapter of LoRA and the private head.

    A low-rank head is LoRA on the output layer, a full one a module to save. Raises BadSettings
    where there is a bottleneck, which PEFT has no place for.
    """
    if personal.policy.private.bottleneck is not None:
        raise BadSettings(
            "a bottleneck adapter has no place in a PEFT adapter; --form model holds all (a run "
            "with --method.bottleneck 0 has none)"
        )
    name = _output_name(personal.backbone.model)
    layers = personal.backbone.model.config.get_text_config().num_hidden_layers
    config = peft_config(personal.run.lora, num_layers=layers)
    tensors = dict(SharedState.of(personal.policy.peft_model).tensors)
    head = personal.policy.private.head
    if head.a is not None and head.b is not None:
        config.target_modules = [*personal.run.lora.target_modules, name]
        if config.layers_to_transform is not None:
            config.layers_to_transform = None
            config.target_modules = [*_modules_of(tensors), name]
        config.rank_pattern = {name: head.a.shape[0]}
        config.alpha_pattern = {name: head.a.shape[0]}
        tensors[f"base_model.model.{name}.lora_A.weight"] = head.a.detach()
        tensors[f"base_model.model.{name}.lora_B.weight"] = head.b.detach()
    elif head.weight.requires_grad:
        config.modules_to_save = [name]
        tensors[f"base_model.model.{name}.weight"] = head.weight.detach()
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file({key: one.contiguous() for key, one in tensors.items()},
              folder / "adapter_model.safetensors")  # fmt: skip


def write_model(personal: Personal, folder: Path) -> None:
    """The whole model, as AutoModelForCausalLM loads it; with a bottleneck by remote code.

    Raises BadModel where transformers does not have the model's class.
    """
    weight, bottleneck = personal.head, personal.policy.private.bottleneck
    model = personal.merged()
    vocabulary, hidden = weight.shape
    if bottleneck is None:
        head: nn.Linear = nn.Linear(hidden, vocabulary, bias=False)
    else:
        width = bottleneck.down.shape[0]
        head = PersonalHead(hidden, vocabulary, width)
        head.down, head.up = bottleneck.down, bottleneck.up
        model.config.personal_bottleneck = width
    head.weight = nn.Parameter(weight)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)
    model.save_pretrained(folder)
    personal.backbone.tokenizer.save_pretrained(folder)
    if bottleneck is not None:
        MODEL.add_to(folder, type(model).__name__)


def write_reward(personal: Personal, folder: Path) -> None:
    """The explicit reward, as AutoModelForSequenceClassification loads it, by remote code.

    Raises BadSettings where the run has no reward head, BadModel where transformers does not have
    the model's class.
    """
    private = personal.policy.private
    if private.reward is None:
        raise BadSettings("the run has no reward head (--no-method.reward-head)")
    model = personal.merged()
    base = model.base_model_prefix
    hidden = private.reward.v.shape[0]
    down, up = torch.zeros(0, hidden), torch.zeros(hidden, 0)
    if private.bottleneck is not None:
        down, up = private.bottleneck.down.detach(), private.bottleneck.up.detach()
    tensors = {f"{base}.{name}": one for name, one in getattr(model, base).state_dict().items()}
    tensors |= {"down": down, "up": up, "v": private.reward.v.detach()}
    model.config.personal_bottleneck, model.config.num_labels = down.shape[0], 1
    model.config.save_pretrained(folder)
    save_file({key: one.contiguous() for key, one in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    personal.backbone.tokenizer.save_pretrained(folder)
    REWARD.add_to(folder, _pretrained(model))


_MODEL_USAGE = """\
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("{folder}", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("{folder}")

    fedpdpo serve --model-dir {folder}          # an OpenAI-compatible server

Where there is a `remote_model.py` in the folder, a tool that loads it has to run that. Keep it
private: it was learnt from private preferences.
"""
_REWARD_USAGE = """\
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    model = AutoModelForSequenceClassification.from_pretrained("{folder}", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained("{folder}")
    model.score(tokenizer, "How was the film?", [" A delight.", " A bore."])

A prompt is text, or a list of chat messages. Keep the folder private: it was learnt from private
preferences.
"""
_PEFT_USAGE = """\
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{model}"), "{folder}")

PEFT may warn that the output layer is tied to the embeddings: the adapter is of the output alone.
Keep it private: it was learnt from private preferences.
"""


@dataclass(frozen=True)
class Form:
    """What an export may be, how it is written and used."""

    what: str
    write: Callable[[Personal, Path], None]
    usage: str


FORMS = {
    "peft": Form("A PEFT adapter of shared LoRA and private head", write_peft, _PEFT_USAGE),
    "model": Form("A personal model for transformers", write_model, _MODEL_USAGE),
    "reward": Form("The explicit reward as a sequence classifier", write_reward, _REWARD_USAGE),
}


def _output_name(model: Any) -> str:
    head = model.get_output_embeddings()
    return str(next(name for name, one in model.named_modules() if one is head))


def _modules_of(tensors: dict[str, Tensor]) -> list[str]:
    """The full names of the layers that LoRA matrices belong to."""
    begin, end = len("base_model.model."), -len(".lora_A.weight")
    return [name[begin:end] for name in tensors if name.endswith(".lora_A.weight")]


def _pretrained(model: Any) -> str:
    """The class that all models of a family derive from."""
    names = [str(kind.__name__) for kind in type(model).__mro__]
    return str(next(name for name in names if name.endswith("PreTrainedModel")))
