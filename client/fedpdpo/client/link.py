"""The client's end of the wire: calls the server, tries again until it answers.

Only counts, metrics, names and files of the LoRA layout go through here.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import grpc
from tenacity import RetryCallState, Retrying, wait_random_exponential

from fedpdpo.client.channel import AccessSettings, open_channel
from fedpdpo.client.outcome import TrainedRound
from fedpdpo.client.transfer import Calls, Moved, pull, push
from fedpdpo.common.encoding import DeltaFormat, Encoding
from fedpdpo.common.errors import CutOff, NotOpen, Refused, Stalled, WrongDigest
from fedpdpo.common.layout import LoraLayout
from fedpdpo.common.log import fields
from fedpdpo.common.metrics import Metrics
from fedpdpo.common.run import Run
from fedpdpo.common.statuses import RETRIED, again_in_s
from fedpdpo.common.tensorfile import check_file
from fedpdpo.common.wire import layout_to_messages, run_from_message
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import metrics_pb2, payload_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub

log = logging.getLogger(__name__)

R = TypeVar("R")

Note = Callable[[str], None]


def _unseen(_: object) -> None:
    pass


_BY_LOOPBACK = AccessSettings()

_POLL_S = 30.0
_MAX_WAIT_S = 20.0
_CALL_S = 60.0

#: Failures that a few more tries may not meet: a fault of the server, a session that has ended.
_TRIES = {grpc.StatusCode.INTERNAL: 5, grpc.StatusCode.UNAUTHENTICATED: 3}

#: Failures of a transfer on this side that the next try may not meet.
_PASSING = (WrongDigest, CutOff, Stalled)


class Link:
    """A connection to the server of one run. Close it when done.

    A server that cannot be reached is waited for: without end once the run was joined, and for
    `connect_timeout_s` before. A transfer on which nothing moved for `stall_s` is tried again.
    Every other failure is raised as Refused with the server's words. Raises BadSettings as
    `open_channel` does. `note` is told what is waited
    for, and with an empty text that it is over.
    """

    def __init__(
        self,
        server: str,
        client_id: str,
        *,
        connect_timeout_s: float,
        stall_s: float,
        access: AccessSettings = _BY_LOOPBACK,
    ) -> None:
        self.note: Note = _unseen
        self.format = DeltaFormat()
        self._zstd = False
        self._stall_s = stall_s
        self._server = server
        self._client_id = client_id
        self._run_id = ""
        self._connect_timeout_s = connect_timeout_s
        self._give_up_at: float | None = time.monotonic() + connect_timeout_s
        self._channel = open_channel(server, access)
        self._stub = FederationServiceStub(self._channel)
        self._calls = Calls(self._channel)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def get_run(self) -> Run:
        """The run that the server drives."""
        request = pb.GetRunRequest()
        response = self._call("GetRun", lambda: self._stub.GetRun(request, timeout=_CALL_S))
        run = run_from_message(response.run)
        self._run_id = run.run_id
        return run

    def join(
        self,
        *,
        backbone_fingerprint: str,
        tokenizer_fingerprint: str,
        layout: LoraLayout,
        num_train_pairs: int,
        num_eval_pairs: int,
    ) -> Run:
        """Enter the run; gives it with fingerprints and layout fixed, and sets `format`.

        The time that the model took to load counts for nothing.
        """
        if self._give_up_at is not None:
            self._give_up_at = time.monotonic() + self._connect_timeout_s
        request = pb.JoinRequest(
            run_id=self._run_id,
            client_id=self._client_id,
            backbone_fingerprint=backbone_fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint,
            lora_layout=layout_to_messages(layout),
            num_train_pairs=num_train_pairs,
            num_eval_pairs=num_eval_pairs,
            encodings=list(Encoding),
            zstd=True,
        )
        response = self._call("Join", lambda: self._stub.Join(request, timeout=_CALL_S))
        self._give_up_at = None
        agreed = response.format
        try:
            self.format = DeltaFormat(Encoding(agreed.encoding), agreed.topk_share)
        except ValueError as error:
            raise Refused(f"{self._server} asks for deltas in {agreed.encoding!r:.80}") from error
        self._zstd = agreed.zstd
        return run_from_message(response.run)

    def assignment(self, *, wait_s: float = _POLL_S) -> pb.GetAssignmentResponse:
        """What to do now; waits on the server's side so long while there is nothing."""
        request = pb.GetAssignmentRequest(
            run_id=self._run_id, client_id=self._client_id, wait_s=wait_s
        )
        timeout = wait_s + _CALL_S
        return self._call(
            "GetAssignment", lambda: self._stub.GetAssignment(request, timeout=timeout)
        )

    def pull(self, version: int, path: Path, layout: LoraLayout, moved: Moved = _unseen) -> None:
        """Fetch a global adapter to `path`, whole and checked, going on from what came before.

        `moved` is told how many bytes are here. Raises BadPayload or StorageFull.
        """
        request = pb.PullAdapterRequest(
            run_id=self._run_id, client_id=self._client_id, adapter_version=version
        )
        self._call(
            "PullAdapter",
            lambda: pull(self._calls, request, path, layout, stall_s=self._stall_s, moved=moved),
        )

    def push(self, trained: TrainedRound, layout: LoraLayout, moved: Moved = _unseen) -> None:
        """Send the delta of a trained round; returns when the server has it for good.

        `moved` is told how many bytes are on their way. Raises BadPayload, and sends nothing, where
        the file holds anything but the layout's tensors; NotOpen where the server no longer takes
        it.
        """
        path = trained.delta
        sha256 = check_file(path, self.format.contents(layout))
        header = pb.DeltaHeader(
            run_id=self._run_id,
            client_id=self._client_id,
            round=trained.number,
            num_pairs=trained.num_pairs,
            report=metrics_pb2.TrainingReport(**asdict(trained.report)),
            payload=payload_pb2.PayloadHeader(num_bytes=path.stat().st_size, sha256=sha256),
        )
        try:
            self._call(
                "PushDelta",
                lambda: push(
                    self._calls,
                    header,
                    path,
                    zstd=self._zstd,
                    stall_s=self._stall_s,
                    moved=moved,
                ),
            )
        except Refused as error:
            if error.code in ("FAILED_PRECONDITION", "ALREADY_EXISTS"):
                raise NotOpen(str(error)) from error
            raise

    def report(self, version: int, *, num_pairs: int, views: dict[str, Metrics]) -> None:
        """Tell the held-out metrics of an adapter, by the wire's view names."""
        request = pb.ReportEvaluationRequest(
            run_id=self._run_id,
            client_id=self._client_id,
            adapter_version=version,
            num_pairs=num_pairs,
            evaluations=[
                metrics_pb2.Evaluation(
                    view=metrics_pb2.View.Value(view),
                    metrics=metrics_pb2.PreferenceMetrics(**asdict(metrics)),
                )
                for view, metrics in views.items()
            ],
        )
        self._call(
            "ReportEvaluation", lambda: self._stub.ReportEvaluation(request, timeout=_CALL_S)
        )

    def heartbeat(self, *, activity: str, progress: float) -> None:
        """Give one sign of life; a lost one does not matter."""
        request = pb.HeartbeatRequest(
            run_id=self._run_id,
            client_id=self._client_id,
            activity=activity,
            progress=progress,
        )
        try:
            self._stub.Heartbeat(request, timeout=_CALL_S)
        except (grpc.RpcError, ValueError) as error:
            log.debug(fields("heartbeat_lost", reason=repr(error)))

    def leave(self) -> None:
        """Leave the run, if the server is still there to hear it."""
        request = pb.LeaveRequest(run_id=self._run_id, client_id=self._client_id)
        try:
            self._stub.Leave(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            log.info(fields("left_unheard", reason=_reason(error)))

    def _call(self, method: str, attempt: Callable[[], R]) -> R:
        met: Counter[grpc.StatusCode] = Counter()
        retrying = Retrying(
            retry=lambda state: self._may_pass(state, met),
            wait=_wait_s,
            before_sleep=lambda state: self._say_waiting(method, state),
            reraise=True,
        )
        try:
            found = retrying(attempt)
            self.note("")
            return found
        except (Stalled, CutOff) as error:
            raise Refused(f"{self._server}: {error}") from error
        except grpc.RpcError as error:
            message = f"{self._server}: {_reason(error)}"
            raise Refused(message, code=_code(error).name) from error

    def _may_pass(self, state: RetryCallState, met: Counter[grpc.StatusCode]) -> bool:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, grpc.RpcError):
            code = _code(error)
            met[code] += 1
            if code not in RETRIED and met[code] >= _TRIES.get(code, 1):
                return False
        elif not isinstance(error, _PASSING):
            return False
        return self._give_up_at is None or time.monotonic() < self._give_up_at

    def _say_waiting(self, method: str, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        reason = _reason(error) if isinstance(error, grpc.RpcError) else str(error)
        self.note(f"waiting for the server: {reason}")
        wait_s = state.next_action.sleep if state.next_action else 0.0
        log.warning(
            fields("waiting_for_server", server=self._server, method=method,
                   attempt=state.attempt_number, again_in_s=wait_s, reason=reason)
        )  # fmt: skip


_jitter_s = wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_S)


def _wait_s(state: RetryCallState) -> float:
    """Full jitter, capped, after the delay that the server asks for if it does."""
    error = state.outcome.exception() if state.outcome else None
    asked_s = again_in_s(error) if isinstance(error, grpc.RpcError) else 0.0
    return asked_s + _jitter_s(state)


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN


def _reason(error: grpc.RpcError) -> str:
    code = _code(error)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return "this is a gRPC server, but not a fedpdpo-server of this version"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"the server cannot be reached ({_details(error)})"
    return _details(error)


def _details(error: grpc.RpcError) -> str:
    return (error.details() or "no details") if isinstance(error, grpc.Call) else repr(error)
