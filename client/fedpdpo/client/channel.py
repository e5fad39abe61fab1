"""The way to a server: TLS, and who this side is, by certificate or by token."""

import threading
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from pydantic import Field

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.settings import Settings
from fedpdpo.common.tls import Credentials, is_loopback
from fedpdpo.common.tracing import carried
from fedpdpo.v1 import session_pb2
from fedpdpo.v1.session_pb2_grpc import SessionServiceStub

_MAX_TOKEN_BYTES = 1024
_CALL_S = 20.0
_OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
]


class AccessSettings(Settings):
    """How a server is reached, and who this side is."""

    tls: Path | None = Field(
        None,
        description="folder with the federation's ca.crt and this side's tls.crt and tls.key; "
        "ca.crt alone where a token says who this side is",
    )
    token_file: Path | None = Field(
        None, description="file with the enrolment token that the operator handed over"
    )
    insecure: bool = Field(
        False, description="talk to another machine without TLS: anyone between may read and change"
    )


def open_channel(server: str, access: AccessSettings) -> grpc.Channel:
    """A channel to a server, as host:port. Nothing is sent yet.

    Raises BadSettings where files are wrong, or where the server is on another machine and neither
    TLS was given nor `insecure` said.
    """
    if access.tls is None:
        if access.token_file is not None:
            raise BadSettings("--token-file needs --tls: a token must not travel unencrypted")
        if not is_loopback(server.rpartition(":")[0]) and not access.insecure:
            raise BadSettings(
                f"{server} is another machine; give --tls FOLDER with what its operator handed "
                "over, or --insecure where anyone between may read and change what is sent"
            )
        return grpc.intercept_channel(grpc.insecure_channel(server, options=_OPTIONS), _Signing())
    own = Credentials.read(access.tls, own=access.token_file is None)
    credentials = grpc.ssl_channel_credentials(own.ca, own.key or None, own.certificate or None)
    channel = grpc.secure_channel(server, credentials, options=_OPTIONS)
    if access.token_file is None:
        return grpc.intercept_channel(channel, _Signing())
    return grpc.intercept_channel(channel, _Session(channel, _token(access.token_file)))


def _token(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TOKEN_BYTES:
            raise BadSettings(f"{path} is too large to be a token")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise BadSettings(f"cannot read --token-file {path}: {error}") from error
    if not token or not token.isprintable():
        raise BadSettings(f"{path} holds no token")
    return token


class _Details(NamedTuple):
    """A call's details, with other metadata."""

    method: str
    timeout: float | None
    metadata: list[tuple[str, str]]
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _Signing(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts metadata on each call: what it is told of the open span."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """A call with its metadata."""
        return self._watched(continuation(self._signed(details), request))

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        """A call with its metadata."""
        return self._watched(continuation(self._signed(details), request))

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        """A call with its metadata."""
        return self._watched(continuation(self._signed(details), requests))

    def _metadata(self) -> list[tuple[str, str]]:
        return carried()

    def _signed(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            [*(details.metadata or ()), *self._metadata()],
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

    def _watched(self, call: Any) -> Any:
        return call


class _Session(_Signing):
    """Puts a session on each call; opens one with the token where there is none that holds.

    A session belongs to a connection. So where a call comes back with UNAUTHENTICATED the session
    is forgotten, and the next try opens another.
    """

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._stub = SessionServiceStub(channel)
        self._token = token
        self._lock = threading.Lock()
        self._session = ""

    def _metadata(self) -> list[tuple[str, str]]:
        with self._lock:
            if not self._session:
                request = session_pb2.OpenSessionRequest(token=self._token)
                self._session = self._stub.OpenSession(request, timeout=_CALL_S).session
            return [*carried(), ("authorization", f"Bearer {self._session}")]

    def _watched(self, call: Any) -> Any:
        call.add_done_callback(self._ended)
        return call

    def _ended(self, call: Any) -> None:
        if call.code() is grpc.StatusCode.UNAUTHENTICATED:
            with self._lock:
                self._session = ""
