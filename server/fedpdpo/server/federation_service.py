"""FederationService: unpacks a message, calls one method of the domain, packs the answer."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fedpdpo.common.errors import BadPayload, BadRequest, Stalled
from fedpdpo.common.frames import Chunk
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.run import check_client_id
from fedpdpo.common.wire import run_to_message
from fedpdpo.server import membership
from fedpdpo.server.access import check_speaks_for
from fedpdpo.server.changes import Changes
from fedpdpo.server.exchange import Exchange
from fedpdpo.server.federation import Federation
from fedpdpo.server.intake import Announced, Intake
from fedpdpo.server.tasks import Evaluate, Finish, Train, Wait
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import metrics_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceServicer

_MAX_WAIT_S = 60.0
_TOLD_FOR_S = 1.0


class FederationService(FederationServiceServicer):
    """The federation at the wire."""

    def __init__(self, federation: Federation, turns: Changes) -> None:
        self._federation = federation
        self._intake = Intake(federation)
        self._exchange = Exchange(federation, self._intake)
        self._turns = turns
        self._told: tuple[object, float, str] = (None, 0.0, "")

    def _known(self, request: Any) -> str:
        client_id = check_client_id(request.client_id)
        check_speaks_for(client_id)
        self._federation.check_run(request.run_id)
        return client_id

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        """The run."""
        return pb.GetRunResponse(run=run_to_message(self._federation.run))

    async def Join(self, request: pb.JoinRequest, context: Any) -> pb.JoinResponse:
        """Enter a client."""
        self._known(request)
        run, row = await asyncio.to_thread(lambda: membership.join(self._federation, _new(request)))
        agreed = pb.DeltaFormat(encoding=row.encoding, topk_share=row.topk_share, zstd=row.zstd)
        return pb.JoinResponse(run=run_to_message(run), format=agreed)

    async def GetAssignment(
        self, request: pb.GetAssignmentRequest, context: Any
    ) -> pb.GetAssignmentResponse:
        """The client's task; waits while there is none."""
        client_id = self._known(request)
        loop = asyncio.get_running_loop()
        give_up = loop.time() + min(max(0.0, request.wait_s), _MAX_WAIT_S)  # NaN becomes 0
        while True:
            change = self._turns.next
            task = await asyncio.to_thread(self._federation.task, client_id)
            left_s = give_up - loop.time()
            if not isinstance(task, Wait):
                return packed(task)
            if left_s <= 0:
                reason = await self._reason(change)
                return pb.GetAssignmentResponse(wait=pb.WaitTask(reason=reason))
            await self._turns.wait(change, at_most_s=left_s)

    async def _reason(self, change: object) -> str:
        """What the run waits for. A crowd that asks is told what was found out last second."""
        asked, at_s, reason = self._told
        now_s = asyncio.get_running_loop().time()
        if asked is not change or now_s > at_s + _TOLD_FOR_S:
            reason = await asyncio.to_thread(self._federation.waiting_for)
            self._told = change, now_s, reason
        return reason

    async def PullAdapter(  # type: ignore[override]  # it writes to the context
        self, request: pb.PullAdapterRequest, context: Any
    ) -> None:
        """Send an adapter from where the client's copy ends."""
        client_id = self._known(request)
        await self._exchange.send(client_id, request.adapter_version, request.held, context)

    async def PushDelta(  # type: ignore[override]  # it writes to the context
        self, request_iterator: AsyncIterator[pb.PushDeltaRequest | Chunk], context: Any
    ) -> None:
        """Take a delta: header, then the chunks that are not here yet."""
        try:
            async with asyncio.timeout(self._federation.settings.stall_timeout_s):
                first = await anext(request_iterator, None)
        except TimeoutError:
            raise Stalled("no header came") from None
        if not isinstance(first, pb.PushDeltaRequest) or first.WhichOneof("part") != "header":
            raise BadPayload("a delta begins with its header")
        header = first.header
        announced = Announced(
            client_id=self._known(header),
            round_number=header.round,
            num_pairs=header.num_pairs,
            num_bytes=header.payload.num_bytes,
            sha256=header.payload.sha256,
            report={field.name: value for field, value in header.report.ListFields()},
        )
        await self._exchange.receive(announced, request_iterator, context)

    async def ReportEvaluation(
        self, request: pb.ReportEvaluationRequest, context: Any
    ) -> pb.ReportEvaluationResponse:
        """Keep held-out metrics."""
        views: dict[str, Metrics] = {}
        for item in request.evaluations:
            known = item.view in (metrics_pb2.VIEW_GLOBAL, metrics_pb2.VIEW_PERSONALIZED)
            if not known or metrics_pb2.View.Name(item.view) in views:
                raise BadRequest(f"the view {item.view} is unknown or comes twice")
            views[metrics_pb2.View.Name(item.view)] = Metrics(
                item.metrics.implicit_accuracy,
                item.metrics.explicit_accuracy,
                item.metrics.combined_accuracy,
                item.metrics.margin,
                item.metrics.loss,
                item.metrics.chosen_shift,
            )
        await asyncio.to_thread(
            self._intake.evaluation,
            self._known(request),
            version=request.adapter_version,
            num_pairs=request.num_pairs,
            views=views,
        )
        return pb.ReportEvaluationResponse()

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatResponse:
        """Note a sign of life."""
        client_id = self._known(request)
        await asyncio.to_thread(
            membership.heartbeat,
            self._federation,
            client_id,
            activity=request.activity,
            progress=request.progress,
        )
        return pb.HeartbeatResponse()

    async def Leave(self, request: pb.LeaveRequest, context: Any) -> pb.LeaveResponse:
        """Let a client go."""
        await asyncio.to_thread(membership.leave, self._federation, self._known(request))
        return pb.LeaveResponse()


def packed(task: Evaluate | Train | Finish) -> pb.GetAssignmentResponse:
    """A task as the client is told it."""
    match task:
        case Evaluate(version):
            return pb.GetAssignmentResponse(evaluate=pb.EvaluateTask(adapter_version=version))
        case Train(number):
            train = pb.TrainTask(round=number, adapter_version=number - 1)
            return pb.GetAssignmentResponse(train=train)
        case Finish(version, stopped):
            finish = pb.FinishTask(adapter_version=version, stopped=stopped)
            return pb.GetAssignmentResponse(finish=finish)


def _new(request: pb.JoinRequest) -> membership.Newcomer:
    """A client as its message tells it; checking a large layout takes a moment."""
    shapes = tuple((spec.name, tuple(spec.shape)) for spec in request.lora_layout)
    return membership.Newcomer(
        client_id=request.client_id,
        backbone_fingerprint=request.backbone_fingerprint,
        tokenizer_fingerprint=request.tokenizer_fingerprint,
        layout=LoraLayout(shapes),
        num_train_pairs=request.num_train_pairs,
        num_eval_pairs=request.num_eval_pairs,
        encodings=tuple(request.encodings),
        zstd=request.zstd,
    )
