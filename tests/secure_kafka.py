"""A real broker that lets in only who proves who they are, with certificates made here, and obeys ACLs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)

from consumers import kafka_connection
from consumers.acls import Acl
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from deploy.local_port import free_ports

ADMIN = "ann"  # may do everything
PASSWORD = "correct-horse-battery"
_HOUR = datetime.timedelta(hours=1)
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.CLUSTER,
}
_OPERATIONS = {
    "Read": ACLOperation.READ,
    "Write": ACLOperation.WRITE,
    "Create": ACLOperation.CREATE,
    "Describe": ACLOperation.DESCRIBE,
    "DescribeConfigs": ACLOperation.DESCRIBE_CONFIGS,
}


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = _name(name)
        self.cafile = folder / f"{name}.pem"
        self.cafile.write_bytes(self._certificate(self.name, self.key, is_authority=True, ended=False))

    def _certificate(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool, ended: bool
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _HOUR)
            .not_valid_after(now - _HOUR if ended else now + _HOUR)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([local]), critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, password: str | None = None, *, ended: bool = False) -> tuple[Path, Path]:
        """Certificate (for 127.0.0.1, by its number alone) and key, as two PEM files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, keyfile = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        certificate.write_bytes(self._certificate(_name(name), key, is_authority=False, ended=ended))
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password.encode())
        keyfile.write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        )
        return certificate, keyfile

    def keystore(self, name: str, *, ended: bool = False) -> Path:
        """Key and certificate in one PEM file, as Kafka wants them."""
        certificate, key = self.issue(name, ended=ended)
        keystore = self.folder / f"{name}.pem"
        keystore.write_bytes(key.read_bytes() + certificate.read_bytes())
        return keystore


class SecureBroker:
    """A broker with a listener for SASL (PLAIN, SCRAM-SHA-512) over TLS, one whose certificate has ended, and one for
    TLS with client certificates. What no ACL allows is refused, but to `ADMIN` and to the plain local listener."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "authority")
        self.stranger = Authority(folder, "stranger")
        self.sasl_port, self.ended_port, self.tls_port = free_ports(3)
        security = "org.apache.kafka.common.security"
        listeners = {"SASL": self.sasl_port, "ENDED": self.ended_port, "TLS": self.tls_port}
        self.broker = EmbeddedKafka(
            folder / "broker",
            heap_mb=256,
            extra_properties={
                "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items()),
                "listener.security.protocol.map": "SASL:SASL_SSL,ENDED:SASL_SSL,TLS:SSL",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(self.authority.keystore("broker")),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(self.authority.cafile),
                "listener.name.ended.ssl.keystore.type": "PEM",
                "listener.name.ended.ssl.keystore.location": str(self.authority.keystore("ended", ended=True)),
                "listener.name.tls.ssl.client.auth": "required",
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                **{
                    f"listener.name.{name}.{mechanism}.sasl.jaas.config": f"{security}.{module} required{users};"
                    for name in ("sasl", "ended")
                    for mechanism, module, users in (
                        ("plain", "plain.PlainLoginModule", f' user_{ADMIN}="{PASSWORD}"'),
                        ("scram-sha-512", "scram.ScramLoginModule", ""),
                    )
                },
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": f"User:ANONYMOUS;User:{ADMIN};User:CN=client",
            },
        )

    @property
    def plain(self) -> KafkaSettings:
        """The plain local listener, whose user may do everything."""
        return KafkaSettings(bootstrap_servers=self.broker.bootstrap_servers)

    def sasl(self, **more: Any) -> KafkaSettings:
        """`ADMIN`, with PLAIN over TLS."""
        values = self.section("PLAIN", ADMIN) | {"connect_timeout_seconds": 20}
        return KafkaSettings.model_validate(values | more)

    def section(self, mechanism: str, user: str) -> dict[str, Any]:
        """The settings' section `kafka`, as it stands in a file."""
        return {
            "bootstrap_servers": f"127.0.0.1:{self.sasl_port}",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user,
            "sasl_plain_password": PASSWORD,
            "ssl_cafile": str(self.authority.cafile),
        }

    def tls(self, **more: Any) -> KafkaSettings:
        values = {
            "bootstrap_servers": f"127.0.0.1:{self.tls_port}",
            "security_protocol": "SSL",
            "ssl_cafile": self.authority.cafile,
            "connect_timeout_seconds": 20,
        }
        return KafkaSettings.model_validate(values | more)

    def make_user(self, name: str, acls: Sequence[Acl] = ()) -> None:
        """A user with `PASSWORD` for SCRAM-SHA-512, who may do just this."""
        with kafka_connection.admin(self.plain) as admin:
            made = admin.alter_user_scram_credentials([UserScramCredentialUpsertion(name, "SCRAM-SHA-512", PASSWORD)])
            assert made == {name: None}
            wanted = [
                ACL(
                    principal=f"User:{name}",
                    host="*",
                    operation=_OPERATIONS[operation],
                    permission_type=ACLPermissionType.ALLOW,
                    resource_pattern=ResourcePattern(
                        _RESOURCES[acl.resource],
                        acl.name,
                        ACLResourcePatternType.PREFIXED if acl.prefixed else ACLResourcePatternType.LITERAL,
                    ),
                )
                for acl in acls
                for operation in acl.operations
            ]
            if wanted:
                assert len(admin.create_acls(wanted)["succeeded"]) == len(wanted)


@pytest.fixture(scope="session")
def secure_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    secure = SecureBroker(tmp_path_factory.mktemp("secure"))
    with secure.broker:
        yield secure


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
