"""OperatorService: status, events, pause, resume, stop."""

import asyncio
from typing import Any

from fedpdpo.server.changes import Changes
from fedpdpo.server.federation import Federation
from fedpdpo.server.onlookers import Onlookers
from fedpdpo.server.operations import events_after, set_paused, stop
from fedpdpo.server.status import status
from fedpdpo.v1 import operator_pb2 as pb
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceServicer


class OperatorService(OperatorServiceServicer):
    """The operator's view at the wire."""

    def __init__(self, federation: Federation, changes: Changes, onlookers: Onlookers) -> None:
        self._federation = federation
        self._changes = changes
        self._onlookers = onlookers

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """A snapshot."""
        found = await asyncio.to_thread(status, self._federation)
        ended = found.phase in (pb.PHASE_FINISHED, pb.PHASE_STOPPED)
        self._onlookers.looked(context.peer(), again_in_s=request.again_in_s, ended=ended)
        return found

    async def WatchEvents(  # type: ignore[override]  # it writes to the context
        self, request: pb.WatchEventsRequest, context: Any
    ) -> None:
        """Past events, then those that come, until the run ends."""
        last = request.after
        while True:
            change = self._changes.next
            ended = self._federation.stage.ended
            while events := await asyncio.to_thread(events_after, self._federation, last):
                for event in events:
                    last = event.number
                    told = pb.WatchEventsResponse(
                        number=last, at_s=event.at_s, kind=event.kind, message=event.message
                    )
                    await context.write(told)
            if ended or not request.follow:
                return
            await self._changes.wait(change, at_most_s=60.0)

    async def PauseRun(self, request: pb.PauseRunRequest, context: Any) -> pb.PauseRunResponse:
        """Pause."""
        await asyncio.to_thread(set_paused, self._federation, True)
        return pb.PauseRunResponse()

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        """Resume."""
        await asyncio.to_thread(set_paused, self._federation, False)
        return pb.ResumeRunResponse()

    async def StopRun(self, request: pb.StopRunRequest, context: Any) -> pb.StopRunResponse:
        """Stop."""
        await asyncio.to_thread(stop, self._federation)
        return pb.StopRunResponse()
