"""Tokens and sessions that are stolen, worn out or guessed."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc

from attacks.siege import SESSION_S, Answer, Siege, answer
from fedpdpo.common.tokens import new_token
from fedpdpo.v1 import federation_pb2 as pb
from fedpdpo.v1 import session_pb2
from fedpdpo.v1.federation_pb2_grpc import FederationServiceStub
from fedpdpo.v1.session_pb2_grpc import SessionServiceStub


def _session(siege: Siege, channel: grpc.Channel) -> str:
    request = session_pb2.OpenSessionRequest(token=siege.token)
    return SessionServiceStub(channel).OpenSession(request, timeout=10).session


def _ask_with(channel: grpc.Channel, session: str) -> Answer:
    signed = (("authorization", f"Bearer {session}"),)
    stub = FederationServiceStub(channel)
    return answer(lambda: stub.GetRun(pb.GetRunRequest(), metadata=signed, timeout=10))


def stolen_session(siege: Siege) -> Answer:
    """A session that holds, used from another connection."""
    with (
        siege.consortium.stranger(siege.port) as mine,
        siege.consortium.stranger(siege.port) as other,
    ):
        session = _session(siege, mine)
        assert _ask_with(mine, session) == ("OK", "")
        return _ask_with(other, session)


def replayed_session(siege: Siege) -> Answer:
    """A session that has ended, used again from its own connection."""
    with siege.consortium.stranger(siege.port) as channel:
        session = _session(siege, channel)
        assert _ask_with(channel, session) == ("OK", "")
        time.sleep(SESSION_S + 0.2)
        return _ask_with(channel, session)


def token_as_a_session(siege: Siege) -> Answer:
    with siege.consortium.stranger(siege.port) as channel:
        return _ask_with(channel, siege.token)


def guessed_tokens(siege: Siege) -> Answer:
    """Guesses by eight threads until one is told to wait; gives what it is told.

    A minute is the most; then it gives what the last guess was told.
    """
    told: Answer = ("OK", "")
    until_s = time.monotonic() + 60
    with siege.consortium.stranger(siege.port) as channel, ThreadPoolExecutor(8) as pool:
        stub = SessionServiceStub(channel)

        def guess(_: int) -> Answer:
            request = session_pb2.OpenSessionRequest(token=new_token())
            return answer(lambda: stub.OpenSession(request, timeout=10))

        while time.monotonic() < until_s:
            for told in pool.map(guess, range(200)):
                if told[0] == "RESOURCE_EXHAUSTED":
                    return told
    return told


def token_of_3_mib(siege: Siege) -> Answer:
    with siege.consortium.stranger(siege.port) as channel:
        request = session_pb2.OpenSessionRequest(token="a" * (3 * 2**20))
        return answer(lambda: SessionServiceStub(channel).OpenSession(request, timeout=10))
