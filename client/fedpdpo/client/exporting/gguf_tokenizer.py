"""A tokenizer as a GGUF file's metadata: byte-level BPE that splits text as llama.cpp can.

V is the model's vocabulary, which may have rows that the tokenizer has no token for.
"""

import json
from typing import Any

from gguf import GGUFWriter, TokenType

from fedpdpo.common.errors import BadModel

_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_BYTES = _WORDS | {"use_regex": False}
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")


def _at(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


#: llama.cpp's name of each way to split a text into words, as transformers writes it, and whether a
#: word that is a token is taken as it stands.
SPLITS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": ([_WORDS], False),
    "smollm": ([{"type": "Digits", "individual_digits": True}, _WORDS], False),
    "llama-bpe": ([_at(_LLAMA3), _BYTES], True),
    "qwen2": ([_at(_QWEN2), _BYTES], False),
}


def unwritable(reason: str) -> BadModel:
    """The error for a model that does not become a GGUF file here, with what else to do."""
    return BadModel(
        f"{reason}; no GGUF file is written of it here: take --form merged, and llama.cpp's "
        "convert_hf_to_gguf.py on that folder"
    )


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, *, num_tokens: int) -> None:
    """Add the tokens, merges, special tokens and chat template for a model of V = `num_tokens`.

    Raises BadModel where llama.cpp would make other tokens of a text. One exception passes, as in
    llama.cpp's own converter: it does not compose characters (Unicode's NFC) as Qwen's does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_of(told))
    tokens, types = _tokens(told, num_tokens)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in told["model"]["merges"]])
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None and number < num_tokens:
            getattr(writer, f"add_{kind}_token_id")(number)
    bos, eos = _added_around(tokenizer)
    writer.add_add_bos_token(bos)
    writer.add_add_eos_token(eos)
    writer.add_add_space_prefix(False)
    template = tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if template:
        writer.add_chat_template(template)


def _split_of(told: dict[str, Any]) -> str:
    """llama.cpp's name of how the tokenizer splits a text."""
    model, first = told["model"], told.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", [first])
    steps = [{key: one for key, one in step.items() if key != "trim_offsets"} for step in steps]
    found = (steps, bool(model.get("ignore_merges")))
    name = next((name for name, split in SPLITS.items() if split == found), None)
    plain = model.get("type") == "BPE" and not model.get("byte_fallback") and model.get("merges")
    if name is None or not plain:
        raise unwritable(f"the tokenizer is no byte-level BPE of the kinds {', '.join(SPLITS)}")
    normal = told.get("normalizer")
    if normal is not None and (name, normal) != ("qwen2", {"type": "NFC"}):
        raise unwritable(f"the tokenizer changes texts first ({normal['type']})")
    return name


def _tokens(told: dict[str, Any], num_tokens: int) -> tuple[list[str], list[TokenType]]:
    """The V tokens and their types; added tokens that the model has no row for are left out."""
    tokens = [f"[PAD{number}]" for number in range(num_tokens)]
    types = [TokenType.UNUSED] * num_tokens
    added = {one["content"]: one for one in told["added_tokens"] if one["id"] < num_tokens}
    numbers = told["model"]["vocab"] | {name: one["id"] for name, one in added.items()}
    if max(numbers.values()) >= num_tokens:
        raise unwritable(f"the tokenizer has more tokens than the model's {num_tokens}")
    for token, number in numbers.items():
        one = added.get(token)
        if one and (one["lstrip"] or one["rstrip"] or one["single_word"]):
            raise unwritable(f"the added token {token} takes its surroundings into account")
        special = TokenType.CONTROL if one and one["special"] else TokenType.USER_DEFINED
        tokens[number], types[number] = token, special if one else TokenType.NORMAL
    return tokens, types


def _added_around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets a token before it and one behind it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    found = tokenizer("a")["input_ids"]
    for bos in (False, True):
        for eos in (False, True):
            first, last = [tokenizer.bos_token_id] * bos, [tokenizer.eos_token_id] * eos
            if found == first + bare + last:
                return bos, eos
    raise unwritable("the tokenizer puts more around a text than its first and last token")
