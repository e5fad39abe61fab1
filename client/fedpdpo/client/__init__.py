"""The client daemon: trains on local preferences, keeps the private parts at home.

`Client` is it for notebooks and programs, `PersonalPolicy` the model that comes out of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpdpo.client.embedded import Client
    from fedpdpo.client.tool.personal import PersonalPolicy

__all__ = ["Client", "PersonalPolicy"]


def __getattr__(name: str) -> Any:
    """Import what the package shows when it is asked for."""
    if name == "Client":
        from fedpdpo.client.embedded import Client

        return Client
    if name == "PersonalPolicy":
        from fedpdpo.client.tool.personal import PersonalPolicy

        return PersonalPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
