"""The aggregation server: drives rounds, averages LoRA deltas, never sees a preference.

`fedpdpo.server.Server` is it for notebooks and programs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpdpo.server.embedded import Server

__all__ = ["Server"]


def __getattr__(name: str) -> Any:
    """Import what the package shows when it is asked for."""
    if name == "Server":
        from fedpdpo.server.embedded import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
