import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedpdpo.client.data import records
from fedpdpo.client.data.preferences import (
    Loaded,
    Message,
    Preference,
    preference_from,
    read_preferences,
)
from fedpdpo.common.errors import BadData

TEXT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
ASK = [{"role": "user", "content": "What colour is the sky?"}]
BLUE = [{"role": "assistant", "content": "It is blue."}]
GREEN = [{"role": "assistant", "content": "It is green."}]
CHAT = {"prompt": ASK, "chosen": BLUE, "rejected": GREEN}
CHAT_PAIR = Preference(
    (Message("user", "What colour is the sky?"),),
    (Message("assistant", "It is blue."),),
    (Message("assistant", "It is green."),),
)
TEXT_PAIR = Preference("The sky is", " blue.", " green.")
SECRET = "xyzzy-private"
ANSWERS = '"chosen": "a", "rejected": "b"'


def write_lines(file: Path, *rows: object) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def loaded(path: Path) -> tuple[Preference, ...]:
    return read_preferences(path).preferences


# What a record means


def test_an_explicit_prompt_of_text_is_taken_as_it_stands() -> None:
    assert preference_from(TEXT) == TEXT_PAIR


def test_an_explicit_prompt_of_messages_is_taken_as_it_stands() -> None:
    assert preference_from(CHAT) == CHAT_PAIR


def test_answers_of_text_after_messages_become_one_assistant_message_each() -> None:
    record = {"prompt": ASK, "chosen": "It is blue.", "rejected": "It is green."}
    assert preference_from(record) == CHAT_PAIR


def test_a_prompt_of_text_beside_whole_conversations_repeats_what_they_begin_with() -> None:
    record = {"prompt": "repeated", "chosen": [*ASK, *BLUE], "rejected": [*ASK, *GREEN]}
    assert preference_from(record) == CHAT_PAIR


def test_a_prompt_of_text_beside_answers_is_the_users_message() -> None:
    assert preference_from({**CHAT, "prompt": ASK[0]["content"]}) == CHAT_PAIR


def test_the_leading_messages_of_both_conversations_are_the_implicit_prompt() -> None:
    assert preference_from({"chosen": ASK + BLUE, "rejected": ASK + GREEN}) == CHAT_PAIR


def test_the_leading_text_of_both_answers_is_the_implicit_prompt_without_its_last_space() -> None:
    record = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert preference_from(record) == TEXT_PAIR


def test_an_implicit_prompt_of_text_may_end_within_a_word() -> None:
    record = {"chosen": "The sky is green.", "rejected": "The sky is grey."}
    assert preference_from(record) == Preference("The sky is gre", "en.", "y.")


@given(st.text(), st.text(), st.text())
def test_an_implicit_prompt_loses_no_character(prompt: str, one: str, other: str) -> None:
    try:
        pair = preference_from({"chosen": prompt + one, "rejected": prompt + other})
    except BadData:
        return
    assert isinstance(pair.prompt, str)
    assert isinstance(pair.chosen, str)
    assert isinstance(pair.rejected, str)
    assert pair.prompt + pair.chosen == prompt + one
    assert pair.prompt + pair.rejected == prompt + other
    assert len(pair.prompt) >= len(prompt) - 1


def test_other_keys_are_ignored() -> None:
    chat = {"prompt": [{**ASK[0], "name": "Ann"}], "chosen": BLUE, "rejected": GREEN, "score": 3}
    assert preference_from(chat) == CHAT_PAIR


def test_numpy_arrays_of_messages_mean_what_lists_mean() -> None:
    record = {key: np.array(value, dtype=object) for key, value in CHAT.items()}
    assert preference_from(record) == CHAT_PAIR


