"""The configuration: all faults are reported at once, by path, and no secret is ever shown."""

from __future__ import annotations

import subprocess
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstmstream.config import Config, load_config, options
from lstmstream.config.types import start_ms
from lstmstream.errors import CannotServe

CANARY = "canary-hunter2"
SECTIONS_INSIDE = (
    ("kafka", "security"),
    ("kafka", "security", "oauth"),
    ("kafka", "schema_registry"),
    ("input", "silent"),
    ("output", "events"),
)
LEAST = """\
name: card-fraud
model: models/card-fraud.onnx
kafka: {bootstrap_servers: localhost:9092}
input: {topic: transactions}
output: {topic: predictions}
"""

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str | bytes = LEAST, environ: Mapping[str, str] | None = None) -> Config:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, environ or {})

    return load


def tree(**changes: Any) -> str:
    """The least configuration with values put in; `kafka__client` means `kafka.client`."""
    document = yaml.safe_load(LEAST)
    for path, value in changes.items():
        branch = document
        *sections, key = path.split("__")
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[key] = value
    return yaml.safe_dump(document)


def problems(load: Load, text: str | bytes = LEAST, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(CannotServe) as caught:
        load(text, environ)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert all("\n" not in problem for problem in caught.value.problems)
    return list(caught.value.problems)


def attempt(load: Load, text: str | bytes, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What is wrong, or nothing; any other exception is a fault of ours."""
    try:
        load(text, environ)
    except CannotServe as error:
        return error.problems or ("something is wrong\n",)
    return ()


def test_the_least_that_runs_has_the_documented_defaults(load: Load, tmp_path: Path) -> None:
    config = load()
    assert config.name == "card-fraud"
    assert config.model == "models/card-fraud.onnx"
    assert config.folder == tmp_path.resolve()
    assert (config.delivery, config.on_model_change, config.create_topics) == ("exactly_once", "fail", True)
    assert config.shutdown_timeout == 30.0
    assert (config.log.level, config.log.format) == ("info", "json")
    assert config.kafka.bootstrap_servers == ["localhost:9092"]
    assert (config.kafka.client, config.kafka.properties) == ("auto", {})
    assert config.kafka.security.protocol == "PLAINTEXT"
    assert (config.input.topic, config.input.key, config.input.timestamp) == ("transactions", None, None)
    assert (config.input.format, config.input.start, config.input.late) == ("json", "earliest", "apply")
    assert config.input.max_bytes == 10_000_000
    assert (config.output.topic, config.output.alerts_topic, config.output.threshold) == ("predictions", None, None)
    assert (config.output.include, config.output.reasons, config.output.key) == ([], 0, None)
    assert config.dead_letter.topic == "card-fraud.dead-letter"
    assert (config.state.topic, config.state.checkpoint_interval) == ("card-fraud.state", 30.0)
    assert (config.state.ttl, config.state.replay, config.state.max_keys, config.state.dir) == (
        None,
        604800,
        None,
        None,
    )
    assert (config.batch.max_events, config.batch.max_wait) == (4096, 0.0)
    assert (config.device.device, config.device.threads) == ("auto", 1)
    assert (config.http.host, config.http.port, config.http.token) == ("127.0.0.1", 9108, None)
    assert config.http.stall_after == 30.0


def test_every_option_is_described_and_its_default_is_a_legal_value(load: Load) -> None:
    assert len({option.path for option in options()}) == len(options()) > 60
    for option in options():
        assert option.description.endswith("."), option.path
        assert option.required == (
            option.path in {"name", "model", "kafka.bootstrap_servers", "input.topic", "output.topic"}
        ), option.path


def test_nothing_can_be_changed_after_loading(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().http.port = 1  # type: ignore[misc]


def test_all_faults_are_reported_at_once_with_their_paths(load: Load) -> None:
    text = """
name: card-fraud
model: m.onnx
delivery: twice
on_model_change: restart
colour: red
kafka:
  bootstrap_servers: localhost
  client: confuent
  properties: {group.id: x, sesion.timeout.ms: 1, batch.size: many, heartbeat.interval.ms: 60000}
  security: {mechanism: PLAIN, username: u, ca: missing.pem}
input: {topic: events, max_byte: 3, format: xml}
output: {topic: events, threshold: high}
state: {max_keys: 0, ttl: 30}
batch: {max_events: 0, max_wait: 40s}
http: {port: 70000}
"""
    found = problems(load, text, {"LSTMSTREAM_HTTP__HOTS": "x"})
    paths = [line.partition(": ")[0] for line in found]
    assert set(paths) == {
        "LSTMSTREAM_HTTP__HOTS",
        "delivery",
        "on_model_change",
        "colour",
        "kafka.bootstrap_servers",
        "kafka.client",
        "kafka.properties.group.id",
        "kafka.properties.sesion.timeout.ms",
        "kafka.properties.batch.size",
        "kafka.properties.heartbeat.interval.ms",
        "kafka.security.mechanism",
        "kafka.security.password",
        "kafka.security.ca",
        "input.max_byte",
        "input.format",
        "output.topic",
        "output.threshold",
        "state.max_keys",
        "state.ttl",
        "batch.max_events",
        "batch.max_wait",
        "http.port",
    }
    by_path = dict(zip(paths, found, strict=True))
    assert "did you mean max_bytes?" in by_path["input.max_byte"]
    assert "did you mean session.timeout.ms?" in by_path["kafka.properties.sesion.timeout.ms"]
    assert "did you mean LSTMSTREAM_HTTP__HOST?" in by_path["LSTMSTREAM_HTTP__HOTS"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("[1, 2]", "mapping"),
        ("just text", "mapping"),
        ("a: 'x\nb: 1", "line 2"),
        ("a: 1\na: 2", "the key a is given twice"),
        ("a: {b: {c: 1, c: 1}}", "the key c is given twice"),
        ("a: &x 1\nb: *x", "alias"),
        ("1: a", "not text"),
        ("? [a, b]\n: c", "not text"),
        ("a: 1\n---\nb: 1", "line 2"),
        ("!!python/object/apply:os.system ['true']", "constructor"),
        ("a: 2024-99-99", "put the value in quotes"),
        ("a: " + "9" * 5000, "put the value in quotes"),
        ("a: \x00", "put the value in quotes"),
        (b"a: \xff", "UTF-8"),
        ("[" * 100_000, "nested too deeply"),
        ("#" * 2_000_000, "larger than"),
    ],
)
def test_a_file_that_is_not_a_mapping_of_keys_is_refused(load: Load, text: str | bytes, message: str) -> None:
    assert message in problems(load, text)[0]


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path, Path("/dev/null")):
        with pytest.raises(CannotServe):
            load_config(path, {})


def test_without_a_file_the_environment_is_enough() -> None:
    config = load_config(
        None,
        {
            "LSTMSTREAM__NAME": "n",
            "LSTMSTREAM__MODEL": "builtin:demo",
            "LSTMSTREAM_KAFKA__BOOTSTRAP_SERVERS": "a:1, b:2",
            "LSTMSTREAM_INPUT__TOPIC": "i",
            "LSTMSTREAM_OUTPUT__TOPIC": "o",
        },
    )
    assert config.kafka.bootstrap_servers == ["a:1", "b:2"]
    assert config.dead_letter.topic == "n.dead-letter"


def test_missing_keys_are_named_even_where_the_section_is_missing_or_empty(load: Load) -> None:
    found = problems(load, "input:\nkafka: {}\n")
    assert [line.split(": ")[:2] for line in found] == [
        [path, "is missing; " + line.split(": ")[1].partition("; ")[2]]
        for path, line in zip(
            ["name", "model", "kafka.bootstrap_servers", "input.topic", "output.topic"], found, strict=True
        )
    ]


def test_every_key_can_be_overridden(load: Load) -> None:
    """A variable's name leads to the key, and its text wins over the file's."""
    for option in options():
        *sections, key = option.path.split(".", 1) if "properties" not in option.path else option.path.split(".", 2)
        for *above, inner in SECTIONS_INSIDE:
            if sections == above and key.startswith(f"{inner}."):
                sections, key = [*above, inner], key.removeprefix(f"{inner}.")
        name = "LSTMSTREAM_" + "__".join([*(sections or [""]), key]).replace(".", "_").upper()
        if not sections:
            name = f"LSTMSTREAM__{key.upper()}"
        assert not any("does not name an option" in problem for problem in attempt(load, LEAST, {name: "!"})), name


def test_variables_override_the_file(load: Load) -> None:
    config = load(
        tree(http__port=1, state__ttl="5s"),
        {
            "LSTMSTREAM_HTTP__PORT": "9000",
            "LSTMSTREAM__DELIVERY": "at_least_once",
            "LSTMSTREAM__CREATE_TOPICS": "false",
            "LSTMSTREAM_STATE__TTL": "",  # empty: as if left out
            "LSTMSTREAM_OUTPUT__INCLUDE": "amount, customer.id",
            "LSTMSTREAM_OUTPUT__THRESHOLD": "0.5",
            "LSTMSTREAM_LOG__LEVEL": "DEBUG",
            "LSTMSTREAM_KAFKA__PROPERTIES__SESSION_TIMEOUT_MS": "10000",
            "LSTMSTREAM_KAFKA__SECURITY__PROTOCOL": "ssl",
            "LSTMSTREAM_PORT_9108_TCP_ADDR": "10.0.0.1",  # Kubernetes makes these
            "LSTMSTREAM_SERVICE_HOST": "10.0.0.1",
            "PATH": "/bin",
        },
    )
    assert config.http.port == 9000
    assert config.delivery == "at_least_once"
    assert config.create_topics is False
    assert config.state.ttl is None
    assert config.output.include == ["amount", "customer.id"]
    assert config.output.threshold == 0.5
    assert config.log.level == "debug"
    assert config.kafka.properties == {"session.timeout.ms": 10_000}
    assert config.kafka.security.protocol == "SSL"


@pytest.mark.parametrize(
    "name",
    [
        "LSTMSTREAM_HTTP__PROT",
        "LSTMSTREAM__HTTP",
        "LSTMSTREAM_KAFKA__SECURITY",
        "LSTMSTREAM_http__port",
        "LSTMSTREAM__",
        "LSTMSTREAM_X__FILE",
        "LSTMSTREAM_KAFKA__PROPERTIES__GROUP_ID",
    ],
)
def test_a_variable_that_does_not_name_an_option_is_refused(load: Load, name: str) -> None:
    (line,) = problems(load, LEAST, {name: CANARY})
    assert line.startswith(f"{name}: does not name an option")


def test_a_wrong_variable_is_named(load: Load) -> None:
    (line,) = problems(load, LEAST, {"LSTMSTREAM_HTTP__PORT": "many"})
    assert line.startswith("http.port: ")
    assert "LSTMSTREAM_HTTP__PORT" in line


def test_secrets_come_from_files(load: Load, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{CANARY}\n")
    config = load(LEAST, {"LSTMSTREAM_HTTP__TOKEN_FILE": str(secret)})
    assert config.http.token is not None
    assert config.http.token.get_secret_value() == CANARY
    assert config.files == {"http.token": secret}
    renewable = config.secret("http.token")
    assert renewable is not None
    secret.write_text("another\n")
    assert renewable.current() == "another"
    assert config.secret("kafka.schema_registry.password") is None
    for name, value in (("HTTP__TOKEN", CANARY), ("HTTP__TOKEN_FILE", CANARY), ("HTTP__TOKEN_FILE", str(tmp_path))):
        both = {f"LSTMSTREAM_{name}": value}
        if name == "HTTP__TOKEN":
            both["LSTMSTREAM_HTTP__TOKEN_FILE"] = str(secret)
        (line,) = problems(load, LEAST, both)
        assert line.startswith("LSTMSTREAM_HTTP__TOKEN_FILE: ")


SASL = {
    "kafka__security__protocol": "SASL_SSL",
    "kafka__security__mechanism": "SCRAM-SHA-512",
    "kafka__security__username": "u",
}


def test_no_secret_shows_in_a_good_configuration(load: Load) -> None:
    config = load(tree(kafka__security__password=CANARY, http__token=CANARY, **SASL))
    assert config.kafka.security.password is not None
    for shown in (repr(config), str(config), config.model_dump_json(), str(config.model_dump()), repr(config.http)):
        assert CANARY not in shown


@pytest.mark.parametrize(
    "text",
    [
        f"http: {{token: {CANARY}, port: x}}",
        f"http: {CANARY}",
        f"http: {{token: [{CANARY}]}}",
        f"http: {{token:{CANARY}}}",
        f"http: {{token: '{CANARY} with spaces'}}",
        f"kafka: {CANARY}",
        f"kafka: {{security: {CANARY}}}",
        f"kafka: {{security: {{password:{CANARY}}}}}",
        f"kafka: {{security: {{password: {CANARY}, mechanism: {CANARY}}}}}",
        f"kafka: {{security: {{passwort: {CANARY}}}}}",
        f"kafka: {{security: {{password: *{CANARY}}}}}",
        f"kafka: {{security: {{password: !{CANARY} x}}}}",
        f"kafka: {{security: {{password: '{CANARY}}}}}",
        f"kafka: {{security: {{password: {CANARY}: {CANARY}}}}}",
        f"kafka: {{security: {{password: {CANARY}",
        f"kafka: {{security: {{ca: {CANARY}, key: {CANARY}}}}}",
        f"kafka: {{properties: {{sasl.jaas.config: {CANARY}, ssl.key.password: {CANARY}, batch.size: {CANARY}}}}}",
        f"kafka: {{bootstrap_servers: 'user:{CANARY}@host:9092'}}",
        f"%{CANARY}",
        f"a: &{CANARY} 1\nb: &{CANARY} 2",
        f"a: !<x'{CANARY}'y> b",
        f'a: "\\q{CANARY}"',
        f"a: '{CANARY}' '{CANARY}'",
    ],
)
def test_no_secret_shows_in_an_error(load: Load, text: str) -> None:
    problems(load, text)  # asserts so


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("250ms", 0.25), ("7d", 604_800.0), ("1h30m", 5_400.0), ("1.5s", 1.5), ("0.001s", 0.001)],
)
def test_durations(load: Load, text: str, seconds: float) -> None:
    assert load(tree(state__ttl=text)).state.ttl == seconds


@pytest.mark.parametrize(
    "value", [30, 0.5, "30", "", "-1s", "0s", 0, "1y", "s", "nan", "1e9s", "0.5ms", "99999999d", [1]]
)
def test_an_invalid_duration_is_refused(load: Load, value: object) -> None:
    assert problems(load, tree(state__ttl=value))[0].startswith("state.ttl: ")


def test_no_wait_may_go_without_a_unit(load: Load) -> None:
    assert load(tree(batch__max_wait=0)).batch.max_wait == 0.0


@pytest.mark.parametrize(
    ("value", "size"),
    [("10MB", 10_000_000), ("64KiB", 65_536), ("1 gib", 2**30), (5, 5), ("5", 5), ("5B", 5), ("3kB", 3000)],
)
def test_sizes(load: Load, value: object, size: int) -> None:
    assert load(tree(input__max_bytes=value)).input.max_bytes == size


@pytest.mark.parametrize("value", ["10XB", "-1", 0, "", "1.5MB", True, 2.5, "5GB", 10**400])
def test_an_invalid_size_is_refused(load: Load, value: object) -> None:
    assert problems(load, tree(input__max_bytes=value))[0].startswith("input.max_bytes: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"input__topic": "a b"},
        {"input__topic": ".."},
        {"input__topic": "x" * 250},
        {"input__topic": "__consumer_offsets"},
        {"name": "a/b"},
        {"name": "x" * 201},
        {"name": 5},
        {"model": "builtin:"},
        {"batch__max_events": 0},
        {"batch__max_events": 100_001},
        {"batch__max_events": True},
        {"http__port": -1},
        {"http__port": 65_536},
        {"http__host": "a\nb"},
        {"http__token": ""},
        {"http__stall_after": "0s"},
        {"shutdown_timeout": "0s"},
        {"output__threshold": float("nan")},
        {"output__threshold": 1e39},
        {"output__include": ["a", "a"]},
        {"output__include": ["a..b"]},
        {"output__key": "."},
        {"alerts__cooldown": "0s"},
        {"alerts__max_per_hour": 0},
        {"alerts__mute": [""]},
        {"alerts__mute": ["a*", "a*"]},
        {"alerts__mute": ["a*", True]},
        {"state__dir": ""},
        {"state__dir": "~/snapshots"},
        {"create_topics": "perhaps"},
        {"device__device": "tpu"},
        {"device__threads": 0},
        {"log__level": "loud"},
        {"log__format": "xml"},
        {"input__late": "never"},
        {"input__start": "middle"},
        {"input__start": "2026-11-31"},
        {"input__start": "1764309600"},
        {"input__start": 1764309600},
        {"input__start": True},
        {"delivery": "maybe"},
        {"kafka__bootstrap_servers": []},
        {"kafka__bootstrap_servers": "host"},
        {"kafka__bootstrap_servers": "host:0"},
        {"kafka__bootstrap_servers": "host:70000"},
        {"kafka__bootstrap_servers": "PLAINTEXT://host:1"},
        {"kafka__bootstrap_servers": "a:1,"},
        {"kafka__client": "java"},
        {"kafka__properties__socket.nagle": 1},
    ],
    ids=str,
)
def test_a_wrong_value_is_named_by_its_path(load: Load, changes: dict[str, Any]) -> None:
    (path,) = (key.replace("__", ".") if not key.endswith("nagle") else key for key in changes)
    found = problems(load, tree(**changes))
    assert len(found) == 1, found
    assert found[0].startswith(path.replace("__", "."))
    assert "; " in found[0] or "must be" in found[0], "no remedy"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"alerts__hold": True}, "alerts.cooldown"),
        ({"alerts__cooldown": "10m", "alerts__end_record": True}, "alerts.end_record"),
        (
            {"alerts__cooldown": "10m", "alerts__hold": True, "alerts__end_record": True, "output__alerts_topic": None},
            "output.alerts_topic",
        ),
    ],
)
def test_alert_options_that_need_another_one(load: Load, changes: dict[str, Any], path: str) -> None:
    (line,) = problems(load, tree(**{"output__alerts_topic": "alerts", **changes}))
    assert line.startswith(f"{path}: ")
    assert "; " in line or "set it" in line


def test_a_policy_for_alerts(load: Load) -> None:
    options = {"cooldown": "10m", "hold": True, "end_record": True, "max_per_hour": 20, "mute": "test-*, 17"}
    config = load(tree(alerts=options, output__alerts_topic="alerts"))
    alerts = config.alerts
    assert (alerts.cooldown, alerts.hold, alerts.end_record, alerts.max_per_hour) == (600.0, True, True, 20)
    assert (alerts.mute, alerts.any) == (["test-*", "17"], True)
    assert not load().alerts.any


@pytest.mark.parametrize("path", ["input", "output", "dead_letter", "state"])
def test_topics_differ(load: Load, path: str) -> None:
    assert (
        "is the same topic as"
        in problems(load, tree(**{f"{path}__topic": "al_erts", "output__alerts_topic": "al.erts"}))[0]
    )
    load(tree(**{f"{path}__topic": "one", "output__alerts_topic": "two"}))


BEARER = {"protocol": "SASL_SSL", "mechanism": "OAUTHBEARER"}
CLIENT = {"client_id": "c", "client_secret": CANARY}


@pytest.mark.parametrize(
    ("security", "path"),
    [
        ({"protocol": "SASL_SSL"}, "mechanism"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "u"}, "password"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN", "password": CANARY}, "username"),
        ({"protocol": "SASL_SSL", "mechanism": "PLAIN", "username": "u", "password": ""}, "password"),
        ({"protocol": "SASL_SSL", "mechanism": "GSSAPI", "username": "u", "password": CANARY}, "mechanism"),
        ({"protocol": "SASL_PLAINTEXT", "mechanism": "PLAIN", "username": "u", "password": CANARY}, "protocol"),
        ({"mechanism": "PLAIN", "username": "u", "password": CANARY}, "mechanism"),
        ({"password": CANARY}, "password"),
        ({"username": "u"}, "username"),
        ({"protocol": "SSL", "cert": "pem"}, "key"),
        ({"protocol": "SSL", "key": "pem"}, "cert"),
        ({"protocol": "SSL", "ca": "missing"}, "ca"),
        ({"protocol": "SSL", "ca": "."}, "ca"),
        ({"protocol": "SSL", "ca": "a\0b"}, "ca"),
        ({"protocol": "SSL", "cert": "pem", "key": "encrypted"}, "key_password"),
        ({"protocol": "SSL", "key_password": CANARY}, "key_password"),
        ({"ca": "pem"}, "ca"),
        ({**BEARER}, "oauth.token"),
        ({**BEARER, "oauth": {"token": CANARY}, "password": CANARY}, "password"),
        ({**BEARER, "oauth": {"token": CANARY, "token_url": "https://a/b", **CLIENT}}, "oauth.token"),
        ({**BEARER, "oauth": {"token": CANARY, "scope": "s"}}, "oauth.scope"),
        ({**BEARER, "oauth": {"token_url": "https://a/b", "client_id": "c"}}, "oauth.client_secret"),
        ({**BEARER, "oauth": {"token_url": "http://a/b", **CLIENT}}, "oauth.token_url"),
        ({**BEARER, "oauth": {"token_url": f"https://{CANARY}@a/b", **CLIENT}}, "oauth.token_url"),
        ({**BEARER, "oauth": {"token_url": "https://a/b", **CLIENT, "ca": "pem"}}, "oauth.ca"),
        ({"protocol": "SSL", "oauth": {"token": CANARY}}, "oauth.token"),
    ],
    ids=str,
)
def test_security_that_cannot_work_is_refused(load: Load, tmp_path: Path, security: dict[str, Any], path: str) -> None:
    (tmp_path / "pem").write_text("pem")
    (tmp_path / "encrypted").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    found = problems(load, tree(kafka__security=security))
    assert [line.partition(": ")[0] for line in found] == [f"kafka.security.{path}"]


@pytest.fixture
def certificate_files(tmp_path: Path) -> None:
    """Two certificates with their keys, one key with a password, one certificate in DER form, and no certificate."""
    for arguments in (
        "req -x509 -newkey rsa:2048 -nodes -keyout one.key -out one.pem -days 30 -subj /CN=one",
        "req -x509 -newkey rsa:2048 -nodes -keyout two.key -out two.pem -days 30 -subj /CN=two",
        f"rsa -aes256 -in one.key -out locked.key -passout pass:{CANARY}",
        "x509 -in one.pem -outform DER -out one.der",
    ):
        subprocess.run(["openssl", *arguments.split()], cwd=tmp_path, check=True, capture_output=True, timeout=180)
    (tmp_path / "empty").touch()


@pytest.mark.usefixtures("certificate_files")
@pytest.mark.parametrize(
    ("security", "path", "said"),
    [
        ({"ca": "one.der"}, "ca", "holds no certificate"),
        ({"ca": "one.key"}, "ca", "holds no certificate"),
        ({"ca": "empty"}, "ca", "holds no certificate"),
        ({"cert": "one.pem", "key": "two.key"}, "key", "is not the key of kafka.security.cert"),
        ({"cert": "one.der", "key": "one.key"}, "cert", "holds no certificate"),
        ({"cert": "one.pem", "key": "two.pem"}, "key", "holds no private key"),
        ({"cert": "one.pem", "key": "locked.key", "key_password": "wrong"}, "key_password", "does not open"),
    ],
    ids=str,
)
def test_certificate_files_that_tls_cannot_use_are_refused(
    load: Load, security: dict[str, str], path: str, said: str
) -> None:
    """Before a broker is asked; neither the passwords nor the files are shown."""
    (line,) = problems(load, tree(kafka__security={"protocol": "SSL", **security}))
    assert line.startswith(f"kafka.security.{path}: ")
    assert said in line
    assert "wrong" not in line


@pytest.mark.usefixtures("certificate_files")
def test_security_that_works(load: Load) -> None:
    load(tree(kafka__security={"protocol": "SSL", "cert": "one.pem", "key": "locked.key", "key_password": CANARY}))
    login = {"mechanism": "scram-sha-256", "username": "u", "password": CANARY}
    load(tree(kafka__security={"protocol": "SASL_PLAINTEXT", "insecure": True, **login}))
    security = load(
        tree(kafka__security={"protocol": "SASL_SSL", "ca": "two.pem", "cert": "one.pem", "key": "one.key", **login})
    ).kafka.security
    assert (security.mechanism, str(security.ca)) == ("SCRAM-SHA-256", "two.pem")
    load(tree(kafka__security={**BEARER, "oauth": {"token": CANARY}}))
    load(tree(kafka__security={**BEARER, "oauth": {"token_url": "https://a/b", **CLIENT, "ca": "one.pem"}}))
    load(tree(kafka__security={**BEARER, "insecure": True, "oauth": {"token_url": "http://a/b", **CLIENT}}))


@pytest.mark.parametrize(
    "name",
    [
        "group.id",
        "transactional.id",
        "enable.auto.commit",
        "auto.offset.reset",
        "isolation.level",
        "acks",
        "enable.idempotence",
        "partition.assignment.strategy",
    ],
)
def test_properties_that_would_break_a_promise_are_refused_with_the_reason(load: Load, name: str) -> None:
    (line,) = problems(load, tree(kafka__properties={name: "x"}))
    assert line.startswith(f"kafka.properties.{name}: cannot be set here: ")


def test_a_wait_that_would_lose_the_group_or_the_probe_is_refused(load: Load) -> None:
    patient = {"http__stall_after": "1h", "batch__max_wait": "60s"}
    assert "max.poll.interval.ms" in problems(load, tree(**patient))[0]
    load(tree(**patient, kafka__properties={"max.poll.interval.ms": 60_001}))
    assert "http.stall_after" in problems(load, tree(batch__max_wait="30s"))[0]


def test_properties_keep_their_dotted_names_and_get_their_types(load: Load) -> None:
    given = {
        "session.timeout.ms": "20000",
        "heartbeat.interval.ms": 2000,
        "max.poll.interval.ms": 90_000,
        "group.instance.id": "worker-1",
        "fetch.min.bytes": 10,
        "batch.size": 1000,
        "receive.buffer.bytes": 1000,
        "compression.type": "lz4",
        "linger.ms": 0,
    }
    assert load(tree(kafka__properties=given)).kafka.properties == {**given, "session.timeout.ms": 20_000}


@pytest.mark.parametrize(
    "given",
    [
        {"heartbeat.interval.ms": 45_000},
        {"session.timeout.ms": 3_000},
        {"fetch.max.wait.ms": 5_000},
        {"connections.max.idle.ms": 100},
        {"compression.type": "rar"},
        {"linger.ms": -1},
        {"batch.size": 2**31},
        {"group.instance.id": "a b"},
        {"client.id": "x" * 256},
        {"max.block.ms": 1},
        {"transaction.timeout.ms": 999},
        {"fetch.max.bytes": 1},
        {"retry.backoff.ms": 100_000},
        {"request.timeout.ms": 5, "fetch.max.wait.ms": 1},
    ],
    ids=lambda given: str(given)[:60],
)
def test_properties_that_cannot_work_are_refused(load: Load, given: dict[str, Any]) -> None:
    (line,) = problems(load, tree(kafka__properties=given))
    assert line.startswith(f"kafka.properties.{next(iter(given))}: ")


keys = st.sampled_from(
    [
        "name", "model", "kafka", "input", "output", "state", "batch", "http", "log", "topic", "security", "password",
        "properties", "batch.size", "bootstrap_servers", "ttl", "threshold", "include", "max_bytes", "port", "key",
    ]
)  # fmt: skip
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=5)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | st.binary() | trees.map(lambda tree: yaml.safe_dump(tree, allow_unicode=True)))
def test_any_file_gives_a_configuration_or_says_what_is_wrong(load: Load, text: str | bytes) -> None:
    assert all(
        problem.isprintable()
        for problem in attempt(load, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    )


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.sampled_from([option.path.replace(".", "__", 1) for option in options() if "properties" not in option.path]),
        scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=3), scalars, max_size=2),
        max_size=4,
    ),
    properties=st.dictionaries(st.sampled_from([o.path[17:] for o in options() if "properties" in o.path]), scalars),
)
def test_any_value_gives_a_configuration_or_says_what_is_wrong(
    load: Load, changes: dict[str, Any], properties: dict[str, Any]
) -> None:
    changes = {path.replace("security.", "security__"): value for path, value in changes.items()}
    assert all(problem.isprintable() for problem in attempt(load, tree(**changes, kafka__properties=properties)))


def test_a_key_that_is_a_number_is_unknown(load: Load) -> None:
    assert any(line.startswith("0: unknown key") for line in problems(load, LEAST + '"0": 1\n'))


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("name", "name"),
        ("delivery", "`exactly_once`, `at_least_once`"),
        ("create_topics", "`true`, `false`"),
        ("shutdown_timeout", "duration above 0"),
        ("batch.max_wait", "duration"),
        ("input.max_bytes", "size"),
        ("input.key", "field"),
        ("output.include", "list of fields"),
        ("output.reasons", "integer 0 to 1,000"),
        ("output.threshold", "number"),
        ("batch.max_events", "integer 1 to 100,000"),
        ("state.max_keys", "integer from 1"),
        ("kafka.security.ca", "path"),
        ("kafka.properties.session.timeout.ms", "integer from 1"),
    ],
)
def test_an_option_says_which_values_it_takes(path: str, kind: str) -> None:
    assert {option.path: option.kind for option in options()}[path] == kind


@pytest.mark.parametrize(
    ("registry", "changes", "path"),
    [
        ({}, {"input__format": "avro"}, "kafka.schema_registry.url"),
        ({}, {"input__format": "protobuf"}, "kafka.schema_registry.url"),
        ({}, {"output__format": "avro"}, "kafka.schema_registry.url"),
        ({"url": "registry:8081"}, {}, "kafka.schema_registry.url"),
        ({"url": "ftp://registry"}, {}, "kafka.schema_registry.url"),
        ({"url": "http://"}, {}, "kafka.schema_registry.url"),
        ({"url": "http://registry:99999"}, {}, "kafka.schema_registry.url"),
        ({"url": "http://registry:8081/?a=b"}, {}, "kafka.schema_registry.url"),
        ({"url": f"https://user:{CANARY}@registry"}, {}, "kafka.schema_registry.url"),
        ({"url": "https://registry", "username": "u"}, {}, "kafka.schema_registry.password"),
        ({"url": "https://registry", "password": CANARY}, {}, "kafka.schema_registry.username"),
        ({"url": "http://registry", "username": "u", "password": CANARY}, {}, "kafka.schema_registry.url"),
        ({"url": "https://registry", "ca": "missing"}, {}, "kafka.schema_registry.ca"),
        ({"url": "https://registry", "timeout": "0s"}, {}, "kafka.schema_registry.timeout"),
        ({"url": "https://registry", "timeout": "8s"}, {}, "kafka.schema_registry.timeout"),
        (
            {"url": "http://registry"},
            {"output__format": "avro", "output__cloudevents": "structured"},
            "output.cloudevents",
        ),
        ({}, {"input__format": "xml"}, "input.format"),
        ({}, {"input__unwrap": "before"}, "input.unwrap"),
    ],
)
def test_schema_registries_that_cannot_be(
    load: Load, registry: dict[str, Any], changes: dict[str, Any], path: str
) -> None:
    given = {f"kafka__schema_registry__{name}": value for name, value in registry.items()}
    (line,) = problems(load, tree(**given, **changes))
    assert line.startswith(f"{path}: "), line
    assert CANARY not in line


def test_a_schema_registry(load: Load) -> None:
    given = {"url": "https://registry.example.com:8081/apis/ccompat/v7/", "username": "u", "password": CANARY}
    config = load(
        tree(**{f"kafka__schema_registry__{name}": value for name, value in given.items()}, input__format="avro")
    )
    assert config.kafka.schema_registry.url == "https://registry.example.com:8081/apis/ccompat/v7"
    assert CANARY not in repr(config)
    insecure = {**given, "url": "http://registry:8081", "insecure": True}
    load(tree(**{f"kafka__schema_registry__{name}": value for name, value in insecure.items()}))


@pytest.mark.parametrize(
    ("written", "ms"),
    [
        ("earliest", None),
        ("latest", None),
        ("2026-11-28T06:00:00Z", 1_795_845_600_000),
        ("2026-11-28T07:00:00+01:00", 1_795_845_600_000),
        ("2026-11-28", 1_795_824_000_000),
        (date(2026, 11, 28), 1_795_824_000_000),
        (datetime(2026, 11, 28, 6, tzinfo=UTC), 1_795_845_600_000),
        ("1h30m", 1_795_845_600_000 - 5_400_000),
        ("7d", 1_795_845_600_000 - 7 * 86_400_000),
    ],
    ids=str,
)
def test_where_to_start(load: Load, written: Any, ms: int | None) -> None:
    assert start_ms(load(tree(input__start=written)).input.start, now_s=1_795_845_600.0) == ms
