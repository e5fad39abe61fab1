"""Preferences as tokens: one prompt, two responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from fedpdpo.client.data.preferences import Message, Preference
from fedpdpo.common.errors import BadData

#: The day on which all conversations take place.
_ONE_DAY = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro %}"


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
        text = rendered(tokenizer, _turns(preference.prompt), reply=True)
        prompt = _ids(tokenizer, text)
        answers = []
        for answer in (preference.chosen, preference.rejected):
            turns = _turns([*preference.prompt, *_messages(answer)])
            whole = rendered(tokenizer, turns, reply=False)
            if not whole.startswith(text):
                raise BadData("the chat template changes the prompt when a response follows")
            answers.append(_ended(tokenizer, _ids(tokenizer, whole.removeprefix(text))))
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


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens, with the token that begins a text where the tokenizer has one."""
    return _ids(tokenizer, text, special=True)


def rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, reply: bool) -> str:
    """A conversation by the tokenizer's chat template; with `reply` up to where the reply begins.

    A template that asks for today's date is told one and the same, so that a pair's tokens do not
    depend on the day. Raises BadData where there is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise BadData("the data are chat messages, but the tokenizer has no chat template")
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:
        template = _ONE_DAY + template
    try:
        text: str = tokenizer.apply_chat_template(
            list(turns), chat_template=template, tokenize=False, add_generation_prompt=reply
        )
    except TemplateError as error:
        raise BadData(f"the chat template refuses a conversation of the data: {error}") from error
    return text


def _ended(tokenizer: Any, ids: list[int]) -> list[int]:
    """An answer without the blanks that a template puts behind the token that ends a turn.

    So its last state predicts that token, and has read the answer alone [6].
    """
    last = len(ids)
    while last > 1 and not tokenizer.decode(ids[last - 1 : last]).strip():
        last -= 1
    ends_turn = last < len(ids) and ids[last - 1] in _special(tokenizer)
    return ids[:last] if ends_turn else ids


def _special(tokenizer: Any) -> set[int]:
    added = tokenizer.added_tokens_decoder
    return {number for number, token in added.items() if token.special}


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = special and tokenizer.bos_token_id is not None and _adds_bos(tokenizer)
    return [tokenizer.bos_token_id, *ids] if starts else ids


def _adds_bos(tokenizer: Any) -> bool:
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


def _messages(answer: str | Sequence[Message]) -> Sequence[Message]:
    return [Message("assistant", answer)] if isinstance(answer, str) else answer


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
