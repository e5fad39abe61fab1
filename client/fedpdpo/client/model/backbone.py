"""Loads the frozen backbone and its tokenizer, and takes their fingerprints."""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedpdpo.client.model.products import prefer_onednn
from fedpdpo.common.errors import BadModel


@dataclass(frozen=True)
class Backbone:
    """A frozen causal language model and its tokenizer, both as transformers gives them."""

    model: Any
    tokenizer: Any
    fingerprint: str
    tokenizer_fingerprint: str


#: On a CPU with bfloat16 instructions bitsandbytes packs a layer's weight when it is first used
#: without gradients; such a layer passes no gradient back from then on.
_PACKS_FOR_INFERENCE = "support_avx512bf16_for_cpu"


def load_backbone(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Literal["none", "4bit"] = "none",
) -> Backbone:
    """Load a Hugging Face id, a local directory or a GGUF file, frozen, in evaluation mode.

    With `4bit` the linear layers but the head are kept as QLoRA's nf4 and computed in `dtype`; the
    fingerprint is that of the weights before. Raises BadModel where it cannot be found or read, or
    its head is of a kind that the private head cannot stand in for.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    where, extra = _where(name)
    if device.type == "cpu":
        prefer_onednn()
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **extra)
        _refuse_unknown_heads(model, name)
        weights = fingerprint(model)
        if quantize == "4bit":
            del model
            config = _four_bits(dtype)
            model = AutoModelForCausalLM.from_pretrained(
                where, dtype=dtype, quantization_config=config, device_map={"": device}, **extra
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadModel(
            f"cannot load the model {name}: {reason} "
            "(give a Hugging Face id, a folder saved by save_pretrained, or a GGUF file by --model)"
        ) from error
    model.requires_grad_(False).eval()
    if quantize == "none":
        model.to(device)
    for layer in model.modules():
        if hasattr(layer, _PACKS_FOR_INFERENCE):
            setattr(layer, _PACKS_FOR_INFERENCE, False)
    return Backbone(model, tokenizer, weights, tokenizer_fingerprint(tokenizer))


def _four_bits(dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise BadModel(
            "--quantize 4bit needs bitsandbytes; install this package with its extra [quantized]"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _where(name: str) -> tuple[str, dict[str, str]]:
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise BadModel(f"{name} is a file, but not a GGUF file; give the model's folder")
        return str(path.parent), {"gguf_file": path.name}
    return (str(path) if path.is_dir() else name), {}


def _refuse_unknown_heads(model: Any, name: str) -> None:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise BadModel(f"the LLM head of {name} is no plain linear layer without bias")
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(model.config, key, None) not in (None, 1, 1.0):
            raise BadModel(f"the LLM head of {name} changes its logits by {key}; not supported")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values rounded to bfloat16, in the order of the names.

    Rounding makes it the same whether the weights were stored and loaded in float32 or bfloat16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        bits = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(memoryview(bits.numpy()).cast("B"))
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 over vocabulary, special tokens and chat template."""
    content = [
        sorted(tokenizer.get_vocab().items()),
        sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items()),
        tokenizer.chat_template or "",
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu`, `cuda`, `cuda:1` or `mps` means here.

    Raises BadModel where the device is not there.
    """
    if name == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise BadModel(f"the device {name} cannot be used: {reason}; try --device auto") from error
    return device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The precision that `auto`, `float32` or `bfloat16` means on a device."""
    if name == "auto":
        low = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if low else torch.float32
    found: torch.dtype = getattr(torch, name)
    return found
