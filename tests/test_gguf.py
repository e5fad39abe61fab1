"""The personal model as a GGUF file: transformers' reader gives the client's own numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from exported import Left, own_logits
from fedpdpo.client.exporting.gguf_tokenizer import SPLITS
from fedpdpo.client.tool.command import main
from tiny import save_tiny_model, tiny_pairs, tiny_tokenizer

#: Merges that cross the border of two words of some way to split, behind those that do not.
MERGES = [
    ("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("12", "3"), ("123", "4"), ("Ġ", "1"),
    ("e", "1"), ("'", "t"), ("n", "'t"), ("'", "T"), ("Ġ", "Ġ"), ("ĠĠ", "t"), ("Ċ", "Ċ"),
    ("!", "Ċ"), ("Ġ", "Ċ"), (".", "t"), ("Ã", "©"), ("Ã©", "Ã©"), ("ĉ", "t"),
]  # fmt: skip
TEXTS = (
    "the  the   the",
    "don't DON'T n't",
    "e1 1234567 3.14 12,345",
    "été, über! 日本語 😀 naïve",
    "  \n\n\t the\r\n\n the!\n\n the ",
    "a\u00a0b\u3000c",
    "<|im_start|>user\nthe 12<|im_end|>\n<eos>",
    "x.the(y)!!\nthe",
    "",
)
PADDED = 300


def tokenizer_of(split: str, *, nfc: bool = False, bos: bool = False) -> Any:
    """The tiny tokenizer with merges and a way to split; the ids of its bytes stay."""
    tokenizer = tiny_tokenizer()
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = dict(told["model"]["vocab"])
    for first, second in MERGES:
        vocabulary.setdefault(first + second, len(vocabulary))
    steps, ignores = SPLITS[split]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES, ignore_merges=ignores))
    inner.pre_tokenizer = pre_tokenizers.Sequence([_step(one) for one in steps])
    if nfc:
        inner.normalizer = normalizers.NFC()
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 2)]
        )
    inner.decoder = tokenizer.backend_tokenizer.decoder
    return type(tokenizer)(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<|im_start|>",
        additional_special_tokens=["<|im_end|>"],
        chat_template=tokenizer.chat_template,
    )


def _step(told: dict[str, Any]) -> Any:
    if told["type"] == "Split":
        return pre_tokenizers.Split(Regex(told["pattern"]["Regex"]), "isolated")
    if told["type"] == "Digits":
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=told["use_regex"])


def backbone(folder: Path, tokenizer: Any, *, family: str = "llama", **config: Any) -> Path:
    """A tiny model whose vocabulary has rows without a token."""
    if family == "qwen3":
        config = {"head_dim": 128, **config}
    save_tiny_model(folder, family=family, vocab_size=PADDED, **config)
    tokenizer.save_pretrained(folder)
    return folder


def read(out: Path) -> tuple[Any, Any]:
    """Model and tokenizer as transformers reads them from the file, and from nothing else."""
    assert {one.name for one in out.iterdir()} == {"model.gguf", "README.md"}
    model = AutoModelForCausalLM.from_pretrained(out, gguf_file="model.gguf", dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(out, gguf_file="model.gguf")


def logits_of(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids[None]).logits[0]
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("head", ["lowrank", "full", "frozen"])
def test_the_file_gives_the_clients_own_logits(tmp_path: Path, family: str, head: str) -> None:
    model = backbone(tmp_path / "backbone", tokenizer_of("gpt-2"), family=family)
    left = Left(tmp_path / "left", model=model, head=head, bottleneck=0)
    ids = torch.tensor(tiny_pairs()[0].prompt)
    expected = own_logits(left.policy, ids)
    found, _ = read(left.exported("gguf"))
    torch.testing.assert_close(logits_of(found, ids), expected, rtol=1e-4, atol=1e-5)
    assert found.config.tie_word_embeddings == (head == "frozen")
    base = AutoModelForCausalLM.from_pretrained(model)
    assert (logits_of(base, ids) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2"])
@pytest.mark.parametrize("bos", [False, True])
def test_the_file_makes_the_same_tokens_of_texts(tmp_path: Path, split: str, bos: bool) -> None:
    own = tokenizer_of(split, bos=bos)
    model = backbone(tmp_path / "backbone", own)
    left = Left(tmp_path / "left", model=model, head="frozen", bottleneck=0)
    _, found = read(left.exported("gguf"))
    assert [found(text)["input_ids"] for text in TEXTS] == [
        own(text)["input_ids"] for text in TEXTS
    ]
    turns = [{"role": "user", "content": "the 12"}]
    assert found.apply_chat_template(turns) == own.apply_chat_template(turns)
    assert found.eos_token == own.eos_token


def test_the_ways_to_split_are_told_apart_by_these_texts() -> None:
    found = [tuple(tuple(tokenizer_of(split)(text)["input_ids"]) for text in TEXTS)
             for split in SPLITS]  # fmt: skip
    assert len(set(found)) == len(SPLITS)


def test_single_digits_are_told_to_llama_cpp(tmp_path: Path) -> None:
    own = tokenizer_of("smollm")
    model = backbone(tmp_path / "backbone", own)
    left = Left(tmp_path / "left", model=model, head="frozen", bottleneck=0)
    fields = GGUFReader(left.exported("gguf") / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    tokens, types = (fields[f"tokenizer.ggml.{one}"].contents() for one in ("tokens", "token_type"))
    assert {name: tokens.index(name) for name in own.get_vocab()} == own.get_vocab()
    assert [types[0], types[4], types[-1]] == [3, 1, 5]
    assert len(tokens) == PADDED


@pytest.mark.parametrize(("kept", "share", "close"), [("f16", 0.6, 2e-3), ("q8_0", 0.4, 3e-2)])
def test_smaller_files_give_nearly_the_same_logits(
    tmp_path: Path, kept: str, share: float, close: float
) -> None:
    model = backbone(tmp_path / "backbone", tokenizer_of("gpt-2"), hidden_size=128)
    left = Left(tmp_path / "left", model=model, head="full", bottleneck=0)
    ids = torch.tensor(tiny_pairs()[0].prompt)
    expected = own_logits(left.policy, ids)
    exact = left.exported("gguf")
    out = left.exported("gguf", "--gguf-type", kept)
    found, _ = read(out)
    off = (logits_of(found, ids) - expected).norm() / expected.norm()
    assert 1e-5 < off < close
    whole, small = ((one / "model.gguf").stat().st_size for one in (exact, out))
    assert small < share * whole


@pytest.mark.parametrize("form", ["gguf", "merged", "model"])
def test_a_backbone_that_is_a_gguf_file_itself_is_written(tmp_path: Path, form: str) -> None:
    first = backbone(tmp_path / "backbone", tokenizer_of("gpt-2"))
    earlier = Left(tmp_path / "earlier", model=first, bottleneck=0)
    file = earlier.exported("gguf", "--gguf-type", "q8_0") / "model.gguf"
    left = Left(tmp_path / "left", model=file, bottleneck=0)
    ids = torch.tensor(tiny_pairs()[0].prompt)
    expected = own_logits(left.policy, ids)
    out = left.exported(form)
    if form == "gguf":
        found, tokenizer = read(out)
        own = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        assert all(tokenizer(one)["input_ids"] == own(one)["input_ids"] for one in TEXTS)
    else:
        found = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits_of(found, ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "config", "nfc", "words"),
    [("mistral", {}, False, "the backbone is a mistral, not one of llama, qwen2, qwen3"),
     ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
      False, "rotary positions are scaled (linear)"),
     ("llama", {"attention_bias": True}, False, "a llama with biases"),
     ("llama", {"hidden_act": "gelu"}, False, "activation is gelu"),
     ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, False,
      "attends to a window"),
     ("llama", {}, True, "changes texts first (NFC)")],
    ids=lambda one: str(one)[:20],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, config: Any, nfc: bool,
    words: str,
) -> None:  # fmt: skip
    model = backbone(tmp_path / "backbone", tokenizer_of("gpt-2", nfc=nfc), family=family, **config)
    assert words in refused(Left(tmp_path / "left", model=model, bottleneck=0), capsys)


def test_a_tokenizer_that_llama_cpp_does_not_split_like_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Left(tmp_path / "left", bottleneck=0)
    assert "no byte-level BPE of the kinds gpt-2, smollm" in refused(left, capsys)


def refused(left: Left, capsys: pytest.CaptureFixture[str]) -> str:
    """What `fedpdpo export --form gguf` says when it writes nothing."""
    out = left.folder / "out"
    given = ["--state-dir", str(left.folder / "state"), "--model", str(left.model)]
    assert main(["export", *given, "--out", str(out), "--form", "gguf"]) == 1
    assert not out.exists()
    told = capsys.readouterr().err
    assert "take --form merged" in told
    return told


def test_the_type_of_a_gguf_file_is_of_that_form_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--state-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--form", "merged"]
    assert main(["export", *given, "--gguf-type", "q8_0"]) == 2
    assert "--gguf-type is of --form gguf alone" in capsys.readouterr().err
