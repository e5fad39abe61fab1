"""The floor: what a round of payloads costs with grpc.aio and numpy alone, without any care.

No digest, no disk, no check, nothing resumed, no quorum: clients fetch 1 MiB chunks of an adapter,
send as many back, the server adds them up in memory and makes the next adapter. The server says
when each round has ended.

    python floor.py server CLIENTS MIB
    python floor.py client PORT MIB ROUNDS
"""

import asyncio
import sys
import time
from typing import Any

import grpc
import numpy as np

CHUNK = 2**20
PULL, PUSH = "/floor/Pull", "/floor/Push"


class Server:
    """Hands out the adapter of a round, adds up what comes, and goes on when all have sent."""

    def __init__(self, clients: int, mib: int) -> None:
        self._clients = clients
        self._adapter = np.zeros(mib * CHUNK // 4, np.float32)
        self._sum = np.zeros_like(self._adapter)
        self._arrived = 0
        self._round = 1
        self._next = asyncio.Event()

    async def pull(self, request: bytes, context: Any) -> None:
        """Send the adapter that round `request` begins from."""
        while self._round < int(request):
            await self._next.wait()
        content = self._adapter.tobytes()
        for at in range(0, len(content), CHUNK):
            await context.write(content[at : at + CHUNK])

    async def push(self, messages: Any, _context: Any) -> bytes:
        """Take a delta."""
        content = b"".join([piece async for piece in messages])
        self._sum += np.frombuffer(content, np.float32)
        self._arrived += 1
        if self._arrived == self._clients:
            self._adapter += self._sum / self._clients
            self._sum[:] = 0
            self._arrived = 0
            print(f"round {self._round} {time.time()}", flush=True)
            self._round += 1
            self._next.set()
            self._next = asyncio.Event()
        return b""


async def serve(clients: int, mib: int) -> None:
    """Serve until ended from outside."""
    served = Server(clients, mib)
    handlers: dict[str, Any] = {
        "Pull": grpc.unary_stream_rpc_method_handler(served.pull),
        "Push": grpc.stream_unary_rpc_method_handler(served.push),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"port {port}", flush=True)
    await server.wait_for_termination()


async def take_part(port: int, mib: int, rounds: int) -> None:
    """Be a client."""
    delta = np.full(mib * CHUNK // 4, 1e-3, np.float32).tobytes()
    chunks = [delta[at : at + CHUNK] for at in range(0, len(delta), CHUNK)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        pull: Any = channel.unary_stream(PULL)
        push: Any = channel.stream_unary(PUSH)
        for number in range(1, rounds + 1):
            async for _ in pull(str(number).encode()):
                pass
            await push(iter(chunks))


if __name__ == "__main__":
    role, *numbers = sys.argv[1:]
    asyncio.run((serve if role == "server" else take_part)(*map(int, numbers)))
