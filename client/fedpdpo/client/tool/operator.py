"""What an operator asks of a running server, from a terminal."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from rich.console import Console

from fedpdpo.common.errors import Refused
from fedpdpo.common.table import status_table
from fedpdpo.v1 import operator_pb2 as pb
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub

_CALL_S = 10.0


@contextmanager
def _operator(server: str) -> Iterator[OperatorServiceStub]:
    with grpc.insecure_channel(server) as channel:
        try:
            yield OperatorServiceStub(channel)
        except grpc.RpcError as error:
            raise Refused(f"{server}: {error.details()}") from error


def show_status(server: str, console: Console) -> None:
    """Print the run's status. Raises Refused where the server cannot be reached."""
    with _operator(server) as stub:
        console.print(status_table(stub.GetStatus(pb.GetStatusRequest(), timeout=_CALL_S)))


def show_events(server: str, console: Console, *, follow: bool) -> None:
    """Print the run's events, and those to come where asked. Raises Refused."""
    with _operator(server) as stub:
        timeout = None if follow else _CALL_S
        request = pb.WatchEventsRequest(follow=follow)
        for event in stub.WatchEvents(request, timeout=timeout):
            at = datetime.datetime.fromtimestamp(event.at_s, datetime.UTC).isoformat("T", "seconds")
            console.print(f"{at} {event.kind} {event.message}", highlight=False, soft_wrap=True)


def pause(server: str) -> None:
    """Let no further round open. Raises Refused."""
    with _operator(server) as stub:
        stub.PauseRun(pb.PauseRunRequest(), timeout=_CALL_S)


def resume(server: str) -> None:
    """Let rounds open again. Raises Refused."""
    with _operator(server) as stub:
        stub.ResumeRun(pb.ResumeRunRequest(), timeout=_CALL_S)


def stop(server: str) -> None:
    """End the run with its last published adapter. Raises Refused."""
    with _operator(server) as stub:
        stub.StopRun(pb.StopRunRequest(), timeout=_CALL_S)
