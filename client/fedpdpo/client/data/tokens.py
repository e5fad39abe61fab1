"""Preferences as tokens: one prompt, two responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedpdpo.client.data.preferences import Message, Preference
from fedpdpo.common.errors import BadData


@dataclass(frozen=True)
class PairTokens:
    """Token ids of a pair. The prompt has at least one; responses end with the end of turn."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def pair_tokens(preference: Preference, tokenizer: Any, *, max_tokens: int) -> PairTokens:
    """Tokenize a preference; prompt and response together take at most `max_tokens`.

    Chat messages go through the tokenizer's chat template; text is taken as it is, with the end
    token after each response. Too long a response loses its end, too long a prompt its beginning.
    Raises BadData for messages where the tokenizer has no chat template, or has one that changes
    the prompt when a response follows.
    """
    if isinstance(preference.prompt, str):
        prompt = _ids(tokenizer, preference.prompt, special=True)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        answers = [
            _ids(tokenizer, str(answer)) + end
            for answer in (preference.chosen, preference.rejected)
        ]
    else:
        text = _rendered(tokenizer, preference.prompt, reply=True)
        prompt = _ids(tokenizer, text)
        answers = []
        for answer in (preference.chosen, preference.rejected):
            whole = _rendered(tokenizer, [*preference.prompt, *_messages(answer)], reply=False)
            if not whole.startswith(text):
                raise BadData("the chat template changes the prompt when a response follows")
            answers.append(_ids(tokenizer, whole.removeprefix(text)))
    if not prompt:
        prompt = [tokenizer.bos_token_id or tokenizer.eos_token_id or 0]
    longest = max(len(answer) for answer in answers)
    response_room = max_tokens - 1
    prompt_room = max(1, max_tokens - min(longest, response_room))
    return PairTokens(
        prompt=tuple(prompt[-prompt_room:]),
        chosen=tuple(answers[0][:response_room]),
        rejected=tuple(answers[1][:response_room]),
        truncated=longest > response_room or len(prompt) > prompt_room,
    )


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = special and tokenizer.bos_token_id is not None and _adds_bos(tokenizer)
    return [tokenizer.bos_token_id, *ids] if starts else ids


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def _messages(answer: str | Sequence[Message]) -> Sequence[Message]:
    return [Message("assistant", answer)] if isinstance(answer, str) else answer


def _rendered(tokenizer: Any, messages: Sequence[Message], *, reply: bool) -> str:
    if not tokenizer.chat_template:
        raise BadData("the data are chat messages, but the tokenizer has no chat template")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
    return text
