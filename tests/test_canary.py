"""A secret in each place that takes one is in no output of any command."""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from lstmstream import logs
from lstmstream.config import Config, load_config
from lstmstream.config.types import Section, section_of
from lstmstream.serve import process
from lstmstream.shutdown import ShutdownSignal
from tests.transport.servers import Certificates, kafka, serving
from tests.transport.token_endpoint import TokenEndpoint

CANARY = "c4n4ry+s3cr3t"
SECRETS = {"http.token", "kafka.schema_registry.password"} | {
    f"kafka.security.{name}" for name in ("password", "key_password", "oauth.token", "oauth.client_secret")
}
# Each command with the login that it uses: together they have all secrets.
COMMANDS = [
    ("run", "password"),
    ("run --workers 2", "token in the environment"),
    ("check", "password"),
    ("check --json", "client secret"),
    ("verify", "token in the environment"),
    ("dead-letter list", "client secret"),
    ("state list", "password"),
    ("dead-letter show 0@0", "password"),
    ("dead-letter replay --all", "token in the environment"),
]


def secrets_of(section: type[Section], above: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield from secrets_of(inner, f"{above}{name}.")
        elif "SecretStr" in str(field.annotation):
            yield f"{above}{name}"


def test_these_are_all_options_with_secrets() -> None:
    assert set(secrets_of(Config, "")) == SECRETS


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    """A broker that accepts nobody, and a token endpoint that gives a token to whoever knows the secret."""
    refusing = kafka("a:1", mechanisms=("PLAIN", "OAUTHBEARER"), password="another", complete=True)
    with serving(refusing) as broker, TokenEndpoint("daemon", CANARY).serving() as endpoint:
        yield broker, endpoint


def config_file(folder: Path, login: str, broker: str, endpoint: str) -> tuple[Path, dict[str, str]]:
    """A configuration, and the variables beside it."""
    variables: dict[str, str] = {}
    plain = {"protocol": "SASL_PLAINTEXT", "insecure": True}
    if login == "password":
        security: dict[str, Any] = {**plain, "mechanism": "PLAIN", "username": "u", "password": CANARY}
    elif login == "client secret":
        oauth = {"token_url": endpoint, "client_id": "daemon", "client_secret": CANARY}
        security = {**plain, "mechanism": "OAUTHBEARER", "oauth": oauth}
    else:
        security = {**plain, "mechanism": "OAUTHBEARER"}
        (folder / "token").write_text(CANARY)
        variables = {
            "LSTMSTREAM_KAFKA__SECURITY__OAUTH__TOKEN_FILE": str(folder / "token"),
            "LSTMSTREAM_HTTP__TOKEN": CANARY,
        }
    registry = {"url": "http://127.0.0.1:9", "username": "u", "password": CANARY, "insecure": True}
    settings: dict[str, Any] = {
        "name": "canary",
        "model": "builtin:demo",
        "kafka": {"bootstrap_servers": broker, "security": security, "schema_registry": registry},
        "input": {"topic": "in"},
        "output": {"topic": "out"},
        "http": {"port": 0} | ({} if variables else {"token": CANARY}),
        "log": {"level": "debug"},
    }
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path, variables


def found_in(output: str) -> list[str]:
    """In which forms the secret is in there."""
    forms = [CANARY, quote(CANARY, safe=""), *(b64encode(text.encode()).decode() for text in (CANARY, f"u:{CANARY}"))]
    return [form for form in forms if form in output]


@pytest.fixture(scope="module")
def outputs(servers: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and all output of each command, several at a time."""

    def output(command: str, login: str, folder: Path) -> tuple[int, str]:
        config, variables = config_file(folder, login, *servers)
        name, *others = command.split(" ")
        sub = [others.pop(0)] if name in {"dead-letter", "state"} else []
        done = subprocess.run(
            [sys.executable, "-m", "lstmstream", name, *sub, str(config), *others],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        return done.returncode, done.stdout

    with ThreadPoolExecutor(4) as pool:
        tries = {
            command: pool.submit(output, command, login, tmp_path_factory.mktemp("canary"))
            for command, login in COMMANDS
        }
        return {command: one.result() for command, one in tries.items()}


@pytest.mark.parametrize("command", [command for command, _ in COMMANDS])
def test_no_command_prints_a_secret(outputs: dict[str, tuple[int, str]], command: str) -> None:
    code, output = outputs[command]
    assert code == (1 if command.startswith("check") else 2), output
    assert "credentials" in output, "it came to the login, and no further"
    assert found_in(output) == [], output


def test_no_key_file_is_shown_with_its_password(tmp_path: Path) -> None:
    made = Certificates(tmp_path)
    cert, key = made.certificate("client"), made.key("client")
    locked = tmp_path / "locked.key"
    command = ["openssl", "rsa", "-aes256", "-in", key, "-out", locked, "-passout", f"pass:{CANARY}"]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    path, _ = config_file(tmp_path, "password", "127.0.0.1:9", "")
    settings = yaml.safe_load(path.read_text())
    settings["kafka"]["security"] = {
        "protocol": "SSL",
        "ca": str(made.root),
        "cert": str(cert),
        "key": str(locked),
        "key_password": CANARY,
    }
    path.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "lstmstream", "check", str(path)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "connection refused" in done.stdout
    assert found_in(done.stdout + done.stderr) == []


def test_no_traceback_shows_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even that of an error that carries the whole configuration."""
    path, variables = config_file(tmp_path, "password", "127.0.0.1:9", "")
    config = load_config(path, variables)

    def fail(*_: object) -> None:
        raise RuntimeError(f"{config!r} {config.kafka.security} {config.model_dump()}")

    monkeypatch.setattr(process, "load_step_model", fail)
    logs.configure("debug", "json")
    assert process.run(config, ShutdownSignal()) == 1
    output = "".join(capfd.readouterr())
    assert "Traceback" in output
    assert "SecretStr('**********')" in output
    assert found_in(output) == []
