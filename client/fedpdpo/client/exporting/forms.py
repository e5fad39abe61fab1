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

from fedpdpo.client.exporting.code import MODEL, REWARD, forget_code
from fedpdpo.client.exporting.gguf_model import GgufType, write_file
from fedpdpo.client.exporting.remote_model import PersonalHead
from fedpdpo.client.exporting.usage import (
    GGUF_USAGE,
    MERGED_USAGE,
    MODEL_USAGE,
    PEFT_USAGE,
    REWARD_USAGE,
)
from fedpdpo.client.model.backbone import Backbone
from fedpdpo.client.model.lora import SharedState, peft_config
from fedpdpo.client.model.policy import Policy
from fedpdpo.common.errors import BadSettings
from fedpdpo.common.run import Run


@dataclass(frozen=True)
class Personal:
    """A personal model that is loaded on the CPU, in float32; writing it may use it up.

    `gguf_type` is how a GGUF file of it keeps matrices.
    """

    policy: Policy
    backbone: Backbone
    run: Run
    gguf_type: GgufType = "f32"

    @property
    def head(self) -> Tensor:
        """The private head's weight (V, H), a low-rank addition put in."""
        head = self.policy.private.head
        low = 0.0 if head.a is None or head.b is None else head.b @ head.a
        return (head.weight + low).detach()

    def merged(self) -> Any:
        """The causal model with LoRA in its weights."""
        self.policy.decoder.restore()
        model = self.policy.peft_model.merge_and_unload()
        if hasattr(model.config, "quantization_config"):
            # Of a GGUF file that was widened: these weights are plain ones by now.
            del model.config.quantization_config
            model.hf_quantizer = None
        return model

    def plain(self) -> Any:
        """The causal model with LoRA in its weights and the private head as its output layer.

        The head stays tied to the embeddings where it still equals them. Raises BadSettings where
        there is a bottleneck.
        """
        self.refuse_bottleneck("plain weights")
        weight, model = self.head, self.merged()
        output = model.get_output_embeddings()
        if not torch.equal(weight, output.weight):
            output.weight = nn.Parameter(weight)
            model.config.tie_word_embeddings = False
        return model

    def refuse_bottleneck(self, form: str) -> None:
        """Raises BadSettings where there is a bottleneck, which the form has no place for."""
        if self.policy.private.bottleneck is not None:
            raise BadSettings(
                f"a bottleneck adapter has no place in {form}; --form model holds all (a run with "
                "--method.bottleneck 0 has none)"
            )


def write_peft(personal: Personal, folder: Path) -> None:
    """A PEFT adapter of LoRA and the private head.

    A low-rank head is LoRA on the output layer, a full one a module to save. Raises BadSettings
    where there is a bottleneck, which PEFT has no place for.
    """
    personal.refuse_bottleneck("a PEFT adapter")
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
    elif head.kind == "full":
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
    _save_tokenizer(personal, folder)
    if bottleneck is not None:
        MODEL.add_to(folder, type(model).__name__)


def write_merged(personal: Personal, folder: Path) -> None:
    """Plain weights, as AutoModelForCausalLM loads them without remote code.

    Raises BadSettings where there is a bottleneck.
    """
    personal.plain().save_pretrained(folder)
    _save_tokenizer(personal, folder)


def write_gguf(personal: Personal, folder: Path) -> None:
    """The same in one file for llama.cpp, model.gguf.

    Raises BadSettings where there is a bottleneck, BadModel for a backbone or tokenizer that is not
    written as GGUF.
    """
    tokenizer = personal.backbone.tokenizer
    write_file(personal.plain(), tokenizer, folder / "model.gguf", personal.gguf_type)


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
    _save_tokenizer(personal, folder)
    REWARD.add_to(folder, _pretrained(model))


@dataclass(frozen=True)
class Form:
    """What an export may be, how it is written and used."""

    what: str
    write: Callable[[Personal, Path], None]
    usage: str


FORMS = {
    "peft": Form("A PEFT adapter of shared LoRA and private head", write_peft, PEFT_USAGE),
    "model": Form("A personal model for transformers", write_model, MODEL_USAGE),
    "merged": Form("A personal model as plain weights", write_merged, MERGED_USAGE),
    "gguf": Form("A personal model for llama.cpp", write_gguf, GGUF_USAGE),
    "reward": Form("The explicit reward as a sequence classifier", write_reward, REWARD_USAGE),
}


def _save_tokenizer(personal: Personal, folder: Path) -> None:
    """Put it beside the model that was saved, and forget what code both were published with."""
    personal.backbone.tokenizer.save_pretrained(folder)
    forget_code(folder)


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
