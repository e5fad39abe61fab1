"""Enrolment tokens: who may come in without a certificate of its own.

A token is 256 random bits, so its SHA-256 says nothing of it. A server knows a file of such
digests, one a line, and reads it again when it changes; removing a line revokes its token:

    ROLE NAME EXPIRES SHA256     client ada 2027-05-01 9f86d0...
"""

import datetime
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedpdpo.common.errors import BadRequest, BadSettings
from fedpdpo.common.identity import Caller, Role
from fedpdpo.common.run import check_client_id

#: What every token begins with, for people and for programs that look for leaked secrets.
PREFIX = "fedpdpo_"

_MAX_BYTES = 2**24
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Enrolment:
    """A line of the file: whose token this is, its digest, and the last day on which it holds."""

    caller: Caller
    expires: datetime.date
    sha256: bytes

    def __str__(self) -> str:
        return f"{self.caller} {self.expires} {self.sha256.hex()}"

    @property
    def holds(self) -> bool:
        """Whether the last day has not passed."""
        return datetime.datetime.now(datetime.UTC).date() <= self.expires

    @classmethod
    def parse(cls, line: str) -> "Enrolment":
        """Read a line. Raises ValueError."""
        role, name, expires, digest = line.split()
        if not _DIGEST.fullmatch(digest):
            raise ValueError("no SHA-256")
        try:
            caller = Caller(Role(role), check_client_id(name))
        except BadRequest as error:
            raise ValueError(str(error)) from error
        return cls(caller, datetime.date.fromisoformat(expires), bytes.fromhex(digest))


def new_token() -> str:
    """A token that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> bytes:
    """The 32 bytes by which a token is known."""
    return hashlib.sha256(token.encode()).digest()


def enrolment_of(enrolments: Iterable[Enrolment], token: str) -> Enrolment | None:
    """The line of a token, while it holds; each line is compared in constant time."""
    found, digest = None, digest_of(token)
    for enrolment in enrolments:
        if hmac.compare_digest(enrolment.sha256, digest) and enrolment.holds:
            found = enrolment
    return found


def read_enrolments(path: Path) -> list[Enrolment]:
    """All lines of a file but empty ones and those that begin with #.

    Raises BadSettings, which names the line, for a malformed one.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadSettings(f"{path} has {path.stat().st_size} bytes; tokens need fewer")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadSettings(f"cannot read {path}: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            found.append(Enrolment.parse(line))
        except ValueError as error:
            raise BadSettings(
                f"{path} line {number} is not ROLE NAME EXPIRES SHA256 ({error}); "
                "fedpdpo token writes such lines"
            ) from error
    return found
