"""Loads the frozen backbone and its tokenizer, and takes their fingerprints."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedpdpo.common.errors import BadModel


@dataclass(frozen=True)
class Backbone:
    """A frozen causal language model and its tokenizer, both as transformers gives them."""

    model: Any
    tokenizer: Any
    fingerprint: str
    tokenizer_fingerprint: str


def load_backbone(name: str, *, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Load a Hugging Face id, a local directory or a GGUF file, frozen, in evaluation mode.

    Raises BadModel where it cannot be found or read, or its head is of a kind that the private
    head cannot stand in for.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    where, extra = _where(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **extra)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **extra)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadModel(
            f"cannot load the model {name}: {reason} "
            "(give a Hugging Face id, a folder saved by save_pretrained, or a GGUF file by --model)"
        ) from error
    _refuse_unknown_heads(model, name)
    model.requires_grad_(False).eval().to(device)
    return Backbone(model, tokenizer, fingerprint(model), tokenizer_fingerprint(tokenizer))


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
