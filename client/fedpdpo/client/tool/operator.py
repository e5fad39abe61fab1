"""What an operator asks of a running server, from a terminal."""

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from pydantic import Field
from rich.console import Console, Group
from rich.live import Live

from fedpdpo.client.channel import AccessSettings, open_channel
from fedpdpo.common.errors import Refused
from fedpdpo.common.table import status_table
from fedpdpo.v1 import operator_pb2 as pb
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub

_CALL_S = 10.0
_ENDED = (pb.PHASE_FINISHED, pb.PHASE_STOPPED)


class ServerAddress(AccessSettings):
    """Which running server is asked, and who asks."""

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
        console.print(status_table(_status(stub)))


def watch_status(
    to: ServerAddress, console: Console, *, every_s: float, patience_s: float = 60.0
) -> None:
    """Show the run's status, again and again until it has ended.

    A server that is away is waited for so long, but for one that has published the last adapter: it
    has ended. Raises Refused.
    """
    with (
        _operator(to) as stub,
        Live(status_table(seen := _status(stub, every_s)), console=console) as live,
    ):
        heard_at_s = time.monotonic()
        while seen.phase not in _ENDED:
            time.sleep(every_s)
            try:
                seen = _status(stub, every_s)
            except grpc.RpcError as error:
                if seen.adapter_version == seen.run.num_rounds:
                    return
                away = error.code() == grpc.StatusCode.UNAVAILABLE
                if not away or time.monotonic() - heard_at_s > patience_s:
                    raise
                live.update(Group(status_table(seen), f"{to.server} is away"), refresh=True)
            else:
                heard_at_s = time.monotonic()
                live.update(status_table(seen), refresh=True)


def _status(stub: OperatorServiceStub, again_in_s: float = 0.0) -> pb.GetStatusResponse:
    request = pb.GetStatusRequest(again_in_s=again_in_s)
    found: pb.GetStatusResponse = stub.GetStatus(request, timeout=_CALL_S)
    return found


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
