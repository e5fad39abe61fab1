"""How many bytes of payloads went to and came from each client, as they travelled."""

import threading
from collections import Counter

from fedpdpo.server.rows import ClientRow


class Traffic:
    """Counts in memory what a client's row does not hold yet; any thread may call it.

    A server that dies, or a transaction that fails, forgets that little.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()

    def sent(self, client_id: str, num_bytes: int) -> None:
        """Count bytes that went to a client."""
        with self._lock:
            self._sent[client_id] += num_bytes

    def received(self, client_id: str, num_bytes: int) -> None:
        """Count bytes that came from a client."""
        with self._lock:
            self._received[client_id] += num_bytes

    def put_into(self, row: ClientRow) -> None:
        """Move what was counted into the client's row."""
        with self._lock:
            row.bytes_sent += self._sent.pop(row.client_id, 0)
            row.bytes_received += self._received.pop(row.client_id, 0)

    def totals(self, row: ClientRow) -> tuple[int, int]:
        """Bytes sent and received, those included that the row does not hold."""
        with self._lock:
            return (
                row.bytes_sent + self._sent[row.client_id],
                row.bytes_received + self._received[row.client_id],
            )
