"""A tiny random model, a byte tokenizer and preferences that can be learnt, for quick tests."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fedpdpo.client.data.preferences import Preference
from fedpdpo.client.data.tokens import PairTokens, pair_tokens
from fedpdpo.client.model.backbone import Backbone, load_backbone
from fedpdpo.client.model.policy import Policy
from fedpdpo.client.training.pairset import PairSet, keep_trunk, prepare
from fedpdpo.client.training.reference import ReferenceCache
from fedpdpo.client.training.trunk import TrunkCache
from fedpdpo.common.run import LoraSettings, MethodSettings, Run

SPECIAL = ("<pad>", "<eos>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WARM = ("lovely", "great", "bright", "warm")
HARSH = ("awful", "poor", "grim", "cold")
CPU = torch.device("cpu")


def tiny_tokenizer(*, chat: bool = True) -> Any:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def save_tiny_model(folder: Path, *, seed: int = 0, family: str = "llama", **config: Any) -> Path:
    """A random model of a family that transformers knows, with its tokenizer, in a folder."""
    tokenizer = tiny_tokenizer()
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(size | config)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_records(*, seed: int, num: int, taste: str, opening: str = "the film is") -> list[Any]:
    """Preferences for warm or harsh words, which a reward head learns from the last letters."""
    draw = random.Random(seed)
    chosen, rejected = (WARM, HARSH) if taste == "warm" else (HARSH, WARM)
    return [
        {
            "prompt": f"{opening} {draw.randrange(10_000)}",
            "chosen": f" {draw.choice(chosen)}",
            "rejected": f" {draw.choice(rejected)}",
        }
        for _ in range(num)
    ]


def write_preferences(
    path: Path, *, seed: int, num: int, taste: str, opening: str = "the film is"
) -> Path:
    """The same as a JSON Lines file."""
    records = tiny_records(seed=seed, num=num, taste=taste, opening=opening)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def tiny_run(*, last_layers: int = 2, **method: Any) -> Run:
    """A run with a small LoRA and learning rates for so small a model."""
    rates = {"lora_lr": 1e-2, "head_lr": 1e-3, "bottleneck_lr": 1e-2, "reward_lr": 5e-2}
    settings = MethodSettings(**(rates | {"bottleneck": 8, "head": "full"} | method))
    lora = LoraSettings(rank=4, layers=f"last-{last_layers}" if last_layers else "all")
    return Run(run_id="0" * 32, model="tiny", lora=lora, method=settings, num_rounds=3, seed=0)


def tiny_backbone(folder: Path, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a tiny model."""
    torch.set_num_threads(1)
    return load_backbone(str(folder), device=CPU, dtype=dtype)


def tiny_policy(
    folder: Path, run: Run, *, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Policy:
    """A policy whose LoRA matrices are set to known values, so that LoRA does something."""
    policy = Policy(tiny_backbone(folder, dtype=dtype), run, private_seed=seed)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for matrix in policy.lora():
            matrix.copy_(0.1 * torch.randn(matrix.shape, generator=generator))
    return policy


def tiny_pairs(*, seed: int = 0, num: int = 12, taste: str = "warm") -> list[PairTokens]:
    """Tokenized preferences of different lengths."""
    tokenizer = tiny_tokenizer()
    records = tiny_records(seed=seed, num=num, taste=taste)
    for number, record in enumerate(records):
        record["prompt"] += " and" * (number % 4)
        record["chosen"] += " indeed" * (number % 3)
    return [pair_tokens(Preference(**one), tokenizer, max_tokens=256) for one in records]


def tiny_pairset(
    policy: Policy,
    pairs: list[PairTokens],
    folder: Path,
    *,
    tokens_per_step: int = 256,
    trunk_budget_bytes: int = 2**20,
    key: str = "key",
) -> PairSet:
    """Prepare pairs with their files in a folder."""
    trunk = None
    if policy.has_trunk:
        trunk = TrunkCache(
            folder / f"trunk-{key}",
            key=key,
            hidden=policy.hidden_size,
            dtype=policy.dtype,
        )
        keep_trunk(
            policy,
            pairs,
            trunk,
            tokens_per_step=tokens_per_step,
            budget_bytes=trunk_budget_bytes,
            advance=lambda _: None,
        )
    reference = ReferenceCache(folder / f"reference-{key}.safetensors", key=key)
    return prepare(policy, pairs, tokens_per_step=tokens_per_step, reference=reference, trunk=trunk)
