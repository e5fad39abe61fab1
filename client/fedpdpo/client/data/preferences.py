"""Preferences: a prompt with the answer chosen and the answer rejected, in TRL's formats.

The three are text, or chat messages. Without a prompt, `chosen` and `rejected` are whole texts or
conversations, and what both begin with is the prompt; a prompt that is text beside whole
conversations repeats what they begin with; beside answers it is the user's message. Errors say
where and what is wrong, never what a record holds, as training text is private.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedpdpo.client.data.records import KEYS, Flaw, files_in, keys_shown, records_in
from fedpdpo.common.errors import BadData

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is one of ROLES."""

    role: str
    content: str = field(repr=False)


Text = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Preference:
    """A preference pair. Its repr tells the digest only, as the text is private.

    Raises BadData where text meets messages, a part is blank or no valid Unicode, or the answers
    are equal.
    """

    prompt: Text
    chosen: Text
    rejected: Text

    def __post_init__(self) -> None:
        parts = {key: getattr(self, key) for key in KEYS}
        if len({isinstance(part, str) for part in parts.values()}) > 1:
            kinds = ", ".join(f"{key} is {_kind(part)}" for key, part in parts.items())
            raise BadData(f"{kinds}; all three must be text or all three messages")
        for key, part in parts.items():
            text = part if isinstance(part, str) else "".join(turn.content for turn in part)
            if not text.strip():
                raise BadData(f"{key} is empty")
            if not _encodes(text):
                raise BadData(f"{key} holds half a surrogate pair, which is no valid Unicode")
        if self.chosen == self.rejected:
            raise BadData("chosen and rejected are equal")

    @property
    def digest(self) -> str:
        """SHA-256 of the three parts as canonical JSON, 64 hex digits."""
        return _sha256(self.record)

    @property
    def record(self) -> dict[str, object]:
        """The three parts as a file has them: text, or lists of role and content."""
        return {key: _plain(getattr(self, key)) for key in KEYS}

    @property
    def prompt_digest(self) -> str:
        """SHA-256 of the prompt as canonical JSON, 64 hex digits."""
        return _sha256(_plain(self.prompt))

    def __repr__(self) -> str:
        return f"Preference(digest={self.digest!r})"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The preferences in the order of the files, and one message for each record skipped."""

    preferences: tuple[Preference, ...]
    skipped: tuple[str, ...] = ()


def read_preferences(path: Path, *, skip_bad_records: bool = False) -> Loaded:
    """Read a file of preferences, or all .jsonl, .json and .parquet files directly in a folder.

    Raises BadData where the path is missing, no preference is left, or, unless they are skipped,
    at the first bad record.
    """
    preferences: list[Preference] = []
    skipped: list[str] = []
    for file in files_in(path):
        for record in records_in(file):
            try:
                if isinstance(record, Flaw):
                    raise BadData(record.reason)
                preferences.append(preference_from(record.value))
            except BadData as error:
                skipped.append(f"{record.place}: {error}")
            if skipped and not skip_bad_records:
                raise BadData(f"{skipped[0]}; --skip-bad-records goes on without it")
    if skipped and not preferences:
        raise BadData(f"{path}: all {len(skipped)} records are bad, the first is {skipped[0]}")
    if not preferences:
        raise BadData(f"{path} holds no records; it needs at least one preference")
    return Loaded(tuple(preferences), tuple(skipped))


def preference_from(record: object) -> Preference:
    """Understand a decoded record. Lists may also be numpy or pyarrow arrays.

    Keys other than KEYS are ignored. Raises BadData, which says what is wrong without the place.
    """
    if not isinstance(record, Mapping):
        raise BadData(f"a record must be an object, not {type(record).__name__}")
    chosen, rejected = (_text(_value(record, key), key) for key in KEYS[1:])
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadData(f"chosen is {_kind(chosen)}, rejected is {_kind(rejected)}")
    if "prompt" not in record:
        return _implicit(chosen, rejected)
    prompt = _text(record["prompt"], "prompt")
    if isinstance(prompt, str) and not isinstance(chosen, str):
        if chosen[:1] == rejected[:1]:
            return _implicit(chosen, rejected)
        prompt = (Message("user", prompt),)
    if isinstance(prompt, tuple):
        chosen, rejected = _messages(chosen), _messages(rejected)
    return Preference(prompt, chosen, rejected)


def _implicit(chosen: Text, rejected: Text) -> Preference:
    """Take what both begin with as the prompt; a space before the answers goes with them."""
    if chosen == rejected:
        raise BadData("chosen and rejected are equal")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    end = next((at for at, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    if end in (len(chosen), len(rejected)):
        raise BadData("there is no prompt, and one of chosen and rejected begins with the other")
    if end and chosen[end - 1] == " ":
        end -= 1
    if not end:
        raise BadData("there is no prompt, and chosen and rejected begin with nothing in common")
    return Preference(chosen[:end], chosen[end:], rejected[end:])


def _text(value: object, name: str) -> Text:
    value = _listed(value)
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, list | tuple):
        raise BadData(f"{name} must be text or a list of messages, not {type(value).__name__}")
    return tuple(_message(turn, f"{name}[{index}]") for index, turn in enumerate(value))


def _message(value: object, name: str) -> Message:
    value = _listed(value)
    if not isinstance(value, Mapping):
        raise BadData(f"{name} must be a message, not {type(value).__name__}")
    role, content = (_listed(_value(value, key, name=name)) for key in ("role", "content"))
    if not isinstance(content, str):
        raise BadData(f"{name}.content must be text, not {type(content).__name__}")
    if not isinstance(role, str) or role not in ROLES:
        raise BadData(f"{name}.role must be one of {', '.join(ROLES)}")
    return Message(str(role), str(content))


def _value(record: Mapping[object, object], key: str, *, name: str = "the record") -> object:
    if key not in record:
        raise BadData(f"{name} has no {key!r}; {keys_shown(record)}")
    return record[key]


def _listed(value: object) -> object:
    """Turn numpy and pyarrow arrays and scalars into plain values; leave all else."""
    for name in ("as_py", "to_pylist", "tolist"):
        if convert := getattr(value, name, None):
            return convert()
    return value


def _messages(answer: Text) -> tuple[Message, ...]:
    return (Message("assistant", answer),) if isinstance(answer, str) else answer


def _kind(text: Text) -> str:
    return "text" if isinstance(text, str) else "messages"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(text: Text) -> object:
    if isinstance(text, str):
        return text
    return [{"role": turn.role, "content": turn.content} for turn in text]


def _sha256(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
