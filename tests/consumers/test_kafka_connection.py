"""Settings, secrets, errors; and real TLS and SASL against a broker that has them."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from consumers import kafka_client_logs, kafka_connection
from consumers.kafka_settings import KafkaSettings
from deploy.embedded_kafka import EmbeddedKafka
from pipeline.settings_section import fixed_values
from pipeline.user_error import UserError
from tests.secure_kafka import PASSWORD, SecureBroker
from tests.waiting import wait_until

NOBODY: dict[str, Any] = {"bootstrap_servers": "127.0.0.1:1", "connect_timeout_seconds": 0.3}
PLAIN_USER: dict[str, Any] = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "ann",
}


# Settings


def test_no_setting_is_fixed_for_a_state() -> None:
    assert fixed_values(KafkaSettings()) == {}


def test_secrets_are_shown_nowhere() -> None:
    settings = KafkaSettings(
        **PLAIN_USER,
        sasl_plain_password=SecretStr(PASSWORD),
        proxy_url=SecretStr(f"socks5://me:{PASSWORD}@proxy:1080"),
    )
    options = kafka_connection.connection_options(settings)
    shown = f"{settings} {settings!r} {settings.model_dump()} {settings.model_dump_json()} {options}"
    assert PASSWORD not in shown
    assert options["sasl_plain_password"] == PASSWORD  # what the client gets is the real one


def test_a_refused_setting_does_not_quote_the_password() -> None:
    with pytest.raises(ValidationError) as raised:
        KafkaSettings(sasl_mechanism="PLAIN", sasl_plain_username="ann", sasl_plain_password=SecretStr(PASSWORD))
    assert PASSWORD not in str(raised.value)
    with pytest.raises(ValidationError) as raised:
        KafkaSettings.model_validate({"sasl_plain_password": {"oh": PASSWORD}})
    assert PASSWORD not in str(raised.value)


def test_clients_do_not_log_the_password(caplog: pytest.LogCaptureFixture) -> None:
    settings = KafkaSettings(**NOBODY, **PLAIN_USER, sasl_plain_password=SecretStr(PASSWORD))
    with caplog.at_level(logging.DEBUG, "kafka"), pytest.raises(UserError):
        kafka_connection.admin(settings)
    assert "sasl_plain_password" in caplog.text  # the client does log its options
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("content", ["secret", "secret\n", "secret\r\n"])
def test_a_secret_from_a_file_loses_its_trailing_newline(tmp_path: Path, content: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content.encode())
    settings = KafkaSettings(**PLAIN_USER, sasl_plain_password_file=path)
    assert settings.secret("sasl_plain_password") == "secret"


@pytest.mark.parametrize(
    ("content", "complaint"), [(None, "cannot be read"), (b"", "is empty"), (b"\n", "is empty"), (b"\xff", "UTF-8")]
)
def test_a_secrets_file_that_is_none(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    settings = KafkaSettings(**PLAIN_USER, sasl_plain_password_file=path)
    with pytest.raises(UserError, match=complaint) as raised:
        kafka_connection.producer(settings)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs a sasl_mechanism"),
        ({"sasl_mechanism": "GSSAPI"}, "has no effect"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "needs sasl_plain_username"),
        (PLAIN_USER, "needs sasl_plain_password or sasl_plain_password_file"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"}, "needs sasl_oauth_token or"),
        ({"ssl_password": "a", "ssl_password_file": "b"}, "both set"),
        ({"security_protocol": "TLS"}, "'SSL'"),
        ({"sasl_password": "x"}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_together(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        KafkaSettings.model_validate(values)


def test_a_renewed_bearer_token_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    settings = KafkaSettings(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="OAUTHBEARER",
        sasl_oauth_token_file=path,
        sasl_oauth_extensions={"logicalCluster": "lkc-1"},
    )
    provider = kafka_connection.connection_options(settings)["sasl_oauth_token_provider"]
    assert provider.token() == "first"
    path.write_text("second\n")
    assert provider.token() == "second"
    assert provider.extensions() == {"logicalCluster": "lkc-1"}


# Errors


Make = Callable[[KafkaSettings], Any]
MAKERS = [kafka_connection.consumer, kafka_connection.producer, kafka_connection.admin]


@pytest.mark.parametrize("make", MAKERS)
def test_no_broker_is_one_line_with_the_way_out_and_leaves_nothing_behind(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    threads = set(threading.enumerate())
    with pytest.raises(UserError, match=r"no broker is reachable at 127\.0\.0\.1:1 ") as raised:
        make(KafkaSettings(**NOBODY))
    assert "palimpsest broker start" in str(raised.value)
    assert "PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert set(threading.enumerate()) <= threads
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_without_a_setting_it_is_the_embedded_broker() -> None:
    assert kafka_connection.bootstrap_servers(KafkaSettings()) == "127.0.0.1:9092"


@pytest.mark.parametrize("servers", ["no.such.host.invalid:9092", "127.0.0.1:notaport", "[::1", ":::"])
def test_an_address_that_is_none(servers: str) -> None:
    with pytest.raises(UserError) as raised:
        kafka_connection.admin(KafkaSettings(bootstrap_servers=servers, connect_timeout_seconds=0.3))
    assert servers in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def mute_server() -> Iterator[str]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_something_that_is_no_kafka(mute_server: str) -> None:
    settings = KafkaSettings(bootstrap_servers=mute_server, connect_timeout_seconds=0.3)
    with pytest.raises(UserError, match="does not answer as a Kafka broker with security_protocol PLAINTEXT"):
        kafka_connection.consumer(settings)


@pytest.mark.parametrize("setting", ["ssl_cafile", "ssl_certfile", "ssl_crlfile"])
@pytest.mark.parametrize("there", [True, False])
def test_a_pem_file_that_is_none(tmp_path: Path, setting: str, there: bool) -> None:
    path = tmp_path / "some.pem"
    if there:
        path.write_text("not PEM")
    settings = KafkaSettings.model_validate({**NOBODY, "security_protocol": "SSL", setting: path})
    with pytest.raises(UserError, match=setting) as raised:
        kafka_connection.admin(settings)
    assert str(path) in str(raised.value)


def test_ciphers_that_are_none() -> None:
    with pytest.raises(UserError, match="ssl_ciphers 'NO_SUCH_CIPHER'"):
        kafka_connection.admin(KafkaSettings(**NOBODY, security_protocol="SSL", ssl_ciphers="NO_SUCH_CIPHER"))


def test_slow_checksums_are_warned_of_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("kafka.record.util.crc32c_c", None)
    monkeypatch.setattr("consumers.kafka_connection._warned", [])
    for _ in range(2):
        with pytest.raises(UserError):
            kafka_connection.admin(KafkaSettings(**NOBODY))
    assert caplog.text.count("crc32c") == 2  # one warning, which names it and the command that brings it
    assert len([record for record in caplog.records if record.name == "consumers.kafka_connection"]) == 1


def test_the_clients_complaints_come_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    kafka_client_logs.quieten_client_logs()
    # A connection that an earlier test has given up is made until its time is over, and no complaint passes meanwhile.
    wait_until(lambda: not kafka_client_logs._once_in_a_while.held_back)
    log = logging.getLogger("kafka.net.manager")
    for attempt in range(5):
        log.error("Connection to the test failed: %s", attempt)
    assert caplog.text.count("Connection to the test failed") == 1


def test_what_a_busy_machine_makes_the_client_complain_of_is_not_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    kafka_client_logs.quieten_client_logs()
    logging.getLogger("kafka.net.selector").warning(
        "Task <kafka.net.selector.Task 1> ran for 0.189s (>0.100s threshold). It is blocking the event loop -- likely a"
    )
    assert caplog.text == ""


# Clients


@pytest.mark.kafka
def test_consumers_read_committed_records_and_commit_nothing_by_themselves(kafka_broker: EmbeddedKafka) -> None:
    consumer = kafka_connection.consumer(KafkaSettings(bootstrap_servers=kafka_broker.bootstrap_servers))
    config = consumer.config
    consumer.close()
    assert config["isolation_level"] == "read_committed"
    assert (config["enable_auto_commit"], config["check_crcs"], config["auto_offset_reset"]) == (False, True, "none")


# TLS and SASL


@pytest.mark.kafka
@pytest.mark.parametrize("make", MAKERS)
def test_sasl_over_tls_lets_in(secure_broker: SecureBroker, make: Make) -> None:
    make(secure_broker.sasl(ssl_ciphers="ECDHE+AESGCM")).close()


@pytest.mark.kafka
@pytest.mark.parametrize("make", MAKERS)
def test_a_wrong_password_is_said_at_once_and_not_shown(secure_broker: SecureBroker, make: Make) -> None:
    with pytest.raises(UserError, match=r"authentication at .* failed with PLAIN as 'ann'") as raised:
        make(secure_broker.sasl(sasl_plain_password="wrong-horse"))
    assert "wrong-horse" not in str(raised.value)


@pytest.mark.kafka
def test_a_mechanism_that_the_broker_has_not(secure_broker: SecureBroker) -> None:
    with pytest.raises(UserError, match="does not offer sasl_mechanism SCRAM-SHA-256"):
        kafka_connection.admin(secure_broker.sasl(sasl_mechanism="SCRAM-SHA-256", connect_timeout_seconds=2))


@pytest.mark.kafka
def test_an_authority_that_is_not_trusted(secure_broker: SecureBroker) -> None:
    with pytest.raises(UserError, match=r"certificate of .* is not trusted .*set ssl_cafile"):
        kafka_connection.admin(secure_broker.sasl(ssl_cafile=secure_broker.stranger.cafile, connect_timeout_seconds=1))


@pytest.mark.kafka
def test_a_name_that_the_certificate_does_not_carry(secure_broker: SecureBroker) -> None:
    elsewhere = {"bootstrap_servers": f"localhost:{secure_broker.sasl_port}", "connect_timeout_seconds": 1}
    with pytest.raises(UserError, match="is not trusted"):
        kafka_connection.admin(secure_broker.sasl(**elsewhere))
    kafka_connection.admin(
        secure_broker.sasl(**elsewhere | {"connect_timeout_seconds": 20}, ssl_check_hostname=False)
    ).close()


@pytest.mark.kafka
def test_a_client_certificate_lets_in_with_its_keys_password_from_a_file(
    secure_broker: SecureBroker, tmp_path: Path
) -> None:
    certificate, key = secure_broker.authority.issue("client", password=PASSWORD)
    password = tmp_path / "key-password"
    password.write_text(PASSWORD + "\n")
    files: dict[str, Any] = {"ssl_certfile": certificate, "ssl_keyfile": key}
    kafka_connection.producer(secure_broker.tls(**files, ssl_password_file=password)).close()
    for wrong in ("wrong", None):
        with pytest.raises(UserError, match="ssl_certfile"):
            kafka_connection.producer(secure_broker.tls(**files, ssl_password=wrong))


@pytest.mark.kafka
def test_plaintext_to_a_tls_port(secure_broker: SecureBroker) -> None:
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{secure_broker.tls_port}", connect_timeout_seconds=1)
    with pytest.raises(UserError, match="if it wants TLS or SASL, set security_protocol"):
        kafka_connection.admin(settings)