def test_pyarrow_scalars_and_arrays_mean_what_lists_mean() -> None:
    table = pa.Table.from_pylist([CHAT])
    assert preference_from({key: table.column(key)[0] for key in CHAT}) == CHAT_PAIR
    assert preference_from({key: table.column(key)[0].values for key in CHAT}) == CHAT_PAIR


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (["a"], "a record must be an object, not list"),
        (None, "a record must be an object, not NoneType"),
        ({}, "the record has no 'chosen'; there is no key at all"),
        ({"prompt": "a", "chosen": "b"}, "has no 'rejected'; there are 'prompt', 'chosen'"),
        ({**TEXT, "chosen": 7}, "chosen must be text or a list of messages, not int"),
        ({**TEXT, "prompt": None}, "prompt must be text or a list of messages, not NoneType"),
        ({**TEXT, "chosen": BLUE[0]}, "chosen must be text or a list of messages, not dict"),
        ({**TEXT, "chosen": ""}, "chosen is empty"),
        ({**TEXT, "rejected": " \n"}, "rejected is empty"),
        ({**CHAT, "rejected": []}, "rejected is empty"),
        ({**TEXT, "prompt": ""}, "prompt is empty"),
        ({**CHAT, "prompt": []}, "prompt is empty"),
        ({**TEXT, "rejected": " blue."}, "chosen and rejected are equal"),
        ({**TEXT, "prompt": "\ud800"}, "prompt holds half a surrogate pair"),
        ({**CHAT, "chosen": "It is blue."}, "chosen is text, rejected is messages"),
        ({**CHAT, "prompt": ["a"]}, r"prompt\[0\] must be a message, not str"),
        (
            {**CHAT, "chosen": [{"from": "gpt", "value": "a"}]},
            r"chosen\[0\] has no 'role'; there are 'from', 'value'",
        ),
        (
            {**CHAT, "chosen": [*BLUE, {"role": "assistant", "content": None}]},
            r"chosen\[1\].content must be text, not NoneType",
        ),
        (
            {**CHAT, "prompt": [{"role": "wizard", "content": "a"}]},
            r"prompt\[0\].role must be one of system, developer, user, assistant, tool",
        ),
        ({**CHAT, "prompt": [{"role": ["user"], "content": "a"}]}, "role must be one of"),
        ({"chosen": "same", "rejected": "same"}, "chosen and rejected are equal"),
        ({"chosen": "The sky", "rejected": "The sky is"}, "one .* begins with the other"),
        ({"chosen": ASK + BLUE, "rejected": ASK}, "one .* begins with the other"),
        ({"chosen": "blue", "rejected": "green"}, "begin with nothing in common"),
        ({"chosen": BLUE, "rejected": GREEN}, "begin with nothing in common"),
    ],
)
def test_a_record_that_is_no_preference_is_refused_with_the_reason(
    record: object, reason: str
) -> None:
    with pytest.raises(BadData, match=reason):
        preference_from(record)


def test_text_and_messages_cannot_be_mixed_in_a_preference() -> None:
    with pytest.raises(BadData, match="prompt is text, chosen is messages, rejected is text"):
        Preference("a", (Message("assistant", "b"),), "c")


def test_a_hundred_keys_are_named_in_part() -> None:
    record = {f"{'k' * 50}{number}": 1 for number in range(100)}
    with pytest.raises(BadData, match="and 90 more") as caught:
        preference_from(record)
    assert len(str(caught.value)) < 600


# Files and folders


def test_json_lines_hold_an_object_a_line_and_blank_lines_count_for_nothing(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.jsonl"
    text = f"\ufeff\n{json.dumps(TEXT)}\r\n  \n{json.dumps(CHAT)}"
    file.write_bytes(text.encode())
    assert loaded(file) == (TEXT_PAIR, CHAT_PAIR)


@pytest.mark.parametrize("whole", [[TEXT, CHAT], {"data": [TEXT, CHAT], "version": 1}])
def test_json_holds_a_list_or_a_list_named_data(tmp_path: Path, whole: object) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(whole), encoding="utf-8")
    assert loaded(file) == (TEXT_PAIR, CHAT_PAIR)


