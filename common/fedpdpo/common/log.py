"""Log lines on standard error: an event and its values, for people or as JSON for programs."""

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter
from rich.console import Console
from rich.logging import RichHandler

#: The terminal that people watch; progress bars and tables go here too.
console = Console(stderr=True)


def start_logging(level: str = "INFO", *, form: Literal["text", "json"] = "text") -> None:
    """Send log lines to standard error: as JSON, in colour on a terminal, or plain elsewhere."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(
            JsonFormatter(
                "{levelname}{name}{message}",
                style="{",
                rename_fields={"levelname": "level", "name": "logger", "message": "event"},
                timestamp="at",
            )
        )
    elif console.is_terminal:
        handler = RichHandler(console=console, show_path=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "urllib3", "filelock", "transformers", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def printable(text: str) -> str:
    """A text from outside without what changes a terminal or is no character."""
    return "".join(letter for letter in text if letter.isprintable())


class Fields(dict[str, object]):
    """An event and its values; as text `event key=value ...`, quoted where there are spaces."""

    def __str__(self) -> str:
        return " ".join((str(self["event"]), self.values_told)).rstrip()

    @property
    def values_told(self) -> str:
        """The values as text, without the event."""
        shown = []
        for key, value in self.items():
            if key != "event":
                text = f"{value:.4g}" if isinstance(value, float) else str(value)
                plain = text.isprintable() and " " not in text and text
                shown.append(f"{key}={text}" if plain else f"{key}={text!r}")
        return " ".join(shown)


def fields(event: str, **values: object) -> Fields:
    """What is logged: an event and its values."""
    return Fields(event=event, **values)
