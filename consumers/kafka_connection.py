"""The one file that makes kafka-python clients: security, defaults that must hold, and errors a person can act on."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from kafka import KafkaConsumer, KafkaProducer
from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.record import util as record_util

from consumers.kafka_settings import KafkaSettings
from pipeline.user_error import UserError

log = logging.getLogger(__name__)

EMBEDDED_BOOTSTRAP_SERVERS = "127.0.0.1:9092"  # where `palimpsest broker start` puts the embedded broker by default
# Kafka gives up on a broker that does not answer a probe for so long; only to say why a connection failed.
_PROBE_TIMEOUT_SECONDS = 3.0
# A broker that comes back is found within this; the client's default of 30 s would let a restart cost half a minute.
_RECONNECT_BACKOFF_MAX_MS = 2_000
# The same complaint of the client is passed on once in so many seconds: it complains at every attempt to reconnect.
_REPEAT_SECONDS = 30.0

_REFUSALS = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
)

Client = TypeVar("Client")


def bootstrap_servers(settings: KafkaSettings) -> str:
    """Where clients connect first; the embedded broker where nothing else is set."""
    return settings.bootstrap_servers or EMBEDDED_BOOTSTRAP_SERVERS


def consumer(settings: KafkaSettings, **overrides: Any) -> KafkaConsumer:
    """A consumer that reads committed records only and commits nothing by itself.

    Raises `UserError` where no broker can be reached or lets us in.
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


def admin(settings: KafkaSettings) -> KafkaAdminClient:
    """An admin client. Raises `UserError` as `consumer` does."""
    return _connect(KafkaAdminClient, settings, {})


def _connect(make: Callable[..., Client], settings: KafkaSettings, options: dict[str, Any]) -> Client:
    """Make a client, or say in one line why not.

    1. Say once if checksums will be slow.
    2. Make it, with the client's own complaints held back: what they amount to is said in 3.
    3. Where it fails, close what it had opened (its threads would try to connect for ever) and find out why.
    """
    # 1.
    _warn_if_checksums_are_slow()
    quieten_client_logs()
    # 2.
    opened: list[Any] = []  # what has a close(), in the order of its making

    def net_client(**configs: Any) -> Any:
        opened.append(net := NetworkSelector(**configs))
        opened.append(manager := _ConnectionManager(net, **configs))
        return KafkaNetClient(net=net, manager=manager)

    common = connection_options(settings) | {"kafka_client": net_client}
    with _held_back():
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
            problem = UserError(f"the brokers at {servers} did not answer ({error}); try again when they are well")
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


# What kafka-python 3.0.12 does not do


class _ConnectionManager(KafkaConnectionManager):  # type: ignore[misc]
    """Lets a refused password end the attempt to connect, instead of being tried again until time is up.

    Only for the first connection: a broker that refuses later, because it is restarting, is tried again.
    """

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        await super()._connect(node, conn, **options)
        problem = conn.init_future.exception
        if self.cluster.is_bootstrap(node.node_id) and isinstance(problem, _REFUSALS):
            self._auth_failures[node.node_id] = problem  # raised by the next get_connection


def _mend_sockets() -> None:
    """Two faults of the client's transport.

    - The socket of a refused connection or of a broken TLS handshake is dropped without being closed: while brokers are
      away, each attempt would hold a file descriptor until the garbage collector comes by.
    - An answer that arrives together with the end of the connection is thrown away. A broker answers a wrong password
      so, and one that shuts down answers its last requests so.
    """
    connect, handshake = KafkaNetSocket.sock_connect, KafkaSSLTransport.handshake

    async def closing_connect(self: Any, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: Any = None) -> Any:
        try:
            return await connect(self, net, sock, sockaddr, timeout_at=timeout_at)
        except kafka_errors.KafkaConnectionError:
            sock.close()
            raise

    async def closing_handshake(self: Any) -> None:
        try:
            await handshake(self)
        except Exception:
            self._sock.close()
            raise

    KafkaNetSocket.sock_connect, KafkaSSLTransport.handshake = closing_connect, closing_handshake
    for transport in (KafkaTCPTransport, KafkaSSLTransport):
        transport._sock_recv = _data_before_error(transport._sock_recv)


def _data_before_error(receive: Callable[[Any], tuple[bytes, Any]]) -> Callable[[Any], tuple[bytes, Any]]:
    def data_before_error(self: Any) -> tuple[bytes, Any]:
        data, error = receive(self)
        return (data, None) if data else (data, error)  # the next receive meets the error again

    return data_before_error


_mend_sockets()


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
        return UserError(_why_unreachable(settings))
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
                with ssl_context(settings).wrap_socket(plain, server_hostname=host.strip("[]")):
                    problems.append(
                        f"{server} completes TLS but does not answer as a Kafka broker with security_protocol "
                        f"{settings.security_protocol}; check security_protocol and sasl_mechanism"
                    )
        except ssl.SSLCertVerificationError as error:
            problems.append(
                f"the certificate of {server} is not trusted ({error.verify_message}); set ssl_cafile to the authority "
                "that signed it, or the name in bootstrap_servers to the one it was made for"
            )
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


class _OnceInAWhile(logging.Filter):
    """Passes each complaint of the client on once in a while, and none while a connection is being made."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._last: dict[tuple[str, str], float] = {}
        self.held_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        with self._lock:
            if self.held_back:
                return False
            key = (record.name, str(record.msg))
            now = time.monotonic()
            if now - self._last.get(key, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
                return False
            self._last[key] = now
            return True

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        with self._lock:
            self.held_back += 1
        try:
            yield
        finally:
            with self._lock:
                self.held_back -= 1


_once_in_a_while = _OnceInAWhile()
_held_back = _once_in_a_while.holding_back


def quieten_client_logs() -> None:
    """Loggers do not inherit filters, so each of the client's gets it."""
    for name in list(logging.root.manager.loggerDict):
        if name == "kafka" or name.startswith("kafka."):
            logging.getLogger(name).addFilter(_once_in_a_while)