@pytest.mark.parametrize("rows", [[TEXT] * 600, [CHAT] * 600, [{**TEXT, "score": 1.5}] * 600])
def test_parquet_is_read_over_several_batches(tmp_path: Path, rows: list[object]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert loaded(tmp_path / "a.parquet") == (preference_from(rows[0]),) * 600


def test_parquet_without_a_prompt_column_has_implicit_prompts(tmp_path: Path) -> None:
    row = {"chosen": ASK + BLUE, "rejected": ASK + GREEN}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert loaded(tmp_path / "a.parquet") == (CHAT_PAIR,)


def test_a_folder_gives_its_data_files_in_sorted_order_and_nothing_deeper(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([CHAT]), tmp_path / "b.parquet")
    write_lines(tmp_path / "c.jsonl", {**TEXT, "prompt": "third"})
    (tmp_path / "a.JSON").write_text(json.dumps([TEXT]), encoding="utf-8")
    (tmp_path / "README.md").write_text("not data", encoding="utf-8")
    (tmp_path / "deeper.jsonl").mkdir()
    write_lines(tmp_path / "deeper.jsonl" / "d.jsonl", {**TEXT, "prompt": "fourth"})
    assert [pair.prompt for pair in loaded(tmp_path)] == [
        TEXT_PAIR.prompt,
        CHAT_PAIR.prompt,
        "third",
    ]


def test_equal_preferences_are_all_kept(tmp_path: Path) -> None:
    assert loaded(write_lines(tmp_path / "a.jsonl", TEXT, TEXT)) == (TEXT_PAIR, TEXT_PAIR)


def test_a_path_that_holds_no_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=f"{tmp_path}/none does not exist"):
        read_preferences(tmp_path / "none")
    with pytest.raises(BadData, match=f"{tmp_path} holds no file that ends in .jsonl, .json, .par"):
        read_preferences(tmp_path)
    (tmp_path / "a.csv").touch()
    with pytest.raises(BadData, match=r"a.csv is no folder and no file that ends in .jsonl"):
        read_preferences(tmp_path / "a.csv")
    with pytest.raises(BadData, match="cannot read"):
        read_preferences(tmp_path / ("a" * 5000))


def test_files_without_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "b.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadData, match="holds no records"):
        read_preferences(tmp_path)


# Bad records


def test_the_first_bad_record_is_named_with_file_line_and_the_way_on(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", TEXT, {"prompt": "a", "response": "b"}, {})
    with pytest.raises(BadData) as caught:
        read_preferences(file)
    assert str(caught.value) == (
        f"{file}:2: the record has no 'chosen'; there are 'prompt', 'response'; "
        "--skip-bad-records goes on without it"
    )


def test_skipped_records_are_told_one_by_one_and_the_good_ones_stay(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [], TEXT, {**TEXT, "chosen": ""}, CHAT)
    assert read_preferences(file, skip_bad_records=True) == Loaded(
        (TEXT_PAIR, CHAT_PAIR),
        (f"{file}:1: a record must be an object, not list", f"{file}:3: chosen is empty"),
    )


def test_skipping_every_record_is_refused(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", 1, 2, 3)
    with pytest.raises(BadData, match=r"all 3 records are bad, the first is .*a.jsonl:1: a"):
        read_preferences(file, skip_bad_records=True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'  {"prompt": ', "invalid JSON at column 13"),
        (b"\xff\xfe{}", "not UTF-8 at byte 0"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "a number too long"),
        (b'{"a": "' + b"a" * records.MAX_LINE_BYTES + b'"}', "longer than 16777216 bytes"),
    ],
    ids=["cut", "utf-16", "deep", "number", "long"],
)
def test_a_line_that_cannot_be_decoded_is_skipped_alone(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    file = tmp_path / "a.jsonl"
    good = json.dumps(TEXT).encode()
    file.write_bytes(b"\n".join([good, line, good]))
    result = read_preferences(file, skip_bad_records=True)
    assert result.preferences == (TEXT_PAIR, TEXT_PAIR)
    (message,) = result.skipped
    assert message.startswith(f"{file}:2: ")
    assert reason in message


def test_a_line_of_just_the_greatest_length_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lines(tmp_path / "a.jsonl", TEXT)
    monkeypatch.setattr(records, "MAX_LINE_BYTES", file.stat().st_size - 1)
    assert loaded(file) == (TEXT_PAIR,)
    monkeypatch.setattr(records, "MAX_LINE_BYTES", file.stat().st_size - 2)
    with pytest.raises(BadData, match="longer than"):
        read_preferences(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'[\n{"prompt": "a"},\n}]', r"a.json:3: invalid JSON at column 1"),
        (b'["\n\n\xff"]', r"a.json:3: not UTF-8 at byte 4"),
        (b"7", "a.json: neither a list of objects nor"),
        (b'{"data": {}}', "a.json: neither a list of objects nor"),
        (b'{"prompt": "a"}', "a.json: neither a list of objects nor"),
        (b"[7]", r"a.json\[0\]: a record must be an object, not int"),
    ],
)
def test_bad_json_is_named_by_line_or_index(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(BadData, match=reason):
        read_preferences(tmp_path)


def test_json_that_is_too_large_is_referred_to_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_JSON_BYTES", 20)
    (tmp_path / "a.json").write_text(json.dumps([TEXT]), encoding="utf-8")
    with pytest.raises(BadData, match="more than 20 bytes; write it as JSON Lines"):
        read_preferences(tmp_path)


def test_bad_parquet_is_named_by_file_or_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a"], "answer": ["b"]}), file)
    with pytest.raises(BadData, match="no column 'chosen'; there are 'prompt', 'answer'"):
        read_preferences(file)
    invalid = pa.array([b"a", b"\xff"]).view(pa.string())
    pq.write_table(
        pa.table({"prompt": invalid, "chosen": ["b", "b"], "rejected": ["c", "c"]}), file
    )
    with pytest.raises(BadData, match=r"a.parquet\[1\]: not UTF-8 at byte 0"):
        read_preferences(file)
    file.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(BadData, match="not valid Parquet after 0 rows"):
        read_preferences(file)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(BadData, match=r"needs pyarrow; install .* extra \[client\]"):
        read_preferences(tmp_path)


def test_a_file_that_cannot_be_read_is_refused_even_where_bad_records_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    file = write_lines(tmp_path / "a.jsonl", TEXT)
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BadData, match=r"cannot read .*a.jsonl: Permission denied"):
        read_preferences(file, skip_bad_records=True)


