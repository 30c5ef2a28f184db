"""`kafka.security` in the words of each client library; what is not set is left to the library's defaults.

Secrets that come from a file, and the files of TLS, may be replaced while the daemon runs. kafka-python reads them for
each connection (`clients/kafka_python_network.py`). librdkafka reads them when a client object is made, so that the
transport makes new ones after a failure, where `SecuritySettings.digest` is another one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from pydantic import SecretStr

from lstmstream.config import Security
from lstmstream.config.files import RenewableSecret, UnreadableFile, read_small_file
from lstmstream.transport.oauth import TokenSource

OPTION = "kafka.security"


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
    secret_files: Mapping[str, Path] = field(default_factory=dict, repr=False)  # by the fields that they are read into
    tokens: TokenSource | None = None  # of OAUTHBEARER

    def current(self) -> SecuritySettings:
        """With the secrets that their files hold now; one that cannot be read, or is empty, stays as it was."""
        secrets = {name: RenewableSecret(getattr(self, name), file) for name, file in self.secret_files.items()}
        current = {name: secret.current() for name, secret in secrets.items()}
        return replace(self, **current)  # type: ignore[arg-type] # fields of text

    def digest(self) -> bytes:
        """Of the contents of all files with secrets and certificates: another one after one of them was replaced."""
        digest = blake2b()
        for file in self._files():
            try:
                content = read_small_file(file)
            except UnreadableFile as error:
                content = str(error).encode()
            digest.update(blake2b(content).digest())
        return digest.digest()

    @property
    def rotates(self) -> bool:
        """Whether any of it comes from a file, which may be replaced, or from where it is renewed."""
        return self.tokens is not None or any(True for _ in self._files())

    def _files(self) -> Iterator[Path]:
        yield from self.secret_files.values()
        yield from (Path(file) for file in (self.ca, self.cert, self.key) if file is not None)


def security_settings(security: Security, folder: Path, files: Mapping[str, Path] | None = None) -> SecuritySettings:
    """The configuration's section; paths are from `folder`. `files`: where options were read from, by their paths."""
    own = _named(files or {}, ("password", "key_password"), OPTION)
    of_tokens = _named(files or {}, ("token", "client_secret"), f"{OPTION}.oauth")
    return SecuritySettings(
        protocol=security.protocol,
        mechanism=security.mechanism,
        username=security.username,
        password=_plain_text(security.password),
        ca=_path(folder, security.ca),
        cert=_path(folder, security.cert),
        key=_path(folder, security.key),
        key_password=_plain_text(security.key_password),
        secret_files=own,
        tokens=TokenSource(security.oauth, folder, of_tokens) if security.mechanism == "OAUTHBEARER" else None,
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
            # Without one, a password that a new key needs would be asked for on the terminal.
            "ssl_password": security.key_password or (None if security.key is None else ""),
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


def _named(files: Mapping[str, Path], names: Collection[str], above: str) -> dict[str, Path]:
    return {name: files[f"{above}.{name}"] for name in names if f"{above}.{name}" in files}


def _plain_text(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _path(folder: Path, path: Path | None) -> str | None:
    return None if path is None else str(folder / path)


def _without_none(settings: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if value is not None}
