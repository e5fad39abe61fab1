"""Who calls a server: a role, and for a client its id."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do: docs/security.md has the table."""

    CLIENT = "client"
    OPERATOR = "operator"


@dataclass(frozen=True)
class Caller:
    """Somebody whose certificate or token says who they are."""

    role: Role
    name: str

    def __str__(self) -> str:
        return f"{self.role} {self.name}"
