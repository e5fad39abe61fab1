"""What an operator asks of a running server, from a terminal."""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from pydantic import Field
from rich.console import Console

from fedpdpo.client.channel import AccessSettings, open_channel
from fedpdpo.common.errors import Refused
from fedpdpo.common.table import status_table
from fedpdpo.v1 import operator_pb2 as pb
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub

_CALL_S = 10.0


class ServerAddress(AccessSettings):
    """Ask a running server."""

    server: str = Field("localhost:50051", description="address of the server, as host:port")


@contextmanager
def _operator(to: ServerAddress) -> Iterator[OperatorServiceStub]:
    with open_channel(to.server, to) as channel:
        try:
            yield OperatorServiceStub(channel)
        except grpc.RpcError as error:
            raise Refused(f"{to.server}: {error.details()}") from error


def show_status(to: ServerAddress, console: Console) -> None:
    """Print the run's status. Raises Refused where the server cannot be reached."""
    with _operator(to) as stub:
        console.print(status_table(stub.GetStatus(pb.GetStatusRequest(), timeout=_CALL_S)))


def show_events(to: ServerAddress, console: Console, *, follow: bool) -> None:
    """Print the run's events, and those to come where asked. Raises Refused."""
    with _operator(to) as stub:
        timeout = None if follow else _CALL_S
        request = pb.WatchEventsRequest(follow=follow)
        for event in stub.WatchEvents(request, timeout=timeout):
            at = datetime.datetime.fromtimestamp(event.at_s, datetime.UTC).isoformat("T", "seconds")
            console.print(f"{at} {event.kind} {event.message}", highlight=False, soft_wrap=True)


def pause(to: ServerAddress) -> None:
    """Let no further round open. Raises Refused."""
    with _operator(to) as stub:
        stub.PauseRun(pb.PauseRunRequest(), timeout=_CALL_S)


def resume(to: ServerAddress) -> None:
    """Let rounds open again. Raises Refused."""
    with _operator(to) as stub:
        stub.ResumeRun(pb.ResumeRunRequest(), timeout=_CALL_S)


def stop(to: ServerAddress) -> None:
    """End the run with its last published adapter. Raises Refused."""
    with _operator(to) as stub:
        stub.StopRun(pb.StopRunRequest(), timeout=_CALL_S)
