"""A gRPC proxy on loopback that makes every call twice, as a network that repeats itself would."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc

_AGAIN_S = 1.0


class Repeater(grpc.GenericRpcHandler):
    """Forwards calls of any kind, and sends each one's messages again once it is answered."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.num_repeated = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """A handler for any method: at the wire, one message is a stream of one."""
        forward: Any = self._channel.stream_stream(handler_call_details.method)

        def answer(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            sent: list[bytes] = []

            def noted() -> Iterator[bytes]:
                for request in requests:
                    sent.append(request)
                    yield request

            call = forward(noted())
            context.add_callback(call.cancel)
            try:
                yield from call
            except grpc.RpcError:
                context.set_trailing_metadata(call.trailing_metadata())
                context.abort(call.code(), call.details())
            with suppress(grpc.RpcError):
                for _ in forward(iter(sent), timeout=_AGAIN_S):
                    pass
                self.num_repeated += 1

        return grpc.stream_stream_rpc_method_handler(answer)


@contextmanager
def repeated(target: int) -> Iterator[tuple[Repeater, int]]:
    """A proxy to a server's port, and its own port."""
    with grpc.insecure_channel(f"127.0.0.1:{target}") as channel:
        repeater = Repeater(channel)
        server = grpc.server(ThreadPoolExecutor(16), handlers=[repeater])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield repeater, port
        finally:
            server.stop(None).wait()
