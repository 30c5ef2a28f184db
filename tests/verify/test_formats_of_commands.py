"""`check`, `init`, `score` and `train` read the formats that the daemon reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lstmstream.check.checks import TopicChecks, check_registry
from lstmstream.check.results import Status
from lstmstream.config import load_config
from lstmstream.errors import CannotServe
from lstmstream.history.fields import Fields
from lstmstream.history.topics import TopicRange, fetch_topic
from lstmstream.init import command
from lstmstream.init.command import Wire, init
from lstmstream.records import RecordBatch
from lstmstream.serve.score import score_file
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.transport.schema_registry import open_event_reader
from tests.models import random_model
from tests.registry import Registry
from tests.verify.test_formats import CATEGORIES, FormatWorld, as_avro, as_change, as_cloudevent, payments
from tests.verify.world import INPUT, NOW_MS, OUTPUT, VerifyTransport


@pytest.fixture
def world(tmp_path: Path, registry: Registry) -> FormatWorld:
    """An input of Avro."""
    made = FormatWorld(random_model(tmp_path, categories=CATEGORIES), registry, format="avro")
    made.write(payments(), as_avro(registry))
    return made


def test_check(world: FormatWorld, registry: Registry) -> None:
    checks = TopicChecks(
        PatientBroker(VerifyTransport(world.broker, INPUT)), world.config(), world.onnx_step(), records=99
    )
    lines = {line.name: line for line in checks.run()}
    assert lines["records"].text.startswith("99 records give 99 predictions, ")
    assert lines["fields"].status is Status.OK
    assert [(one.status, one.text) for one in check_registry(world.config())] == [
        (Status.OK, f"{registry.url} can be reached")
    ]
    registry.fault = 401
    said = f"{registry.url}: the schema registry answered 401 (out of order)"
    assert [(one.status, one.text) for one in check_registry(world.config())] == [(Status.FAILED, said)]
    lines = {line.name: line for line in checks.run()}
    assert (lines["schema registry"].status, lines["schema registry"].text) == (Status.FAILED, said)
    assert not list(check_registry(world.config(kafka={"bootstrap_servers": "h:1"}, input={"topic": INPUT})))


class Opened(VerifyTransport):
    """As the command opens and closes it."""

    def close(self, timeout_s: float) -> None:
        """Nothing is open."""


def test_init(world: FormatWorld, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "open_kafka_admin", lambda _config: Opened(world.broker, INPUT))
    options: dict[str, Any] = {"topic": INPUT, "servers": ["h:1"], "name": None, "records": 100, "force": True}
    init(tmp_path, **options, wire=Wire("avro", None, registry.url))
    config = load_config(tmp_path / "stream.yaml")
    assert (config.input.format, config.kafka.schema_registry.url) == ("avro", registry.url)
    assert config.model == "builtin:anomaly:amount"
    training = yaml.safe_load((tmp_path / "train.yaml").read_text())
    assert training["data"]["format"] == "avro"
    assert training["kafka"]["schema_registry"] == {"url": registry.url}
    with pytest.raises(CannotServe, match="none of its newest 99 records is a JSON object"):
        init(tmp_path, **options)
    with pytest.raises(CannotServe, match=r"kafka\.schema_registry\.url: is missing, and input\.format: avro needs it"):
        init(tmp_path, **options, wire=Wire("avro"))


@pytest.mark.parametrize(("unwrap", "write"), [("after", as_change), ("cloudevents", as_cloudevent)])
def test_score_takes_events_of_a_file_out_of_their_envelopes(
    tmp_path: Path, unwrap: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file has no headers, so CloudEvents in it are structured ones."""
    model = random_model(tmp_path, categories=CATEGORIES)
    config = tmp_path / "c.yaml"
    settings = {
        "name": "t",
        "model": str(model),
        "kafka": {"bootstrap_servers": "h:1"},
        "input": {"topic": "in", "key": "id", "unwrap": unwrap},
        "output": {"topic": "out", "include": ["note"], "cloudevents": "structured"},
    }
    plain, wrapped, bad = (tmp_path / name for name in ("plain.jsonl", "wrapped.jsonl", "bad.jsonl"))
    events = payments(40)
    plain.write_text("".join(json.dumps(event) + "\n" for event in events))
    wrapped.write_bytes(b"".join(write(event, 1)[0] + b"\n" for event in events) + b'{"amount": 1}\n')
    answers = []
    for file, how in ((plain, None), (wrapped, unwrap)):
        settings["input"] = {"topic": "in", "key": "id", **({"unwrap": how} if how else {})}
        config.write_text(yaml.safe_dump(settings))
        out = tmp_path / f"{file.stem}.out"
        assert (
            score_file(
                str(config), str(file), out=str(out), key=None, timestamp=None, dead_letters=bad, no_timestamp=True
            )
            == 0
        )
        answers.append([json.loads(line) for line in out.read_text().splitlines()])
    for one in answers[0] + answers[1]:
        del one["source"], one["timestamp"]
    assert answers[0] == answers[1], "and what score writes is plain JSON"
    (letter,) = [json.loads(line) for line in bad.read_text().splitlines()]
    assert letter["lstmstream.stage"] == "decode"
    assert letter["value"] == '{"amount": 1}'
    assert "no field" not in capsys.readouterr().err


def test_training_data(world: FormatWorld, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = [record for partition in range(3) for record in world.log(INPUT, partition)]
    import numpy as np

    count = len(log)
    batch = RecordBatch(
        INPUT,
        np.zeros(count, np.int64),
        np.arange(count),
        np.full(count, NOW_MS),
        [record.key for record in log],
        [record.value for record in log],
        [()] * count,
    )
    monkeypatch.setattr("lstmstream.history.topics.read_topic", lambda *_a, **_k: [batch])
    kafka = world.config().kafka
    reader = open_event_reader(kafka, record_format="avro", unwrap=None, max_bytes=10_000, folder=tmp_path)
    fields = Fields(key=None, timestamp=None, numbers=("amount",), categories=("channel",))
    _, warnings = fetch_topic(kafka, TopicRange(INPUT), fields, tmp_path / "out", folder=tmp_path, reader=reader)
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert sorted(row["amount"] for row in rows) == sorted(event["amount"] for event in payments())
    assert not warnings


def test_a_package_that_is_missing(world: FormatWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstmstream.extras.find_spec", lambda name: None if name == "fastavro" else name)
    said = "input.format: avro needs fastavro; in a clone of lstmstream, run: pip install '.[avro]'"
    with pytest.raises(CannotServe, match=re.escape(said)):
        world.start(world.onnx_step())
    with pytest.raises(CannotServe, match=r"output\.format: avro needs fastavro"):
        world.start(world.onnx_step(), input={"topic": INPUT}, output={"topic": OUTPUT, "format": "avro"})
    checks = TopicChecks(
        PatientBroker(VerifyTransport(world.broker, INPUT)), world.config(), world.onnx_step(), records=9
    )
    assert [line.text for line in checks.run() if line.status is Status.FAILED] == [said]
