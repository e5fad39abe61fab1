"""Preferences as tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from fedpdpo.client.data.preferences import Message, Preference
from fedpdpo.client.data.tokens import pair_tokens
from fedpdpo.common.errors import BadData
from tiny import CHAT_TEMPLATE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
words = st.text("abcdef ", min_size=1, max_size=40).filter(str.strip)


def text_of(ids: tuple[int, ...]) -> str:
    decoded: str = TOKENIZER.decode(list(ids))
    return decoded


def test_text_is_taken_as_it_stands_and_answers_end_with_the_end_token() -> None:
    tokens = pair_tokens(Preference("a film", " good", " bad"), TOKENIZER, max_tokens=64)
    assert text_of(tokens.prompt) == "a film"
    assert text_of(tokens.chosen) == " good<eos>"
    assert text_of(tokens.rejected) == " bad<eos>"


def test_messages_go_through_the_chat_template() -> None:
    ask, good, bad = (Message("user", "hi"),), (Message("assistant", "hello"),), (
        Message("assistant", "go"),
    )  # fmt: skip
    tokens = pair_tokens(Preference(ask, good, bad), TOKENIZER, max_tokens=64)
    assert text_of(tokens.prompt) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(tokens.chosen) == "hello<|im_end|>"
    assert text_of(tokens.rejected) == "go<|im_end|>"


def test_a_template_without_a_token_that_ends_a_turn_is_taken_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    chat = Preference(*((Message(role, f"{word} "),) for role, word in (
        ("user", "hi"), ("assistant", "hello"), ("assistant", "go"))))  # fmt: skip
    tokens = pair_tokens(chat, tokenizer, max_tokens=64)
    assert text_of(tokens.prompt) == "user: hi \nassistant: "
    assert text_of(tokens.chosen) == "hello \n"


def test_a_pairs_tokens_do_not_depend_on_the_day() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + CHAT_TEMPLATE
    chat = Preference(*((Message(role, word),) for role, word in (
        ("user", "hi"), ("assistant", "hello"), ("assistant", "go"))))  # fmt: skip
    tokens = pair_tokens(chat, tokenizer, max_tokens=128)
    assert text_of(tokens.prompt).startswith("26 Jul 2024\n<|im_start|>user")


def test_a_conversation_that_the_template_refuses_is_bad_data() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    chat = Preference(*((Message("user", word),) for word in "abc"))
    with pytest.raises(BadData, match="refuses a conversation of the data: System role not"):
        pair_tokens(chat, tokenizer, max_tokens=64)


def test_messages_without_a_chat_template_are_refused() -> None:
    chat = Preference(*((Message("user", word),) for word in "abc"))
    with pytest.raises(BadData, match="no chat template"):
        pair_tokens(chat, tiny_tokenizer(chat=False), max_tokens=64)


def test_a_template_that_changes_the_prompt_when_a_response_follows_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + CHAT_TEMPLATE
    chat = Preference(*((Message(role, role),) for role in ("user", "assistant", "tool")))
    with pytest.raises(BadData, match="changes the prompt when a response follows"):
        pair_tokens(chat, tokenizer, max_tokens=64)


def test_a_text_prompt_begins_as_the_tokenizer_begins_a_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    preference = Preference("a film", " good", " bad")
    assert text_of(pair_tokens(preference, tokenizer, max_tokens=64).prompt) == "a film"
    begin = ("<|im_start|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[begin]
    )
    tokens = pair_tokens(preference, tokenizer, max_tokens=64)
    assert text_of(tokens.prompt) == "<|im_start|>a film"
    assert text_of(tokens.chosen) == " good<eos>"


@given(words, words, words, st.integers(8, 60))
def test_a_cut_pair_keeps_the_prompts_end_and_the_answers_beginning(
    prompt: str, chosen: str, rejected: str, room: int
) -> None:
    if chosen == rejected:
        return
    preference = Preference(prompt, chosen, rejected)
    whole = pair_tokens(preference, TOKENIZER, max_tokens=1000)
    cut = pair_tokens(preference, TOKENIZER, max_tokens=room)
    assert len(cut.prompt) >= 1
    assert whole.prompt[-len(cut.prompt) :] == cut.prompt
    for one, other in ((whole.chosen, cut.chosen), (whole.rejected, cut.rejected)):
        assert other
        assert one[: len(other)] == other
        assert len(cut.prompt) + len(other) <= room
    assert cut.truncated == (len(cut) < len(whole))
    assert not whole.truncated
