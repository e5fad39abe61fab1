"""Ranks answers by the client's taste: what `fedpdpo score` shows."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedpdpo.client.data.preferences import Message, Preference
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.client.model.packing import pack
from fedpdpo.client.model.policy import Policy
from fedpdpo.common.errors import BadData
from fedpdpo.common.run import MethodSettings

_MOST_CHARS = 2**20


@dataclass(frozen=True)
class Scored:
    """An answer and its rewards [5], [6], [7]; only their differences mean something."""

    answer: str
    implicit: float
    explicit: float
    combined: float


def read_answers(path: Path) -> list[str]:
    """The lines of a file, or of standard input for `-`, but blank ones.

    Raises BadData where it cannot be read or is too large.
    """
    try:
        with sys.stdin if str(path) == "-" else path.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"cannot read --answers {path}: {error}") from error
    if len(text) > _MOST_CHARS:
        raise BadData(f"--answers {path} has more than {_MOST_CHARS} characters")
    return [line for line in text.splitlines() if line.strip()]


def ranked(
    policy: Policy,
    tokenizer: Any,
    method: MethodSettings,
    prompt: str,
    answers: Sequence[str],
    *,
    chat: bool,
    max_tokens: int,
) -> list[Scored]:
    """Answers to a prompt, the one most to the client's taste first.

    With `chat` the prompt is a user's message, else text that the answers go on from; where that is
    cut it is cut alike for all. Raises BadData for fewer than two different answers, or blank ones;
    BadModel where no way of computing them suits the model.
    """
    different = list(dict.fromkeys(answers))
    if len(different) < 2:
        raise BadData("give two or more different answers; one alone cannot be ranked")
    asked = (Message("user", prompt),) if chat else prompt
    pairs = []
    for number, answer in enumerate(different):
        texts = (answer, different[number - 1])
        chosen, rejected = ((Message("assistant", one),) for one in texts) if chat else texts
        preference = Preference(asked, chosen, rejected)
        pairs.append(pair_tokens(preference, tokenizer, max_tokens=max_tokens))
    shortest = min(len(pair.prompt) for pair in pairs)
    pairs = [replace(pair, prompt=pair.prompt[-shortest:]) for pair in pairs]
    if not policy.checked:
        policy.check(max(pairs, key=len))
    found = []
    for answer, tokens in zip(different, pairs, strict=True):
        packed = pack([tokens], [0], device=policy.device)
        with torch.no_grad():
            own = policy.scores(packed, policy.hidden(packed))
        reference = policy.reference_scores(packed)
        implicit = method.beta * float(own.chosen_logps - reference.chosen_logps)
        explicit = float(own.chosen_rewards)
        found.append(Scored(answer, implicit, explicit, implicit + method.alpha * explicit))
    return sorted(found, key=lambda one: one.combined, reverse=True)
