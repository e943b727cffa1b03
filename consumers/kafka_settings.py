"""Where Kafka is and how one gets in: every security setting of kafka-python's clients."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import ConfigDict, SecretStr, model_validator

from pipeline.settings_section import Section, changeable
from pipeline.user_error import UserError

SECRETS = ("sasl_plain_password", "sasl_oauth_token", "ssl_password", "proxy_url")


class KafkaSettings(Section):
    """The way to the brokers.

    Every secret can stand in a file instead (`..._file`, such as a mounted Kubernetes secret). Secrets are `SecretStr`:
    no repr, log or error message shows them.
    """

    # A validation error would otherwise quote its input, and with it what was given as a password.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    bootstrap_servers: str | None = changeable(
        None, why="host:port[,host:port...] of a Kafka cluster; none: the embedded broker on this machine"
    )
    client_id: str = changeable("palimpsest", min_length=1, why="how this program is called in the brokers' logs")
    connect_timeout_seconds: float = changeable(
        10.0, gt=0, why="how long a start waits for a broker before it gives up"
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = changeable(
        "PLAINTEXT", why="SSL: encrypted; SASL_...: the client says who it is"
    )
    sasl_mechanism: (
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI", "AWS_MSK_IAM"] | None
    ) = changeable(None, why="how the client says who it is, with SASL_PLAINTEXT and SASL_SSL")
    sasl_plain_username: str | None = changeable(None, why="user name for PLAIN and SCRAM")
    sasl_plain_password: SecretStr | None = changeable(None, why="password for PLAIN and SCRAM")
    sasl_plain_password_file: Path | None = changeable(None, why="file that holds the password for PLAIN and SCRAM")
    sasl_kerberos_name: str | None = changeable(None, why="whole name of the brokers' service for GSSAPI: service@host")
    sasl_kerberos_service_name: str = changeable("kafka", why="service name of the brokers for GSSAPI")
    sasl_kerberos_domain_name: str | None = changeable(None, why="domain of the brokers for GSSAPI; none: their host")
    sasl_oauth_token: SecretStr | None = changeable(None, why="bearer token for OAUTHBEARER")
    sasl_oauth_token_file: Path | None = changeable(
        None, why="file that holds the bearer token; read at every connection, so that it can be renewed there"
    )
    sasl_oauth_extensions: dict[str, str] = changeable({}, why="SASL extensions sent along with the bearer token")
    ssl_cafile: Path | None = changeable(None, why="PEM with the authorities that are trusted; none: the system's")
    ssl_certfile: Path | None = changeable(None, why="PEM with the client's certificate and its chain")
    ssl_keyfile: Path | None = changeable(None, why="PEM with the client's private key, if not in ssl_certfile")
    ssl_password: SecretStr | None = changeable(None, why="password of the client's private key")
    ssl_password_file: Path | None = changeable(None, why="file that holds the password of the client's private key")
    ssl_crlfile: Path | None = changeable(None, why="PEM with revoked certificates; the brokers' own are checked")
    ssl_ciphers: str | None = changeable(None, why="ciphers allowed up to TLS 1.2, as an OpenSSL cipher list")
    ssl_check_hostname: bool = changeable(True, why="the brokers' certificates must carry their host names")
    proxy_url: SecretStr | None = changeable(None, why="socks5://[user:password@]host:port to connect through")
    proxy_url_file: Path | None = changeable(None, why="file that holds the proxy's URL")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in SECRETS:
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise ValueError(f"{name} and {name}_file are both set; keep one of them")
        sasl = self.security_protocol.startswith("SASL_")
        if sasl and self.sasl_mechanism is None:
            raise ValueError(
                f"security_protocol {self.security_protocol} needs a sasl_mechanism, such as SCRAM-SHA-512"
            )
        if not sasl and self.sasl_mechanism is not None:
            raise ValueError(
                f"sasl_mechanism {self.sasl_mechanism} has no effect with security_protocol {self.security_protocol}; "
                "set security_protocol to SASL_SSL or SASL_PLAINTEXT"
            )
        for name in self._needed():
            if getattr(self, name) is None and getattr(self, f"{name}_file", None) is None:
                way_out = f"{name} or {name}_file" if name in SECRETS else name
                raise ValueError(f"sasl_mechanism {self.sasl_mechanism} needs {way_out}")
        return self

    def _needed(self) -> tuple[str, ...]:
        match self.sasl_mechanism:
            case "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512":
                return ("sasl_plain_username", "sasl_plain_password")
            case "OAUTHBEARER":
                return ("sasl_oauth_token",)
            case _:
                return ()

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    def secret(self, name: str) -> str | None:
        """The secret `name` in the clear, from its setting or its file (trailing newline dropped); None if not set.

        Raises `UserError` where the file cannot be read or is empty.
        """
        assert name in SECRETS, name
        path: Path | None = getattr(self, f"{name}_file")
        if path is not None:
            return read_secret(path, f"{name}_file")
        value: SecretStr | None = getattr(self, name)
        return None if value is None else value.get_secret_value()


def read_secret(path: Path, setting: str) -> str:
    """The content of a secret's file, its trailing newline dropped. Raises `UserError`, one line."""
    try:
        secret = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{setting} {path} is not UTF-8; write the secret alone into it, as text") from error
    except OSError as error:
        raise UserError(
            f"{setting} {path} cannot be read ({error.strerror}); let it name a readable file with the secret alone"
        ) from error
    if not secret:
        raise UserError(f"{setting} {path} is empty; write the secret alone into it")
    return secret
