"""Which gRPC status each error becomes. The only place where the two meet."""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from fedpdpo.common import errors

_STATUSES: dict[type[errors.FedPDPOError], grpc.StatusCode] = {
    errors.NotIdentified: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadPayload: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: grpc.StatusCode.OUT_OF_RANGE,
    errors.WrongDigest: grpc.StatusCode.DATA_LOSS,
    errors.CutOff: grpc.StatusCode.DATA_LOSS,
    errors.Stalled: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Superseded: grpc.StatusCode.ABORTED,
    errors.Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageAway: grpc.StatusCode.UNAVAILABLE,
    errors.Mismatch: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotOpen: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyPushed: grpc.StatusCode.ALREADY_EXISTS,
}

#: Statuses after which the same request may succeed later.
RETRIED = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)


def status_of(error: errors.FedPDPOError) -> grpc.StatusCode:
    """The status of an error's nearest listed class; INTERNAL where none is listed."""
    for kind in type(error).__mro__:
        if kind in _STATUSES:
            return _STATUSES[kind]
    return grpc.StatusCode.INTERNAL


def trailers_of(error: errors.FedPDPOError, details: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that tells when to ask again (google.rpc.RetryInfo), if an error does.

    `details` must be those of the status.
    """
    if not isinstance(error, errors.Busy):
        return ()
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(1e9 * error.again_in_s))
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    code, _ = status_of(error).value
    rich = status_pb2.Status(code=code, message=details, details=[packed])
    return tuple(rpc_status.to_status(rich).trailing_metadata)


def again_in_s(error: grpc.RpcError) -> float:
    """When a server says that it may be asked again, in seconds from now; 0 where it does not."""
    try:
        rich = rpc_status.from_call(error)
    except ValueError:
        return 0.0
    info = error_details_pb2.RetryInfo()
    for detail in rich.details if rich else ():
        if detail.Unpack(info):
            return max(0.0, float(info.retry_delay.ToNanoseconds()) / 1e9)
    return 0.0
