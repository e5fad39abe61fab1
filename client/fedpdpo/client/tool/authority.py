"""A certificate authority of a federation's own, in one folder of its operator.

    DIR/ca.crt, DIR/ca.key        the authority; keep ca.key off every machine that serves
    DIR/crl.pem                   certificates revoked so far
    DIR/issued/SERIAL.crt         every certificate issued
    DIR/ROLE/NAME/                what the holder needs: ca.crt, tls.crt, tls.key

A certificate's subject is who its holder is: the common name is the client's id, and the
organizational unit its role: server, client or operator.
"""

import datetime
import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedpdpo.common.errors import BadSettings
from fedpdpo.common.files import whole_file
from fedpdpo.common.run import check_client_id
from fedpdpo.common.tls import CA, CERTIFICATE, KEY, REVOKED

SERVER = "server"

_CA_KEY = "ca.key"
_CA_DAYS = 3650
_BACKDATED = datetime.timedelta(minutes=5)  # for clocks that go slow
_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A folder's CA, which issues and revokes."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def begin(cls, folder: Path) -> "Authority":
        """Make an authority in a folder. Raises BadSettings where there is one."""
        if (folder / _CA_KEY).exists():
            raise BadSettings(f"{folder} holds a certificate authority already")
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("FedPDPO federation", "authority")
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (_usage(signs_certificates=True), True),
        ]
        certificate = _signed(name, key, name, key, _CA_DAYS, extensions)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(folder / CA, _pem(certificate))
        _write(folder / _CA_KEY, _private(key))
        authority = cls(folder, certificate, key)
        authority._write_revoked([])
        return authority

    @classmethod
    def of(cls, folder: Path) -> "Authority":
        """The authority of a folder. Raises BadSettings where there is none."""
        try:
            key = load_pem_private_key((folder / _CA_KEY).read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / CA).read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise BadSettings(
                f"{folder} holds no certificate authority ({error}); fedpdpo certs init makes one"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BadSettings(f"{folder / _CA_KEY} is no elliptic-curve key")
        return cls(folder, certificate, key)

    def issue(self, role: str, name: str, *, days: float, hosts: Sequence[str] = ()) -> Path:
        """Issue a key and a certificate; gives the holder's folder.

        What lay there is replaced file by file, so that a server may read it meanwhile.

        Earlier certificates of the same holder stay valid until they expire or are revoked.
        """
        check_client_id(name)
        key = ec.generate_private_key(ec.SECP256R1())
        serves = role == SERVER
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage([purpose]), False),
        ]
        if hosts:
            extensions.append((x509.SubjectAlternativeName([_host(host) for host in hosts]), False))
        certificate = _signed(
            _name(name, role), key, self.certificate.subject, self.key, days, extensions
        )
        _write(self.folder / "issued" / f"{certificate.serial_number:x}.crt", _pem(certificate))
        folder = self.folder / role / name
        _write(folder / CA, (self.folder / CA).read_bytes())
        _write(folder / KEY, _private(key))
        _write(folder / CERTIFICATE, _pem(certificate))
        if serves:
            _write(folder / REVOKED, (self.folder / REVOKED).read_bytes())
        return folder

    def revoke(self, role: str, name: str) -> int:
        """Revoke all certificates of a holder; gives how many. Raises BadSettings for none."""
        issued = [
            x509.load_pem_x509_certificate(path.read_bytes())
            for path in sorted((self.folder / "issued").glob("*.crt"))
        ]
        theirs = {one.serial_number for one in issued if one.subject == _name(name, role)}
        if not theirs:
            raise BadSettings(f"{self.folder} issued no certificate to {role} {name}")
        self._write_revoked(theirs | self._revoked())
        for server in (self.folder / SERVER).glob("*"):
            _write(server / REVOKED, (self.folder / REVOKED).read_bytes())
        return len(theirs)

    def _revoked(self) -> set[int]:
        found = x509.load_pem_x509_crl((self.folder / REVOKED).read_bytes())
        return {one.serial_number for one in found}

    def _write_revoked(self, serials: Collection[int]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _BACKDATED)
            .next_update(now + _CA_DAYS * _DAY)
        )
        for serial in sorted(serials):
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(one.build())
        signed = builder.sign(self.key, hashes.SHA256())
        _write(self.folder / REVOKED, signed.public_bytes(Encoding.PEM))


def _signed(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: float,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + days * _DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common_name: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    with whole_file(path) as partial:
        partial.touch(mode=0o600)
        partial.write_bytes(content)
