"""`kafka.security` in the words of each client library; what is not set is left to the library's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from lstmstream.config import Security


@dataclass(frozen=True, slots=True)
class SecuritySettings:
    """How to reach a broker that asks who one is, with secrets in plain text: not to be printed."""

    protocol: str = "PLAINTEXT"
    mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)


def security_settings(security: Security, folder: Path) -> SecuritySettings:
    """The configuration's section; paths are from `folder`."""
    return SecuritySettings(
        protocol=security.protocol,
        mechanism=security.mechanism,
        username=security.username,
        password=_plain_text(security.password),
        ca=_path(folder, security.ca),
        cert=_path(folder, security.cert),
        key=_path(folder, security.key),
        key_password=_plain_text(security.key_password),
    )


def for_kafka_python(security: SecuritySettings) -> dict[str, str]:
    """Arguments of kafka-python's clients."""
    return _without_none(
        {
            "security_protocol": security.protocol,
            "sasl_mechanism": security.mechanism,
            "sasl_plain_username": security.username,
            "sasl_plain_password": security.password,
            "ssl_cafile": security.ca,
            "ssl_certfile": security.cert,
            "ssl_keyfile": security.key,
            "ssl_password": security.key_password,
        }
    )


def for_librdkafka(security: SecuritySettings) -> dict[str, str]:
    """Properties of librdkafka."""
    return _without_none(
        {
            "security.protocol": security.protocol,
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password,
            "ssl.ca.location": security.ca,
            "ssl.certificate.location": security.cert,
            "ssl.key.location": security.key,
            "ssl.key.password": security.key_password,
        }
    )


def _plain_text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _path(folder: Path, path: Path | None) -> str | None:
    return None if path is None else str(folder / path)


def _without_none(settings: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if value is not None}
