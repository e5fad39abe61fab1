"""What clients fetch: published adapters."""

from fedpdpo.server.federation import Federation
from fedpdpo.server.store import AdapterRow


def adapter(federation: Federation, client_id: str, version: int) -> AdapterRow:
    """A published adapter, for a client that may have it. Raises NotFound."""
    with federation.reading() as ledger:
        ledger.client(client_id)
        return ledger.adapter(version)


def sent(federation: Federation, client_id: str, num_bytes: int) -> None:
    """Count payload bytes that went to a client. Raises NotFound."""
    with federation.writing() as ledger:
        ledger.client(client_id).bytes_sent += num_bytes
