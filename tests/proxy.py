"""A proxy on loopback that watches, cuts, freezes, delays and throttles connections."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Forwards connections to a server's port.

    `up` and `down` are the bytes that clients sent and got. `cut_up_after` and `cut_down_after`
    close a connection once it has carried so many bytes that way; `frozen` forwards nothing;
    `delay_s` holds each piece back; `bytes_per_s` is the speed of each way, 0 for any.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: set[socket.socket] = set()
        self._up: list[bytes] = []
        self.port = int(self._listener.getsockname()[1])
        self.num_connections = 0
        self.down_bytes = 0
        self.cut_up_after: int | None = None
        self.cut_down_after: int | None = None
        self.frozen = False
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def up(self) -> bytes:
        """Every byte that clients sent."""
        return b"".join(self._up)

    def cut(self) -> None:
        """Close all connections."""
        for one in list(self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept no more connections, and close those that are there."""
        with suppress(OSError):  # else a blocked accept takes one more
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            self.num_connections += 1
            self._sockets |= {client, server}
            for ends in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._forward, args=ends, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, upward: bool) -> None:
        carried = 0
        try:
            while piece := source.recv(16384):
                if upward:
                    self._up.append(piece)
                else:
                    self.down_bytes += len(piece)
                while self.frozen:
                    time.sleep(0.01)
                pause_s = self.delay_s
                if self.bytes_per_s:
                    pause_s += len(piece) / self.bytes_per_s
                time.sleep(pause_s)
                target.sendall(piece)
                carried += len(piece)
                most = self.cut_up_after if upward else self.cut_down_after
                if most is not None and carried >= most:
                    return
        except OSError:
            pass
        finally:
            for end in (source, target):
                self._sockets.discard(end)
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


@contextmanager
def proxied(target: int) -> Iterator[Proxy]:
    """A proxy that is closed at the end."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
