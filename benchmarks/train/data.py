"""The pairs of the benchmark as token ids: real text where it is there, else drawn at its lengths.

`long` are dialogues about harmlessness in the model's chat template, `short` sentences of film
reviews after one instruction, as text with the model's end token.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fedpdpo.client.data.preferences import Message, Preference
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.common.errors import BadData

Pair = list[list[int]]

#: The real data are these files of a folder, with fields prompt, chosen and rejected.
FILES = {"long": "harmless.train.jsonl", "short": "sentiment.train.jsonl"}
NUM_PAIRS = {"long": 32, "short": 64}
MAX_LONG_CHARACTERS = 1500
MAX_SHORT_TOKENS = 62
MAX_TOKENS = 2048

#: Synthetic tokens are drawn from here: in a BPE vocabulary low ids are frequent ones.
_FREQUENT = range(300, 5000)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Deciles, least to most, of a data set's token counts; prompts share an opening."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    opening: int


#: Of the real pairs, by SmolLM2's tokenizer.
LENGTHS = {
    "long": Lengths(
        prompt=(37, 42, 50, 78, 87, 94, 100, 109, 127, 166, 203),
        chosen=(3, 13, 14, 15, 19, 23, 29, 35, 52, 66, 87),
        rejected=(6, 10, 13, 17, 22, 29, 34, 41, 49, 68, 261),
        opening=24,
    ),
    "short": Lengths(
        prompt=(22, 22, 22, 22, 22, 22, 22, 22, 22, 23, 24),
        chosen=(5, 7, 10, 11, 14, 15, 18, 19, 21, 25, 30),
        rejected=(7, 10, 10, 11, 13, 14, 15, 17, 19, 21, 30),
        opening=12,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """The pairs by name, and what they are."""

    pairs: dict[str, list[Pair]]
    source: str


def get_data(folder: Path, model: Path) -> Data:
    """Real pairs of a folder that holds FILES, in the tokens of a model's folder; else synthetic.

    Raises BadData where the pairs are too few.
    """
    if any(not (folder / name).is_file() for name in FILES.values()):
        drawn = {name: synthetic(LENGTHS[name], num=NUM_PAIRS[name], seed=0) for name in FILES}
        return Data(pairs=drawn, source="random tokens, drawn at the real text's lengths")
    tokenizer = AutoTokenizer.from_pretrained(model)
    dialogues = map(_dialogue, filter(_short_text, _records(folder / FILES["long"])))
    sentences = map(_sentence, _records(folder / FILES["short"]))
    pairs = {
        "long": _tokens(dialogues, tokenizer),
        "short": filter(_few_tokens, _tokens(sentences, tokenizer)),
    }
    taken = {name: list(islice(found, NUM_PAIRS[name])) for name, found in pairs.items()}
    for name, found in taken.items():
        if len(found) < NUM_PAIRS[name]:
            raise BadData(f"{FILES[name]} has {len(found)} fitting pairs, not {NUM_PAIRS[name]}")
    return Data(pairs=taken, source=f"text of {' and '.join(FILES.values())}")


def synthetic(lengths: Lengths, *, num: int, seed: int) -> list[Pair]:
    """Pairs of random tokens whose lengths lie evenly over the deciles, in random order."""
    draw = random.Random(seed)
    opening = _random(draw, lengths.opening)
    prompts, *responses = (
        _spread(draw, deciles, num)
        for deciles in (lengths.prompt, lengths.chosen, lengths.rejected)
    )
    return [
        [
            opening + _random(draw, prompt - len(opening)),
            *([*_random(draw, length - 1), 2] for length in both),
        ]
        for prompt, *both in zip(prompts, *responses, strict=True)
    ]


def even(*, num: int, prompt: int, response: int) -> list[Pair]:
    """Pairs of random tokens that are all of the same lengths and share nothing."""
    lengths = Lengths(prompt=(prompt,), chosen=(response,), rejected=(response,), opening=0)
    return synthetic(lengths, num=num, seed=0)


def token_counts(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How many pairs these are, and how many tokens they have on average."""
    means = [sum(map(len, part)) / len(pairs) for part in zip(*pairs, strict=True)]
    named = dict(zip(("prompt", "chosen", "rejected"), means, strict=True))
    return {"pairs": len(pairs), "mean_tokens": {**named, "pair": sum(means)}}


def _records(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _short_text(record: dict[str, str]) -> bool:
    longer = max(len(record["chosen"]), len(record["rejected"]))
    return len(record["prompt"]) + longer < MAX_LONG_CHARACTERS


def _few_tokens(pair: Pair) -> bool:
    return sum(map(len, pair)) <= MAX_SHORT_TOKENS


def _dialogue(record: dict[str, str]) -> Preference:
    """A record whose prompt is turns of a human and an assistant, as chat messages."""
    parts = re.split(r"\n\n(Human|Assistant):", record["prompt"])[1:-2]
    turns = tuple(
        Message("user" if who == "Human" else "assistant", text.strip())
        for who, text in zip(parts[0::2], parts[1::2], strict=True)
    )
    chosen, rejected = ((Message("assistant", record[name]),) for name in ("chosen", "rejected"))
    return Preference(prompt=turns, chosen=chosen, rejected=rejected)


def _sentence(record: dict[str, str]) -> Preference:
    return Preference(
        prompt=record["prompt"],
        chosen=f" {record['chosen']}",
        rejected=f" {record['rejected']}",
    )


def _tokens(preferences: Iterable[Preference], tokenizer: Any) -> Iterator[Pair]:
    for preference in preferences:
        tokens = pair_tokens(preference, tokenizer, max_tokens=MAX_TOKENS)
        yield [list(part) for part in (tokens.prompt, tokens.chosen, tokens.rejected)]


def _random(draw: random.Random, num: int) -> list[int]:
    return draw.choices(_FREQUENT, k=num)


def _spread(draw: random.Random, deciles: Sequence[int], num: int) -> list[int]:
    """`num` lengths at even distances along the deciles, in random order."""
    steps = len(deciles) - 1
    lengths = []
    for number in range(num):
        place = (number + 0.5) / num * steps
        below = min(int(place), max(0, steps - 1))
        above = min(below + 1, steps)
        share = place - below
        lengths.append(round(deciles[below] + share * (deciles[above] - deciles[below])))
    draw.shuffle(lengths)
    return lengths
