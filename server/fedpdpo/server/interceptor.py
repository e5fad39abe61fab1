"""The gate of every call: who may make it, and which status an error becomes."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import ServerInterceptor

from fedpdpo.common.errors import BadRequest, Busy, FedPDPOError, StorageAway
from fedpdpo.common.frames import PULL, PUSH, packed, parser
from fedpdpo.common.log import fields, printable
from fedpdpo.common.statuses import status_of, trailers_of
from fedpdpo.common.tracing import served
from fedpdpo.server.access import Access, caller_told
from fedpdpo.server.meters import Meters
from fedpdpo.v1 import federation_pb2 as pb

log = logging.getLogger(__name__)

_PARSERS = {PUSH: parser(pb.PushDeltaRequest)}
_PACKERS = {PULL: packed}

#: Stands for a message that could not be read; in a stream it is no kind of message.
_MALFORMED = object()

#: Calls that come again and again and do nothing of their own.
_UNTRACED = {f"/fedpdpo.v1.FederationService/{name}" for name in ("GetAssignment", "Heartbeat")}

_MAX_DETAILS_CHARS = 600  # more would not fit the trailers, and become another status


class Gate(ServerInterceptor):
    """Lets in the calls that `access` admits, and turns errors into statuses.

    A FedPDPOError becomes its status with its message; any other error becomes INTERNAL. Chunks go
    past the generated classes. Every handler is a coroutine; one that streams its answer writes to
    the context.
    """

    def __init__(self, access: Access, meters: Meters) -> None:
        self._access = access
        self._meters = meters

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of this project's own RPCs."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith("/fedpdpo."):
            return handler
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        return make(
            self._guarded(inner, method),
            request_deserializer=_lenient(_PARSERS.get(method, handler.request_deserializer)),
            response_serializer=_PACKERS.get(method, handler.response_serializer),
        )

    def _guarded(self, inner: Any, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            try:
                self._access.admit(method, context)
                if request is _MALFORMED:
                    raise BadRequest("the message is not one of this protocol")
                if method in _UNTRACED:
                    return await inner(request, context)
                with served(method, context.invocation_metadata() or ()):
                    return await inner(request, context)
            except Exception as error:
                if not isinstance(error, grpc.aio.AbortError):
                    name = method.rpartition("/")[2]
                    self._meters.refused.labels(name, type(error).__name__).inc()
                return await _abort(context, error, method)

        return answer


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Reads messages as `parse` does, and gives _MALFORMED for what is none.

    gRPC's own answer to such a message is a traceback in the log and UNKNOWN, which is retried.
    """

    def parsed(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return _MALFORMED

    return parsed


async def _abort(context: Any, error: Exception, method: str) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, FedPDPOError):
        reason = printable(str(error))[:_MAX_DETAILS_CHARS]
        level = logging.DEBUG if isinstance(error, Busy) else logging.WARNING
        name, caller = method.rpartition("/")[2], caller_told(context)
        log.log(level, fields("refused", method=name, caller=caller, reason=reason))
        if isinstance(error, StorageAway):
            reason = error.TOLD
        await context.abort(status_of(error), reason, trailers_of(error, reason))
    log.error(fields("failed", method=method, error=repr(error)), exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "the server failed; its log says why")
