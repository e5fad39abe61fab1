"""Settings of a daemon: one pydantic model, filled from flags, environment and a YAML file.

Flags, or a program's own values, win over the environment, the environment over the file, the file
over the defaults.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fedpdpo.common.errors import BadSettings, FedPDPOError
from fedpdpo.common.version import __version__

_MAX_FILE_BYTES = 1024 * 1024

#: What the YAML file says while settings are filled.
_from_file: ContextVar[Mapping[str, Any]] = ContextVar("from_file", default=MappingProxyType({}))


class Settings(BaseSettings):
    """What the settings of every command have in common."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        env_nested_delimiter="__",
        cli_kebab_case=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_use_class_docs_for_groups=True,
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """After flags and a program's values: the environment, where it has a prefix, the file."""
        file = InitSettingsSource(settings_cls, dict(_from_file.get()))
        prefix = cls.model_config.get("env_prefix")
        return (init_settings, env_settings, file) if prefix else (init_settings, file)


class DaemonSettings(Settings):
    """What the settings of the two daemons have in common."""

    config: Path | None = Field(None, description="YAML file with any of these settings")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least severity that is logged"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="of log lines: for people, or an object a line for programs"
    )


S = TypeVar("S", bound=Settings)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Says what a value is in a user's words, and no default where there is none."""

    _WORDS: Mapping[str, str] = MappingProxyType(
        {"str": "TEXT", "SecretStr": "TEXT", "Path": "PATH", "int": "N", "float": "NUMBER",
         "{AnyUrl,Path}": "PATH-OR-URL"}
    )  # fmt: skip

    def _metavar_formatter(self, action: argparse.Action, default: str) -> Any:
        if isinstance(action.metavar, str):
            several = action.metavar.removeprefix("tuple[").removesuffix(",...]")
            word = self._WORDS.get(several.removeprefix("list[").removesuffix("]"), several)
            action.metavar = word if several == action.metavar else f"{word},..."
        return super()._metavar_formatter(action, default)

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r" \(default: (None|\(\)|)\)$", "", super()._expand_help(action))


class _Parser(argparse.ArgumentParser):
    """Names the nearest flag when one is unknown."""

    def error(self, message: str) -> NoReturn:
        unknown, _, rest = message.partition("unrecognized arguments: ")
        if rest and not unknown:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            message += nearest(rest.split()[0].partition("=")[0], known)
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help shows all flags\n")


def load_settings(cls: type[S], argv: Sequence[str], *, program: str, epilog: str = "") -> S:
    """Fill the settings of `program` from its flags, its environment and its file.

    Prints help or the version and exits where the flags ask for it. Raises BadSettings, which
    names the wrong key, where it stood, and the nearest valid one.
    """
    parser = _Parser(
        prog=program,
        usage="%(prog)s [options]",
        description=cls.__doc__,
        epilog=epilog,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    prefix = cls.model_config.get("env_prefix", "")
    _refuse_unknown_environment(cls, prefix)
    source = None
    if issubclass(cls, DaemonSettings):
        source = _file_named(argv) or os.environ.get(f"{prefix}CONFIG".upper())
    reading = _from_file.set(_read_yaml(Path(source)) if source else {})
    try:
        flags: CliSettingsSource[Any] = CliSettingsSource(
            cls, root_parser=parser, cli_parse_args=list(argv)
        )
        return cls(_cli_settings_source=flags)
    except ValidationError as error:
        raise BadSettings(explain(error, cls, source=source)) from error
    except SettingsError as error:
        raise BadSettings(f"{error}{f': {error.__cause__}' if error.__cause__ else ''}") from error
    finally:
        _from_file.reset(reading)


def made(cls: type[S], values: Mapping[str, Any]) -> S:
    """Settings from a program's own values, then the environment. Raises BadSettings."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise BadSettings(explain(error, cls)) from error


def explain(error: ValidationError, cls: type[BaseModel], *, source: str | None = None) -> str:
    """Say in one line a key what pydantic found wrong."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = nearest(key, _keys(cls))
            lines.append(f"unknown setting {key}{f' in {source}' if source else ''}{close}")
        elif item["type"] == "missing":
            lines.append(f"setting {key} is missing; give --{key.replace('_', '-')}")
        elif not key:  # settings that do not go together
            lines.append(str(item.get("ctx", {}).get("error", item["msg"])))
        else:
            lines.append(f"setting {key}: {item['msg']} (got {item.get('input')!r})")
    return "; ".join(lines)


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known word nearest to `word`; empty where none is near."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _keys(cls: type[BaseModel], before: str = "") -> list[str]:
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(before + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _keys(field.annotation, f"{before}{name}.")
    return keys


def _refuse_unknown_environment(cls: type[BaseModel], prefix: str) -> None:
    known = {f"{prefix}{key.replace('.', '__')}".upper() for key in _keys(cls)}
    for name in sorted(os.environ):
        if prefix and name.upper().startswith(prefix.upper()) and name.upper() not in known:
            raise BadSettings(f"unknown environment variable {name}{nearest(name, known)}")


def _file_named(argv: Sequence[str]) -> str | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config")
    try:
        found: str | None = parser.parse_known_args(list(argv))[0].config
    except argparse.ArgumentError as error:
        raise BadSettings(str(error)) from error
    return found


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise BadSettings(f"{path} has {path.stat().st_size} bytes; settings need fewer")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSettings(f"cannot read --config {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadSettings(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadSettings(
            f"{path} holds a {type(values).__name__}; a mapping of settings is needed"
        )
    return _underscored(values)


def _underscored(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(key).replace("-", "_"): _underscored(value) if isinstance(value, dict) else value
        for key, value in values.items()
    }


def run_program(main: Any, argv: Sequence[str] | None, *, program: str) -> int:
    """Run a command; one line to standard error and exit code 1 (2 for settings) on its errors.

    What it writes is for the user who runs it alone.
    """
    os.umask(0o077)
    try:
        main(sys.argv[1:] if argv is None else argv)
    except BadSettings as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 2
    except FedPDPOError as error:
        sys.stderr.write(f"{program}: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
