"""What clients fetch: published adapters."""

from fedpdpo.server.federation import Federation
from fedpdpo.server.store import AdapterRow


def adapter(federation: Federation, client_id: str, version: int) -> tuple[AdapterRow, bool]:
    """A published adapter, and whether it goes by zstd, for a client that may have it.

    Raises NotFound.
    """
    with federation.reading() as ledger:
        zstd = ledger.client(client_id).zstd
        return ledger.adapter(version), zstd


def sent(federation: Federation, client_id: str, num_bytes: int) -> None:
    """Count payload bytes that went to a client. Raises NotFound."""
    with federation.writing() as ledger:
        ledger.client(client_id).bytes_sent += num_bytes
