"""Log lines: one a line, `key=value`, on standard error; rich where a person watches."""

import logging
import sys

from rich.console import Console
from rich.logging import RichHandler

#: The terminal that people watch; progress bars and tables go here too.
console = Console(stderr=True)


def start_logging(level: str = "INFO") -> None:
    """Send log lines to standard error, in colour on a terminal and plain elsewhere."""
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "urllib3", "filelock", "transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def fields(event: str, **values: object) -> str:
    """Format an event and its values as `event key=value ...`, quoting where there are spaces."""
    shown = []
    for key, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        shown.append(f"{key}={text!r}" if " " in text or not text else f"{key}={text}")
    return " ".join([event, *shown])
