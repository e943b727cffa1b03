"""The one file that makes kafka-python clients: security, defaults that must hold, and errors a person can act on."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.record import util as record_util

from consumers import kafka_python_mending
from consumers.kafka_client_logs import held_back, quieten_client_logs
from consumers.kafka_settings import KafkaSettings
from consumers.record_source import SourceUnavailable
from pipeline.user_error import UserError

log = logging.getLogger(__name__)

EMBEDDED_BOOTSTRAP_SERVERS = "127.0.0.1:9092"  # where `palimpsest broker start` puts the embedded broker by default
# Kafka gives up on a broker that does not answer a probe for so long; only to say why a connection failed.
_PROBE_TIMEOUT_SECONDS = 3.0
# A broker that comes back is found within this; the client's default of 30 s would let a restart cost half a minute.
_RECONNECT_BACKOFF_MAX_MS = 2_000
# While a connection is made, a stop is looked for this often.
_STOP_LOOK_SECONDS = 0.1

_stop: ContextVar[threading.Event | None] = ContextVar("palimpsest_connecting_stop", default=None)
# What to do about a broker's certificate, by OpenSSL's number of what is wrong with it.
_UNKNOWN_AUTHORITY = "set ssl_cafile to the authority that signed it"
_ANOTHER_NAME = "set the name in bootstrap_servers to one that it was made for, or have one made for this name"
_CERTIFICATE_WAYS_OUT = {
    9: "it is not valid yet: look at this machine's clock and at the certificate's",
    10: "have it renewed by whoever runs the brokers, and look at this machine's clock",
    23: "it was revoked (ssl_crlfile): have a new one made by whoever runs the brokers",
    62: _ANOTHER_NAME,  # a host's name
    64: _ANOTHER_NAME,  # an address
}

Client = TypeVar("Client")


class BrokersUnreachable(UserError):
    """No broker answers. To whoever had reached one before, they are away: no setting is wrong."""


class ConnectingStopped(SourceUnavailable):
    """A stop was asked for before a broker let us in."""


@contextmanager
def hearing(stop: threading.Event | None) -> Iterator[None]:
    """Connections made by this thread inside are given up as soon as `stop` is set, with `ConnectingStopped`."""
    before = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(before)


def heard_stop() -> threading.Event | None:
    """The `stop` that this thread is `hearing`."""
    return _stop.get()


def bootstrap_servers(settings: KafkaSettings) -> str:
    """Where clients connect first; the embedded broker where nothing else is set."""
    return settings.bootstrap_servers or EMBEDDED_BOOTSTRAP_SERVERS


def consumer(settings: KafkaSettings, **overrides: Any) -> KafkaConsumer:
    """A consumer that reads committed records only and commits nothing by itself.

    Raises `UserError` where no broker can be reached or lets us in within `connect_timeout_seconds`, in which the
    client tries again and again; `ConnectingStopped` (see `hearing`).
    """
    defaults = {
        # The client's defaults are the other way round, and each would break a guarantee: records of aborted
        # transactions would be learnt; offsets would be committed before their state.
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "check_crcs": True,
        # An offset that retention deleted is an error that a person must see, never a silent jump.
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
        "metrics_enabled": False,  # costs about 5 % of the poll, and nobody reads them
    }
    assert overrides.get("isolation_level", "read_committed") == "read_committed", "uncommitted records are never read"
    return _connect(KafkaConsumer, settings, defaults | overrides)


def producer(settings: KafkaSettings, **overrides: Any) -> KafkaProducer:
    """An idempotent producer that waits for all replicas. Raises `UserError` as `consumer` does."""
    defaults = {
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "metrics_enabled": False,
    }
    return _connect(KafkaProducer, settings, defaults | overrides)


def admin(settings: KafkaSettings, **overrides: Any) -> KafkaAdminClient:
    """An admin client. Raises `UserError` as `consumer` does."""
    return _connect(KafkaAdminClient, settings, overrides)


def _connect(make: Callable[..., Client], settings: KafkaSettings, options: dict[str, Any]) -> Client:
    """As `_connect_deaf`, and where a stop is to be heard, in a thread of its own: nothing wakes the client's wait.

    The thread that is left behind ends when the client gives up, and closes what it may have opened after all.
    """
    stop = _stop.get()
    if stop is None:
        return _connect_deaf(make, settings, options)
    made: list[Client] = []
    problems: list[BaseException] = []
    left_behind = threading.Lock()  # taken by whoever is to close what was made: the one that comes second

    def run() -> None:
        try:
            client = _connect_deaf(make, settings, options)
        except BaseException as problem:
            problems.append(problem)
            return
        made.append(client)
        if not left_behind.acquire(blocking=False):
            client.close()  # type: ignore[attr-defined]

    stopped = ConnectingStopped(f"stopped while connecting to {bootstrap_servers(settings)}")
    if stop.is_set():
        raise stopped
    thread = threading.Thread(target=run, name="palimpsest-connecting", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_STOP_LOOK_SECONDS)
        if stop.is_set() and thread.is_alive() and left_behind.acquire(blocking=False):
            raise stopped
    if problems:
        raise problems[0]
    return made[0]


def _connect_deaf(make: Callable[..., Client], settings: KafkaSettings, options: dict[str, Any]) -> Client:
    """Make a client, or say in one line why not.

    1. Mend the client's faults; say once if checksums will be slow.
    2. Make it, with the client's own complaints held back: what they amount to is said in 3.
    3. Where it fails, close what it had opened (its threads would try to connect for ever) and find out why.
    """
    # 1.
    kafka_python_mending.mend()
    _warn_if_checksums_are_slow()
    quieten_client_logs()
    # 2.
    opened: list[Any] = []  # what has a close(), in the order of its making

    common = connection_options(settings) | kafka_python_mending.client_options(opened)
    with held_back():
        try:
            return make(**(common | options))
        # 3.
        except (kafka_errors.KafkaError, OSError, ValueError, RuntimeError, KeyError) as error:
            for part in reversed(opened):
                part.close()
            problem = _user_error(settings, error)
            if problem is None:
                raise
            raise problem from error


@contextmanager
def talking(settings: KafkaSettings) -> Iterator[None]:
    """Around requests at the start: a broker that goes away or refuses meanwhile is a `UserError`, not a traceback."""
    try:
        yield
    except (kafka_errors.RetriableError, kafka_errors.AuthorizationError) as error:
        problem = _user_error(settings, error)
        if problem is None:
            servers = bootstrap_servers(settings)
            problem = BrokersUnreachable(
                f"the brokers at {servers} did not answer ({error}); try again when they are well"
            )
        raise problem from error


# Security


class _Masked(str):
    """A secret for a client that writes its settings into its debug log with repr()."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'**********'"


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """A bearer token from the settings, or from its file, read anew at every connection."""

    def __init__(self, settings: KafkaSettings) -> None:
        super().__init__()
        self._settings = settings

    def token(self) -> str:
        token = self._settings.secret("sasl_oauth_token")
        assert token is not None, "the settings check this"
        return token

    def extensions(self) -> dict[str, str]:
        return dict(self._settings.sasl_oauth_extensions)


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """The options that every kafka-python client shares. Secrets in it are in the clear, but not in its repr."""
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(settings).replace(" ", "").split(","),
        "client_id": settings.client_id,
        "bootstrap_timeout_ms": int(settings.connect_timeout_seconds * 1000),
        "reconnect_backoff_max_ms": _RECONNECT_BACKOFF_MAX_MS,
        "security_protocol": settings.security_protocol,
        "ssl_check_hostname": settings.ssl_check_hostname,
    }
    if settings.uses_tls:
        options["ssl_context"] = ssl_context(settings)
    if settings.sasl_mechanism is not None:
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_plain_username,
            "sasl_plain_password": _masked(settings.secret("sasl_plain_password")),
            "sasl_kerberos_name": settings.sasl_kerberos_name,
            "sasl_kerberos_service_name": settings.sasl_kerberos_service_name,
            "sasl_kerberos_domain_name": settings.sasl_kerberos_domain_name,
        }
        if settings.sasl_mechanism == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = _TokenProvider(settings)
    proxy = settings.secret("proxy_url")
    if proxy is not None:
        options["proxy_url"] = _masked(proxy)
    return options


