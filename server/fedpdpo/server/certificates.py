"""Certificates at the server's end: its own, and whom those of its callers name."""

import datetime
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from fedpdpo.common.errors import BadRequest, BadSettings, NotIdentified
from fedpdpo.common.identity import Caller, Role
from fedpdpo.common.run import check_client_id
from fedpdpo.common.tls import CA, CERTIFICATE, KEY, REVOKED, Credentials
from fedpdpo.server.watched import Watched

_MAX_BYTES = 2**24
_TURNOVER_S = 0.1


def server_credentials(folder: Path, *, mutual: bool) -> grpc.ServerCredentials:
    """The server's side of TLS, by the files that are in the folder when a client connects.

    `mutual`: only clients with a certificate of the folder's CA get in. Raises BadSettings.
    """
    watched = Watched(lambda: _configuration(folder, mutual=mutual), *_own(folder))
    shown = watched.value

    def changed() -> Any:
        """The files as gRPC takes them, where they changed, else None; called one at a time."""
        nonlocal shown
        if watched.value is shown:
            return None
        # What gRPC replaces it frees at once, though another connection may be about to begin with
        # it (grpcio 1.85 dies of that). No connection gets further while this function waits.
        time.sleep(_TURNOVER_S)
        shown = watched.value
        return shown

    return grpc.dynamic_ssl_server_credentials(shown, changed, require_client_authentication=mutual)


def _configuration(folder: Path, *, mutual: bool) -> Any:
    own = Credentials.read(folder)
    pair = [(own.key, own.certificate)]
    return grpc.ssl_server_certificate_configuration(pair, own.ca if mutual else None)


def page_context(folder: Path) -> ssl.SSLContext:
    """The page's side of TLS, by the files that are in the folder when a browser connects.

    Raises BadSettings.
    """
    watched = Watched(lambda: _context(folder), *_own(folder))

    def show(connection: ssl.SSLObject, _name: str, _first: ssl.SSLContext) -> None:
        connection.context = watched.value

    first = watched.value
    first.sni_callback = show  # called in every handshake, whether a name is asked for or not
    return first


def _context(folder: Path) -> ssl.SSLContext:
    Credentials.read(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except OSError as error:
        raise BadSettings(f"cannot use {folder / CERTIFICATE} with its key: {error}") from error
    return context


def _own(folder: Path) -> list[Path]:
    return [folder / name for name in (CA, CERTIFICATE, KEY)]


class Certificates:
    """Tells callers by the subject of their certificate, which TLS has checked."""

    def __init__(self, folder: Path) -> None:
        path, authorities = folder / REVOKED, folder / CA
        needed = path.exists()

        def read() -> frozenset[int]:
            """The list; once there was one, its absence revokes nothing of what it said."""
            nonlocal needed
            if not needed and not path.exists():
                return frozenset()
            needed = True
            return _revoked(path, authorities)

        self._revoked = Watched(read, path, authorities)

    def caller(self, context: Any) -> Caller:
        """Who calls. Raises NotIdentified where the certificate no longer holds or names nobody."""
        (pem,) = context.auth_context().get("x509_pem_cert", [b""])
        if not pem:
            raise NotIdentified("the call came without a certificate")
        holder = _holder(bytes(pem))
        if datetime.datetime.now(datetime.UTC) >= holder.expires:
            raise NotIdentified(f"the certificate of {holder.caller} has expired")
        if holder.serial in self._revoked.value:
            raise NotIdentified(f"the certificate of {holder.caller} is revoked")
        return holder.caller


@dataclass(frozen=True)
class _Holder:
    caller: Caller
    serial: int
    expires: datetime.datetime


@lru_cache(maxsize=10_000)
def _holder(pem: bytes) -> _Holder:
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        (unit,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        caller = Caller(Role(str(unit.value)), check_client_id(str(name.value)))
    except (ValueError, BadRequest) as error:
        raise NotIdentified(
            "the certificate's subject needs a client id as its common name, and client or "
            "operator as its organizational unit"
        ) from error
    return _Holder(caller, certificate.serial_number, certificate.not_valid_after_utc)


def _revoked(path: Path, authorities: Path) -> frozenset[int]:
    """The serial numbers of a list that one of the authorities signed. Raises BadSettings."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BadSettings(f"{path} has {path.stat().st_size} bytes; it is no revocation list")
        found = x509.load_pem_x509_crl(path.read_bytes())
        trusted = x509.load_pem_x509_certificates(authorities.read_bytes())
        signed = any(found.is_signature_valid(one.public_key()) for one in trusted)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError) as error:
        raise BadSettings(f"cannot read the revocation list {path}: {error}") from error
    if not signed:
        raise BadSettings(f"no CA of {authorities} signed the revocation list {path}")
    return frozenset(one.serial_number for one in found)