@pytest.mark.parametrize(
    "line",
    [
        f'{{"prompt": "{SECRET}", "chosen": "{SECRET}", "rejected": "{SECRET}"}}',
        f'{{"chosen": "{SECRET}", "rejected": "{SECRET} {SECRET}"}}',
        f'{{"prompt": "{SECRET}", "chosen": "{SECRET}',
        f'"{SECRET}"',
        f'{{"prompt": ["{SECRET}"], {ANSWERS}}}',
        f'{{"prompt": [{{"role": "{SECRET}", "content": "a"}}], {ANSWERS}}}',
        f'{{"prompt": [{{"role": "user", "content": ["{SECRET}"]}}], {ANSWERS}}}',
        f'{{"prompt": [{{"role": "user", "content": {{"{SECRET}": 1}}}}], {ANSWERS}}}',
    ],
)
def test_no_message_and_no_repr_holds_the_text_of_a_record(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n{json.dumps(TEXT)}", encoding="utf-8")
    with pytest.raises(BadData) as caught:
        read_preferences(tmp_path)
    assert SECRET not in str(caught.value)
    result = read_preferences(tmp_path, skip_bad_records=True)
    assert SECRET not in str(result.skipped)
    private = Preference(*((Message("user", f"{SECRET}{part}"),) for part in "abc"))
    assert SECRET not in repr(private)
    assert SECRET not in repr(Message("user", SECRET))


def test_a_file_of_any_bytes_ends_in_preferences_or_bad_data() -> None:
    shapes = st.recursive(
        st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["user", "assistant"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt", "chosen", "rejected", "role", "content"]),
                inner,
                max_size=3,
            )
        ),
    )
    lines = st.binary() | shapes.map(lambda value: json.dumps(value).encode())

    @given(st.lists(lines, max_size=5).map(b"\n".join), st.sampled_from(records.ENDINGS))
    @example(b'{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', ".jsonl")
    @example(b"PAR1\x00\x00\x00\x00PAR1", ".parquet")
    def any_bytes(content: bytes, ending: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"a{ending}"
            file.write_bytes(content)
            for skip in (False, True):
                try:
                    result = read_preferences(file, skip_bad_records=skip)
                except BadData as error:
                    assert str(file) in str(error)
                else:
                    assert result.preferences
                    assert all(one.digest for one in result.preferences)

    any_bytes()


# Digests


def test_a_digest_is_that_of_the_canonical_json() -> None:
    canonical = b'{"chosen":" blue.","prompt":"The sky is","rejected":" green."}'
    assert TEXT_PAIR.digest == hashlib.sha256(canonical).hexdigest()


def test_text_and_a_message_of_the_same_words_have_different_digests() -> None:
    chat = Preference(*((Message("user", word),) for word in "abc"))
    assert chat.digest != Preference("a", "b", "c").digest
    assert chat.prompt_digest != Preference("a", "b", "c").prompt_digest