def _masked(secret: str | None) -> str | None:
    return None if secret is None else _Masked(secret)


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    """TLS as the settings say.

    kafka-python 3.0.12 would build one too, but forgets `ssl_ciphers` and fails on `ssl_crlfile`
    (it calls `load_verify_locations(crl=...)`, which Python does not have).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings.ssl_check_hostname
    if settings.ssl_cafile is None:
        context.load_default_certs()
    else:
        with _pem("ssl_cafile", settings.ssl_cafile):
            context.load_verify_locations(settings.ssl_cafile)
    if settings.ssl_certfile is not None:
        password = settings.secret("ssl_password")
        if settings.ssl_keyfile is not None:
            _must_exist("ssl_keyfile", settings.ssl_keyfile)
        with _pem("ssl_certfile", settings.ssl_certfile):
            # Without a password OpenSSL would ask for one at the terminal, and a service would wait for ever.
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, lambda: password or "")
    elif settings.ssl_keyfile is not None:
        raise UserError(f"ssl_keyfile {settings.ssl_keyfile} has no certificate; set ssl_certfile too")
    if settings.ssl_crlfile is not None:
        with _pem("ssl_crlfile", settings.ssl_crlfile):
            context.load_verify_locations(settings.ssl_crlfile)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    if settings.ssl_ciphers is not None:
        try:
            context.set_ciphers(settings.ssl_ciphers)
        except ssl.SSLError as error:
            raise UserError(
                f"ssl_ciphers {settings.ssl_ciphers!r} allows no cipher of this OpenSSL; see `openssl ciphers -v`"
            ) from error
    return context


@contextmanager
def _pem(setting: str, path: Path) -> Iterator[None]:
    _must_exist(setting, path)
    try:
        yield
    except (ssl.SSLError, OSError) as error:
        raise UserError(
            f"{setting} {path} cannot be used ({_reason(error)}); it must be a PEM file, and a private key's password "
            "goes into ssl_password or ssl_password_file"
        ) from error


def _must_exist(setting: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{setting} {path} cannot be read ({error.strerror}); let it name a readable file") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# Errors


def _user_error(settings: KafkaSettings, error: BaseException) -> UserError | None:
    """What the failed connection means for a person; None where it is no matter of theirs."""
    servers = bootstrap_servers(settings)
    if isinstance(error, kafka_errors.SaslAuthenticationFailedError):
        name = settings.sasl_plain_username
        return UserError(
            f"authentication at {servers} failed with {settings.sasl_mechanism}"
            f"{'' if name is None else f' as {name!r}'}; check the user name, the password or token, and sasl_mechanism"
        )
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return UserError(
            f"{servers} does not offer sasl_mechanism {settings.sasl_mechanism}; ask whoever runs it which"
        )
    if isinstance(error, kafka_errors.AuthorizationError):
        return UserError(f"{servers} does not allow this user in ({type(error).__name__}); ask for the ACL")
    if isinstance(error, (kafka_errors.KafkaTimeoutError, kafka_errors.KafkaConnectionError)):
        return BrokersUnreachable(_why_unreachable(settings))
    if isinstance(error, (OSError, ValueError, RuntimeError)):
        # kafka-python refuses a setting: a host name that is none, a mechanism whose library is missing.
        return UserError(f"the connection to {servers} cannot be set up: {error}; see the settings under kafka")
    return None


def _why_unreachable(settings: KafkaSettings) -> str:
    """Go the way of the client once more, step by step, and say at which step it ends."""
    servers = bootstrap_servers(settings)
    way_out = "start one with `palimpsest broker start` or set PALIMPSEST_KAFKA__BOOTSTRAP_SERVERS"
    if settings.secret("proxy_url") is not None:
        return f"no broker was reached at {servers} through the proxy; check proxy_url, or {way_out}"
    problems = []
    for server in servers.replace(" ", "").split(","):
        host, _, port = server.rpartition(":")
        host, port = (host, port) if port.isdigit() and host else (server, "9092")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), _PROBE_TIMEOUT_SECONDS) as plain:
                plain.settimeout(_PROBE_TIMEOUT_SECONDS)
                if not settings.uses_tls:
                    problems.append(
                        f"{server} takes connections but does not answer as a Kafka broker with security_protocol "
                        f"{settings.security_protocol}; if it wants TLS or SASL, set security_protocol and the rest"
                    )
                    continue
                try:
                    encrypted = ssl_context(settings).wrap_socket(plain, server_hostname=host.strip("[]"))
                except TimeoutError:
                    problems.append(
                        f"{server} takes connections but does not answer the TLS handshake; check security_protocol, "
                        "the port, and what stands between here and there"
                    )
                    continue
                with encrypted:
                    problems.append(
                        f"{server} completes TLS but does not answer as a Kafka broker with security_protocol "
                        f"{settings.security_protocol}; check security_protocol and sasl_mechanism"
                    )
        except ssl.SSLCertVerificationError as error:
            way_out = _CERTIFICATE_WAYS_OUT.get(error.verify_code, _UNKNOWN_AUTHORITY)
            problems.append(f"the certificate of {server} is not trusted ({error.verify_message}); {way_out}")
        except ssl.SSLError as error:
            problems.append(
                f"{server} does not complete TLS ({_reason(error)}); check security_protocol, ssl_certfile, ssl_ciphers"
            )
        except OSError as error:
            problems.append(f"no broker is reachable at {server} ({_reason(error)}): {way_out}")
    return problems[0]


# Logs


def _warn_if_checksums_are_slow() -> None:
    if record_util.crc32c_c is None and not _warned:
        _warned.append(True)
        log.warning(
            "the C extension crc32c is missing: reading Kafka is 10 to 15 times slower without; `pip install crc32c`"
        )


_warned: list[bool] = []
