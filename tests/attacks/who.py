"""Callers who are not who they say, or not allowed what they ask."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

from attacks.siege import Answer, Siege, answer, ask
from fedpdpo.client.tool.authority import SERVER, Authority
from fedpdpo.v1 import operator_pb2
from fedpdpo.v1.operator_pb2_grpc import OperatorServiceStub
from serving import Client, tensors


def no_certificate(siege: Siege) -> Answer:
    return ask(siege.consortium.stranger(siege.port))


def no_tls(siege: Siege) -> Answer:
    return ask(grpc.insecure_channel(f"localhost:{siege.port}"))


def self_signed(siege: Siege) -> Answer:
    folder = siege.folder / "self"
    Authority.begin(folder)
    for name, becomes in (("ca.key", "tls.key"), ("ca.crt", "tls.crt")):
        (folder / name).rename(folder / becomes)
    return ask(siege.raw(folder))


def foreign(siege: Siege) -> Answer:
    return ask(siege.raw(Authority.begin(siege.folder / "other").issue("client", "ada", days=1)))


def expired(siege: Siege) -> Answer:
    return ask(siege.raw(siege.consortium.authority.issue("client", "old", days=-1 / 1440)))


def revoked(siege: Siege) -> Answer:
    folder = siege.consortium.authority.issue("client", "mallory", days=1)
    siege.consortium.authority.revoke("client", "mallory")
    return ask(siege.raw(folder))


def certificate_of_the_server(siege: Siege) -> Answer:
    folder = siege.folder / "stolen"
    shutil.copytree(siege.consortium.authority.folder / SERVER / "server", folder)
    return ask(siege.raw(folder))


def push_as_another(siege: Siege) -> Answer:
    number = siege.open_round
    ada = Client(siege.eve.stub, "ada")
    return answer(lambda: ada.push(number, tensors(1.0)))


def leave_as_another(siege: Siege) -> Answer:
    return answer(Client(siege.eve.stub, "ada").leave)


def stop_the_run(siege: Siege) -> Answer:
    operator = OperatorServiceStub(siege.channel)
    return answer(lambda: operator.StopRun(operator_pb2.StopRunRequest(), timeout=10))


def path_as_a_name(siege: Siege) -> Answer:
    return answer(lambda: Client(siege.eve.stub, "../../server").join())


def connections_while_the_certificate_changes(siege: Siege) -> Answer:
    """Ten callers connect again and again while the server's certificate is replaced."""
    folder = siege.consortium.authority.folder / "client" / "eve"
    until_s = time.monotonic() + 4

    def connect(_: int) -> Answer:
        told = ("OK", "")
        while time.monotonic() < until_s and told[0] != "UNAVAILABLE":
            told = ask(siege.raw(folder))
        return told

    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(connect, range(10))
        while time.monotonic() < until_s - 1:
            siege.consortium.authority.issue(SERVER, "server", days=1, hosts=["localhost"])
            time.sleep(0.2)
        return max(answers, key=lambda told: told[0] == "UNAVAILABLE")
