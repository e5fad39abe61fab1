"""A file of the operator's that is read again when it changes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched(Generic[T]):
    """What `read` makes of some files.

    The first reading raises BadSettings where they are wrong. A later change that is wrong is
    logged, and what was read before holds.
    """

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        self._read = read
        self._paths = paths
        self._seen = self._stamps()
        self._value = read()

    @property
    def value(self) -> T:
        """What the files say now."""
        stamps = self._stamps()
        if stamps != self._seen:
            self._seen = stamps
            try:
                self._value = self._read()
                log.info(fields("read_again", files=",".join(map(str, self._paths))))
            except BadSettings as error:
                log.error(fields("not_read_again", reason=str(error), holds="what was before"))
        return self._value

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
