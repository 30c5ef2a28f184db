"""What users read when something is wrong, word for word: what it is, where, and how to fix it.

A message that changes on purpose changes here as well.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmstream import cli, extras
from lstmstream.config import load_config
from lstmstream.errors import CannotServe
from lstmstream.model import load_model
from lstmstream.serve.http import HttpServer
from lstmstream.train.schema import load_training

DAEMON = """\
name: card-fraud
model: builtin:demo
kafka: {bootstrap_servers: "localhost:9092"}
input: {topic: transactions}
output: {topic: predictions}
"""
TRAINING = """\
name: card-fraud
task: classify
data: {path: transactions.csv, key: customer, timestamp: time}
features: {numbers: [amount]}
target: {field: fraud}
"""


def merged(base: str, changes: str) -> str:
    """The YAML text `base` with the sections in `changes` merged into it."""
    tree = yaml.safe_load(base)
    for name, value in yaml.safe_load(changes).items():
        both = isinstance(tree.get(name), dict) and isinstance(value, dict)
        tree[name] = {**tree[name], **value} if both else value
    return yaml.safe_dump(tree)


def problems(action: Callable[[], Any], folder: Path) -> list[str]:
    """What `action` says is wrong, with `FOLDER` for the path of the folder."""
    with pytest.raises(CannotServe) as caught:
        action()
    return [problem.replace(str(folder), "FOLDER") for problem in caught.value.problems]


def without_place(problem: str) -> str:
    """The place in the file is the subject of tests/test_places.py."""
    return re.sub(r" \(line \d+, column \d+\)$", "", problem)


# --- options of the daemon --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("input: {topic: null}", "input.topic: is missing; set it (topic to read events from)"),
        ("inptu: {}", "inptu: unknown key; did you mean input?"),
        ("state.ttl: 2d", "state.ttl: unknown key; write it as a section: state: {ttl: …}"),
        (
            "output: {zzz: 1}",
            (
                "output.zzz: unknown key; known keys here: topic, format, cloudevents, alerts_topic, threshold,"
                " include, reasons, key, events"
            ),
        ),
        ("http: {'port:9108': null}", "http.port…: unknown key; put a space after the colon"),
        (
            "http: {token_file: secret}",
            "http.token_file: unknown key; set the environment variable LSTMSTREAM_HTTP__TOKEN_FILE instead",
        ),
        ("delivery: once", "delivery: must be one of exactly_once, at_least_once; got 'once'"),
        ("http: {port: 70000}", "http.port: must be less than or equal to 65535; got 70000"),
        ("http: {port: true}", "http.port: must be a number, not true or false; write a number; got True"),
        ("create_topics: 3", "create_topics: must be true or false; got 3"),
        ("batch: 5", "batch: must be a section of keys; indent them below it; got 5"),
        ("state: {ttl: 30}", "state.ttl: needs a unit; write it like 30s, 250ms, 5m, 12h or 7d; got 30"),
        (
            "state: {ttl: soon}",
            "state.ttl: is not a valid duration; write it like 30s, 250ms, 5m, 1h30m or 7d; got 'soon'",
        ),
        (
            "input: {max_bytes: 10XB}",
            "input.max_bytes: is not a valid size; write it like 10MB, 64KiB or a whole number of bytes; got '10XB'",
        ),
        (
            "input: {topic: a b}",
            "input.topic: is not a valid topic name; use 1 to 249 of the characters a-z A-Z 0-9 . _ -; got 'a b'",
        ),
        (
            "input: {key: a..b}",
            "input.key: is not a valid field; write its name, with dots for nested fields: customer.id; got 'a..b'",
        ),
        (
            "kafka: {bootstrap_servers: secret}",
            "kafka.bootstrap_servers: entry 1 is not host:port; write it like broker-1:9092, without a protocol",
        ),
        (
            "kafka: {properties: {group.id: x}}",
            "kafka.properties.group.id: cannot be set here: the consumer group is `name`; set that instead",
        ),
        (
            "kafka: {properties: {sasl.jaas.config: x}}",
            "kafka.properties.sasl.jaas.config: cannot be set here: `kafka.security` has its own options; use those",
        ),
        (
            "output: {alerts_topic: transactions}",
            (
                "output.alerts_topic: is the same topic as input.topic (Kafka treats . and _ as equal); "
                "use different topics"
            ),
        ),
        (
            "kafka: {security: {protocol: SASL_SSL}}",
            (
                "kafka.security.mechanism: is missing, and the protocol needs it; "
                "use one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER"
            ),
        ),
        (
            "kafka: {security: {protocol: SSL, ca: no.pem}}",
            "kafka.security.ca: the file it names does not exist; give the path of a PEM file",
        ),
        (
            "batch: {max_wait: 45s}",
            "batch.max_wait: must be less than http.stall_after; shorten it",
        ),
    ],
)
def test_an_option_of_the_daemon(changes: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "stream.yaml"
    file.write_text(merged(DAEMON, changes))
    assert list(map(without_place, problems(lambda: load_config(file, {}), tmp_path))) == [message]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"LSTMSTREAM_HTTP__PROT": "1"},
            "LSTMSTREAM_HTTP__PROT: does not name an option; did you mean LSTMSTREAM_HTTP__PORT?",
        ),
        (
            {"LSTMSTREAM_HTTP__PORT": "many"},
            "http.port: must be a whole number; got 'many' (from LSTMSTREAM_HTTP__PORT)",
        ),
        (
            {"LSTMSTREAM_HTTP__TOKEN": "a", "LSTMSTREAM_HTTP__TOKEN_FILE": "b"},
            "LSTMSTREAM_HTTP__TOKEN_FILE: LSTMSTREAM_HTTP__TOKEN is set too; keep only one of them",
        ),
        (
            {"LSTMSTREAM_HTTP__TOKEN_FILE": "no-such-file"},
            "LSTMSTREAM_HTTP__TOKEN_FILE: the file it names does not exist; give the path of a readable file",
        ),
    ],
)
def test_a_variable(environ: dict[str, str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "stream.yaml"
    file.write_text(DAEMON)
    assert problems(lambda: load_config(file, environ), tmp_path) == [message]


# --- the file itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "FOLDER/stream.yaml: does not exist; give the path of a YAML file"),
        ("", "FOLDER/stream.yaml: is empty; write at least the required options"),
        ("- a", "FOLDER/stream.yaml: must be a mapping of keys at the top level; write `key: value` lines"),
        (
            "a: [1",
            (
                "FOLDER/stream.yaml: line 1, column 6: while parsing a flow sequence, "
                "expected ',' or ']', but got '<stream end>'; close the bracket"
            ),
        ),
        (
            "a: [b?]",
            (
                "FOLDER/stream.yaml: line 1, column 6: while parsing a flow sequence, expected ',' or ']', but got '?'"
                "; a name or text with one of ?,:#[]{} in it needs quotes"
            ),
        ),
        (
            "a: b: c",
            (
                "FOLDER/stream.yaml: line 1, column 5: mapping values are not allowed here; text with a colon"
                " needs quotes, and keys of a section the same indentation"
            ),
        ),
        (
            "a:\n  b: 1\n c: 2",
            (
                "FOLDER/stream.yaml: line 3, column 2: while parsing a block mapping, expected <block end>, but found"
                " '<block mapping start>'; keys of a section need the same indentation"
            ),
        ),
        (
            "\ta: 1",
            (
                "FOLDER/stream.yaml: line 1, column 1: while scanning for the next token, found character '\\t' that"
                " cannot start any token; indent with spaces, not with tabs"
            ),
        ),
        (
            "a: 1\n--- b",
            (
                "FOLDER/stream.yaml: line 2, column 1: expected a single document in the stream, "
                "but found another document"
            ),
        ),
        (
            "a: !secret x",
            "FOLDER/stream.yaml: line 1, column 4: could not determine a constructor for the tag (hidden)",
        ),
        ("a: 1\na: 2", "FOLDER/stream.yaml: line 2, column 1: the key a is given twice; keep one"),
        ("1: a", "FOLDER/stream.yaml: line 1, column 1: a key is not text; put it in quotes"),
        (
            "a: 2026-99-99",
            (
                "FOLDER/stream.yaml: contains a number, date or character that is not valid in YAML; "
                "put the value in quotes"
            ),
        ),
        (b"a: \xff", "FOLDER/stream.yaml: is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_yaml_file(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "stream.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for load in (load_config, load_training):
        assert problems(lambda load=load: load(file, {}), tmp_path) == [message]  # type: ignore[misc]


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(TRAINING)
    assert problems(lambda: load_config(file, {}), tmp_path) == [
        "FOLDER/train.yaml: is a configuration for training, which `lstmstream train` reads; give the daemon's"
    ]
    file = tmp_path / "stream.yaml"
    file.write_text("{name: a, model: m.onnx, input: {topic: a}, output: {topic: b}}")
    assert problems(lambda: load_training(file, {}), tmp_path) == [
        "FOLDER/stream.yaml: is a daemon's configuration, which `lstmstream run` reads; give one for training"
    ]
    file = tmp_path / "m.onnx"
    file.write_bytes(b"\x08\xff")
    assert problems(lambda: load_config(file, {}), tmp_path) == [
        "FOLDER/m.onnx: is a model file; give the configuration (YAML) that names it"
    ]


# --- options of the training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "{task: forecast, threshold: {rule: f1}, target: {field: null}}",
            "threshold.rule: f1 does not apply to forecasts; write rule: value, or remove it",
        ),
        ("target: {field: null}", "target.field: is missing; name the field that holds the label"),
        ("features: {numbers: [a, a]}", "features.numbers: a is listed twice; keep one"),
        (
            "features: {numbers: [{scale: none}]}",
            "features.numbers.0.name: is missing; set it (the event's field)",
        ),
        (
            "split: {validation_from: soon}",
            "split.validation_from: is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12:00Z; got 'soon'",
        ),
        ("split: {by: key, gap: 7d}", "split.gap: a gap needs split.by: time; set that, or remove this"),
        ("tune: {hidden: [64, 16]}", "tune.hidden: has its bounds in the wrong order; write the smaller one first"),
    ],
)
def test_an_option_of_the_training(changes: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(merged(TRAINING, changes))
    assert list(map(without_place, problems(lambda: load_training(file, {}), tmp_path))) == [message]


# --- model files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "content", "message"),
    [
        ("m.onnx", None, "model FOLDER/m.onnx: does not exist; give the path of a model file, or builtin:NAME"),
        ("", None, "model FOLDER: is not a regular file; give the path of a model file"),
        (
            "builtin:none",
            None,
            (
                "model 'builtin:none': there is no such model in the package; "
                "use one of: builtin:anomaly, builtin:anomaly-small, builtin:demo, builtin:history, builtin:load"
            ),
        ),
        (
            "m.onnx",
            b"",
            (
                "model FOLDER/m.onnx: is not an ONNX file: it is empty; "
                "give a file written by lstmstream train or import"
            ),
        ),
        (
            "m.onnx",
            b"\x3a\x00",  # an empty graph
            (
                "model FOLDER/m.onnx: is an ONNX file without an lstmstream card; "
                "write it with lstmstream train or lstmstream import"
            ),
        ),
    ],
)
def test_a_model_file(reference: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / reference).write_bytes(content)
    assert problems(lambda: load_model(reference, base=tmp_path), tmp_path) == [message]


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["state", "delete", "stream.yaml"], "say which keys: KEY, or --keys-from FILE with one key a line"),
        (
            ["state", "delete", "stream.yaml", "a", "--timeout", "5"],
            "--timeout: '5' needs a unit; write it like 30s, 250ms, 5m, 12h or 7d",
        ),
        (["state", "delete", "stream.yaml", "%", "--base64"], "--base64: '%' is not base64"),
        (
            ["run", "stream.yaml", "--worker", "2"],
            "--worker is how `lstmstream run --workers` starts its workers; use --workers",
        ),
    ],
)
def test_a_command(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lstmstream", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().err) == (2, f"lstmstream: {message}\n")


def test_a_command_whose_packages_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _name: None)
    for arguments, message in (
        (
            ["train", "t.yaml"],
            (
                "`lstmstream train` needs torch, onnx, optuna and polars; in a clone of lstmstream, run: pip install"
                " '.[train]'"
            ),
        ),
        (
            ["import", "m.onnx", "--out", "o"],
            (
                "`lstmstream import` needs onnx, h5py and safetensors; in a clone of lstmstream, run: pip install"
                " '.[import]'"
            ),
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["lstmstream", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, capsys.readouterr().err) == (2, f"lstmstream: {message}\n")


# --- where the daemon listens -----------------------------------------------------------------------------------------


def test_an_address_to_listen_on(tmp_path: Path) -> None:
    def listen(host: str, port: int) -> HttpServer:
        return HttpServer(host, port, {})

    assert problems(lambda: listen("256.0.0.1", 0), tmp_path) == [
        "http.host: 256.0.0.1 is not an address of this machine; use 127.0.0.1 or 0.0.0.0"
    ]
    with listen("127.0.0.1", 0) as other:
        assert problems(lambda: listen("127.0.0.1", other.port), tmp_path) == [
            f"http.port: cannot listen on 127.0.0.1:{other.port} ({os.strerror(98)}); set another port or host"
        ]
