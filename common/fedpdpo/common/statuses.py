"""Which gRPC status each error becomes. The only place where the two meet."""

import grpc

from fedpdpo.common import errors

_STATUSES: dict[type[errors.FedPDPOError], grpc.StatusCode] = {
    errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.BadPayload: grpc.StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: grpc.StatusCode.OUT_OF_RANGE,
    errors.WrongDigest: grpc.StatusCode.DATA_LOSS,
    errors.StorageFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
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
