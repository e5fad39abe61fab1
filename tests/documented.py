"""The commands of README.md and docs/*.md, read out of their blocks as a reader would copy them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from fedpdpo.client.settings import ClientSettings
from fedpdpo.client.tool.command import COMMANDS, ELSEWHERE
from fedpdpo.common.settings import Settings
from fedpdpo.server.settings import ServerSettings

ROOT = Path(__file__).parents[1]
SHELLS = ("", "sh", "shell", "bash", "console")
ELLIPSIS = re.compile(r"\s(…|\.\.\.)$")
_COMMENT = re.compile(r"\s+#\s.*$")
_WHICH = re.compile(r"\$\(which (\S+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: The models that parse each program's flags.
PROGRAMS: dict[str, type[Settings]] = {
    "fedpdpo-server": ServerSettings,
    "fedpdpo-client": ClientSettings,
    **{f"fedpdpo {name}": one.settings for name, one in COMMANDS.items()},
    **{f"fedpdpo {one.name}": one.load().settings for one in entry_points(group=ELSEWHERE)},
}


@dataclass(frozen=True)
class Block:
    """Lines that stand apart on a page: commands, a file, or what a program says."""

    page: str
    lines: tuple[str, ...]

    @property
    def file(self) -> str | None:
        """The name of the file that it shows, as a comment at its beginning gives it."""
        found = re.match(r"# (\S+\.(?:yaml|toml|json))\b", self.lines[0])
        return found[1] if found else None

    @property
    def is_python(self) -> bool:
        """Whether it is Python: it begins with an import."""
        return self.lines[0].startswith(("from ", "import "))


@dataclass(frozen=True)
class Command:
    """A line for a shell, without the comment behind it."""

    page: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def program(self) -> str | None:
        """Which of our programs it starts, as the last one does in `env fedpdpo-server`."""
        return self._split()[0]

    @property
    def arguments(self) -> list[str]:
        """What our program is given."""
        return self._split()[1]

    def _split(self) -> tuple[str | None, list[str]]:
        words = shlex.split(_WHICH.sub(r"\1", ELLIPSIS.sub("", self.text)))
        for at in reversed(range(len(words))):
            for length in (3, 2, 1):
                name = " ".join(words[at : at + length])
                if name in PROGRAMS:
                    return name, words[at + length :]
        return None, []


def pages() -> dict[str, str]:
    """The documentation's pages and their text, by their path in the repository."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


def blocks(page: str, text: str) -> Iterator[Block]:
    """Fences of a shell and indented blocks, in order; a blank line ends one that is no Python."""
    lines: list[str] = []
    plain = _FENCE.sub(lambda found: _indented(found[1], found[2]), text)
    before = ""
    for line in [*plain.splitlines(), "end"]:
        if line.startswith("    ") and (lines or not before.strip()):
            lines.append(line[4:])
        elif lines and (line.strip() or not Block(page, tuple(lines)).is_python):
            yield Block(page, tuple(lines))
            lines = []
        before = line


def commands(block: Block) -> Iterator[Command]:
    """A block's commands; a line that ends in a backslash goes on in the next."""
    for line in "\n".join(block.lines).replace("\\\n", " ").splitlines():
        text = _COMMENT.sub("", line.strip())
        if text and not text.startswith("#"):
            yield Command(block.page, text)


def spans(text: str) -> Iterator[str]:
    """What stands between backticks within lines."""
    outside = _FENCE.sub("", text)
    for found in re.finditer(r"`([^`]+)`", outside):
        yield " ".join(found[1].split())


def flags(program: str) -> set[str]:
    """All flags that a program takes, with those of its groups."""
    return {"--help", "--version", *_flags(PROGRAMS[program], "")}


def _flags(cls: type, before: str) -> Iterator[str]:
    for name, field in cls.model_fields.items():  # type: ignore[attr-defined]
        one = before + name.replace("_", "-")
        yield from (f"--{one}", *([f"--no-{one}"] if field.annotation is bool else []))
        if hasattr(field.annotation, "model_fields"):
            yield from _flags(field.annotation, f"{one}.")


def _indented(language: str, content: str) -> str:
    if language not in SHELLS:
        return ""
    return "\n" + "".join(f"    {line}\n" for line in content.splitlines()) + "\n"
