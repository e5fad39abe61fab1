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

Quantize = Literal["none", "4bit"]


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

#: A model's own logits may be off by so much, as a share: rounding in bfloat16 or 4 bits.
_MOST_OFF = 0.02

#: What changes a head's logits, and where it does not.
_NEUTRAL = {"final_logit_softcapping": None, "logit_scale": 1, "logits_scaling": 1}

#: What of a configuration changes what the same weights give.
_SHAPING = (
    "hidden_act", "hidden_activation", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_parameters",
    "partial_rotary_factor", "sliding_window", "layer_types", "attn_logit_softcapping",
    "query_pre_attn_scalar", "attention_multiplier", "embedding_multiplier",
    "residual_multiplier", "num_experts_per_tok", "norm_topk_prob",
)  # fmt: skip


def load_backbone(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize = "none",
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
    _refuse_changed_logits(model, name)
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
    config = model.config.get_text_config()
    for key, neutral in _NEUTRAL.items():
        if getattr(config, key, None) not in (None, neutral):
            raise BadModel(f"the LLM head of {name} changes its logits by {key}; not supported")


def _refuse_changed_logits(model: Any, name: str) -> None:
    """A model must give the logits that its head makes of its decoder's states, and no others."""
    head = model.get_output_embeddings()
    ids = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
    with torch.no_grad():
        states = model.get_decoder()(input_ids=ids, use_cache=False)[0]
        if states.shape[-1] != head.in_features:
            return  # these are no states of this head; Policy.check says so
        own = head(states).float()
        logits = model(input_ids=ids, use_cache=False).logits.float()
    off = float((logits - own).norm() / own.norm())
    if not off <= _MOST_OFF:
        raise BadModel(
            f"{name} changes the logits of its LLM head (by {100 * off:.3g} %); not supported"
        )


def fingerprint(model: Any) -> str:
    """SHA-256 over what a model computes with, in the order of the names.

    That is names, shapes and values rounded to bfloat16, which makes it the same whether the
    weights were stored and loaded in float32 or bfloat16; and what of the configuration changes
    the result, to four digits, since other formats keep it in float32.
    """
    digest = hashlib.sha256()
    config = model.config.get_text_config().to_dict()
    shaping = {key: _rounded(config[key]) for key in _SHAPING if config.get(key) is not None}
    digest.update(json.dumps(shaping, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        bits = tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
        digest.update(memoryview(bits.numpy()).cast("B"))
    return digest.hexdigest()


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4g}" if is_number else value


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
        low = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if low else torch.float32
    found: torch.dtype = getattr(torch, name)
    return found
