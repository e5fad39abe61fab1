"""TLS by a folder of files, named as Kubernetes and cert-manager name them.

FOLDER/ca.crt    whom this side trusts: one CA's certificate, or several
FOLDER/tls.crt   this side's own certificate, then those between it and the CA if there are any
FOLDER/tls.key   its private key
FOLDER/crl.pem   certificates that are revoked; read by a server, may be absent
"""

import datetime
import ipaddress
import logging
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.log import fields

log = logging.getLogger(__name__)

CA, CERTIFICATE, KEY, REVOKED = "ca.crt", "tls.crt", "tls.key", "crl.pem"

_MAX_BYTES = 2**20
_SOON = datetime.timedelta(days=30)


@dataclass(frozen=True)
class Credentials:
    """PEM bytes: whom to trust, and who this side is; empty where it has no certificate."""

    ca: bytes
    certificate: bytes = b""
    key: bytes = b""

    @classmethod
    def read(cls, folder: Path, *, own: bool = True) -> "Credentials":
        """Read a folder, with this side's own certificate or only whom to trust.

        Raises BadSettings, which names the file, where one is missing, damaged or expired, or where
        key, certificate and CA do not belong together.
        """
        ca = _read(folder / CA)
        authorities = _certificates(ca, folder / CA)
        if not own:
            return cls(ca)
        certificate, key = _read(folder / CERTIFICATE), _read(folder / KEY)
        _check(folder, authorities, _certificates(certificate, folder / CERTIFICATE), key)
        return cls(ca, certificate, key)


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if status.st_size > _MAX_BYTES:
            raise BadSettings(f"{path} has {status.st_size} bytes; it is no PEM file of this kind")
        if path.name == KEY and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning(fields("key_readable_by_others", path=path, advice=f"chmod 600 {path}"))
        return path.read_bytes()
    except OSError as error:
        raise BadSettings(
            f"cannot read {path}: {error.strerror}; fedpdpo certs makes such folders"
        ) from error


def _certificates(pem: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise BadSettings(f"{path} holds no certificate in PEM: {error}") from error


def _check(
    folder: Path, authorities: list[x509.Certificate], chain: list[x509.Certificate], key: bytes
) -> None:
    own, now = chain[0], datetime.datetime.now(datetime.UTC)
    path = folder / CERTIFICATE
    if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
        raise BadSettings(
            f"{path} is valid from {own.not_valid_before_utc:%Y-%m-%d} to "
            f"{own.not_valid_after_utc:%Y-%m-%d}, which is not now; have it made again"
        )
    if own.not_valid_after_utc - now < _SOON:
        log.warning(
            fields("certificate_expires", path=path, on=f"{own.not_valid_after_utc:%Y-%m-%d}")
        )
    try:
        same = load_pem_private_key(key, None).public_key() == own.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadSettings(f"{folder / KEY} is no private key in PEM without a password") from error
    if not same:
        raise BadSettings(f"{folder / KEY} is not the key of {path}")
    if not any(issued_by(chain[-1], authority) for authority in authorities):
        raise BadSettings(f"{path} was not issued by a CA of {folder / CA}")


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority issued a certificate, or is it."""
    if certificate == authority:
        return True
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine and no other."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
