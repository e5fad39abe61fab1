"""Who may make which call: every row of the table, for every kind of caller, on real sockets."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from admitted import Consortium, channel_of
from fedpdpo.common.identity import Role
from fedpdpo.common.wire import layout_to_messages
from fedpdpo.server.access import WHO
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import operator_pb2, session_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from fedpdpo.v1.session_pb2_grpc import SessionServiceStub
from processes import until
from serving import BACKBONE, LAYOUT, TOKENIZER, Client

STOPPING_LAST = sorted(WHO, key=lambda name: (name.endswith("StopRun"), name))
NO_IDENTITY, FORBIDDEN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


def calls(channel: grpc.Channel, run_id: str, name: str) -> dict[str, Callable[[], Any]]:
    """Every call of the server, made for a client."""
    clients, operators = FederationServiceStub(channel), OperatorServiceStub(channel)
    who: Any = {"run_id": run_id, "client_id": name}
    join = pb.JoinRequest(
        **who,
        backbone_fingerprint=BACKBONE,
        tokenizer_fingerprint=TOKENIZER,
        lora_layout=layout_to_messages(LAYOUT),
        num_train_pairs=10,
        num_eval_pairs=4,
    )
    header = pb.DeltaHeader(**who, round=1, num_pairs=1)
    return {
        "OpenSession": lambda: SessionServiceStub(channel).OpenSession(
            session_pb2.OpenSessionRequest(token="fedpdpo_wrong"), timeout=10
        ),
        "GetRun": lambda: clients.GetRun(pb.GetRunRequest(), timeout=10),
        "Join": lambda: clients.Join(join, timeout=10),
        "GetAssignment": lambda: clients.GetAssignment(pb.GetAssignmentRequest(**who), timeout=10),
        "PullAdapter": lambda: list(clients.PullAdapter(pb.PullAdapterRequest(**who), timeout=10)),
        "PushDelta": lambda: list(
            clients.PushDelta(iter([pb.PushDeltaRequest(header=header)]), timeout=10)
        ),
        "ReportEvaluation": lambda: clients.ReportEvaluation(
            pb.ReportEvaluationRequest(**who), timeout=10
        ),
        "Heartbeat": lambda: clients.Heartbeat(pb.HeartbeatRequest(**who), timeout=10),
        "Leave": lambda: clients.Leave(pb.LeaveRequest(**who), timeout=10),
        "GetStatus": lambda: operators.GetStatus(operator_pb2.GetStatusRequest(), timeout=10),
        "WatchEvents": lambda: list(
            operators.WatchEvents(operator_pb2.WatchEventsRequest(), timeout=10)
        ),
        "PauseRun": lambda: operators.PauseRun(operator_pb2.PauseRunRequest(), timeout=10),
        "ResumeRun": lambda: operators.ResumeRun(operator_pb2.ResumeRunRequest(), timeout=10),
        "StopRun": lambda: operators.StopRun(operator_pb2.StopRunRequest(), timeout=10),
    }


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code()
    return grpc.StatusCode.OK


@dataclass
class Secured:
    """A server that asks who calls, its port, its run, and channels of those who may call it."""

    port: int
    run_id: str
    channels: Mapping[str, grpc.Channel]
    refusal: grpc.StatusCode


@pytest.fixture(scope="module", params=["certificates", "tokens"])
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """A server that ada has joined."""
    consortium = Consortium(tmp_path_factory.mktemp("consortium"))
    by_token = request.param == "tokens"
    made = consortium.token if by_token else consortium.certificate
    people = {"ada": made("ada"), "bea": made("bea"), "operator": made("root", Role.OPERATOR)}
    how: dict[str, Any] = {"tokens": consortium.tokens} if by_token else {}
    with consortium.serving(**how) as port, ExitStack() as closing:
        channels = {
            name: closing.enter_context(channel_of(port, access)) for name, access in people.items()
        }
        channels["anonymous"] = closing.enter_context(consortium.stranger(port))
        ada = Client(FederationServiceStub(channels["ada"]), "ada")
        ada.join()
        refusal = NO_IDENTITY if by_token else grpc.StatusCode.UNAVAILABLE
        yield Secured(port, ada.run_id, channels, refusal)


def test_the_log_names_who_was_refused(secured: Secured, caplog: pytest.LogCaptureFixture) -> None:
    stub = FederationServiceStub(secured.channels["ada"])
    wanted = pb.PullAdapterRequest(run_id=secured.run_id, client_id="ada", adapter_version=9)
    with pytest.raises(grpc.RpcError):
        list(stub.PullAdapter(wanted))
    line = "refused method=PullAdapter caller='client ada'"
    until(lambda: line in caplog.text, line)


def test_the_table_has_a_row_for_every_call() -> None:
    modules = (pb, operator_pb2, session_pb2)
    declared = {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert declared == set(WHO)


@pytest.mark.parametrize("method", STOPPING_LAST)
@pytest.mark.parametrize("caller", ["anonymous", "bea", "ada", "operator"])
def test_a_call_is_for_those_whose_row_says_so(secured: Secured, method: str, caller: str) -> None:
    name = method.rpartition("/")[2]
    code = code_of(calls(secured.channels[caller], secured.run_id, "ada")[name])
    if caller == "anonymous":
        assert code is secured.refusal
    elif not WHO[method]:
        by_token = secured.refusal is NO_IDENTITY
        assert code is (NO_IDENTITY if by_token else grpc.StatusCode.FAILED_PRECONDITION)
    elif Role.OPERATOR in WHO[method]:
        assert code is (grpc.StatusCode.OK if caller == "operator" else FORBIDDEN)
    elif caller == "operator" or (caller == "bea" and name != "GetRun"):
        assert code is FORBIDDEN
    else:
        assert code not in (NO_IDENTITY, FORBIDDEN, grpc.StatusCode.UNAVAILABLE)
