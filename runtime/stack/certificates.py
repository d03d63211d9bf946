"""An authority of the stack's own, and the certificate of its servers on loopback."""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from runtime.stack.layout import LOOPBACK, whole_or_absent

#: Name of the broker in its certificate, and so of the principal that its controller sees.
BROKER_NAME = "vlastream-broker"
_LIFETIME = datetime.timedelta(days=3650)


@dataclass(frozen=True)
class Certificates:
    """Files of one folder. Only `ca` is for clients; all others can be read by their owner alone."""

    folder: Path

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def chain(self) -> Path:
        """The servers' certificate."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"

    @property
    def chain_and_key(self) -> Path:
        """Both in one file, as Kafka takes them."""
        return self.folder / "server-keystore.pem"

    @property
    def pkcs12(self) -> Path:
        """The same as a Java key store."""
        return self.folder / "server.p12"

    def make(self, pkcs12_password: str) -> None:
        """Make them all; does nothing where they are."""
        if not self.folder.exists():
            with whole_or_absent(self.folder) as folder:
                _make(Certificates(folder), pkcs12_password)


def _make(files: Certificates, pkcs12_password: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import pkcs12
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("vlastream stack"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + _LIFETIME)
        )

    def usage(*, signs_certificates: bool) -> x509.KeyUsage:
        return x509.KeyUsage(
            digital_signature=not signs_certificates,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=signs_certificates,
            crl_sign=signs_certificates,
            encipher_only=False,
            decipher_only=False,
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = (
        builder("vlastream stack", ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    server = (
        builder(BROKER_NAME, key)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage(signs_certificates=False), critical=True)
        # The broker is a client too: of its controller.
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    chain = server.public_bytes(pem)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    store = pkcs12.serialize_key_and_certificates(
        b"server", key, server, [ca], serialization.BestAvailableEncryption(pkcs12_password.encode())
    )
    # The authority's own key is kept nowhere: it signs once.
    files.ca.write_bytes(ca.public_bytes(pem))
    files.chain.write_bytes(chain)
    for path, content in (
        (files.key, private),
        (files.chain_and_key, private + chain),
        (files.pkcs12, store),
    ):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
