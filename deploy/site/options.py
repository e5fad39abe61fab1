"""The settings reference: every flag of every command, from the models that parse them."""

import enum
import types
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AnyUrl, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.tool.command import COMMANDS, ELSEWHERE
from fedpdpo.server.settings import ServerSettings

_INTRODUCTION = """\
# Settings reference

Made from the code that reads the settings. Flags win over the environment, the environment over
the file that `--config` names; in the file a setting has its flag's name without the dashes, and a
group is a mapping.
"""
_PLAIN = {str: "text", Path: "path", AnyUrl: "URL", SecretStr: "text, secret", bool: "switch",
          int: "integer", float: "number"}  # fmt: skip
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}

Row = tuple[str, ...]


def programs() -> dict[str, type[BaseModel]]:
    """The settings of the daemons and of each command of `fedpdpo`, by what starts them."""
    daemons: dict[str, type[BaseModel]] = {
        "fedpdpo-server": ServerSettings,
        "fedpdpo-client": ClientSettings,
    }
    more = {point.name: point.load() for point in entry_points(group=ELSEWHERE)}
    return daemons | {f"fedpdpo {name}": one.settings for name, one in (COMMANDS | more).items()}


def page() -> str:
    """The whole reference as Markdown."""
    parts = [_INTRODUCTION]
    for program, cls in programs().items():
        prefix = str(cls.model_config.get("env_prefix") or "")
        for path, group in _groups(cls, ()):
            heading = f"### {program}: {'.'.join(path)}" if path else f"## {program}"
            parts.append(f"{heading}\n\n{_words(group)}\n")
            parts.append(_table(_rows(group, path, prefix), prefix))
    return "\n".join(parts)


def flag(path: Sequence[str]) -> str:
    """The flag of a setting in a group, or of one by itself."""
    return "--" + ".".join(part.replace("_", "-") for part in path)


def _rows(cls: type[BaseModel], before: tuple[str, ...], prefix: str) -> Iterator[Row]:
    for name, field in cls.model_fields.items():
        if _group(field):
            continue
        path = (*before, name)
        shown = f"`{flag(path)}`"
        if field.annotation is bool:
            shown += f"<br>`--no-{flag(path)[2:]}`"
        variable = (f"`{prefix}{'__'.join(path).upper()}`",) if prefix else ()
        told = (field.description or "").replace("|", "\\|").replace("<", "&lt;")
        yield (shown, *variable, _kind(field), _default(field), told)


def _groups(
    cls: type[BaseModel], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    yield path, cls
    for name, field in cls.model_fields.items():
        group = _group(field)
        if group:
            yield from _groups(group, (*path, name))


def _table(rows: Iterator[Row], prefix: str) -> str:
    variable = ("environment",) if prefix else ()
    head = ("flag", *variable, "type", "default", "meaning")
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _kind(field: FieldInfo) -> str:
    bounds = [
        f"{words} {getattr(one, name)}"
        for one in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(one, name, None) is not None
    ]
    return ", ".join([_type(field.annotation), *bounds])


def _type(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(one) for one in inner if one is not types.NoneType)
    if origin in (tuple, list):
        return f"list of {_type(inner[0])}"
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    return _PLAIN[kind]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default()
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, tuple | list):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in (None, "") else f"`{value}`"


def _words(cls: type[BaseModel]) -> str:
    return " ".join((cls.__doc__ or "").split())
