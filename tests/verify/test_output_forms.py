"""Predictions in Avro and as CloudEvents: they say what the JSON would, and `verify` finds what is wrong with them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from lstmstream.serve.live import LiveObserver
from lstmstream.transport.memory import LogRecord
from tests.models import random_model
from tests.registry import Registry
from tests.verify.test_formats import CATEGORIES, as_cloudevent, payments
from tests.verify.world import ALERTS, INPUT, NOW_MS, OUTPUT, VerifyWorld, events, fill

FORMS: dict[str, dict[str, Any]] = {
    "avro": {"format": "avro"},
    "avro, binary": {"format": "avro", "cloudevents": "binary"},
    "binary": {"cloudevents": "binary"},
    "structured": {"cloudevents": "structured"},
}


def made(folder: Path, registry: Registry, output: dict[str, Any], **settings: Any) -> VerifyWorld:
    return VerifyWorld(
        random_model(folder, categories=CATEGORIES),
        kafka={"bootstrap_servers": "nowhere:1", "schema_registry": {"url": registry.url, "timeout": "2s"}},
        output={"include": ["note", "amount"], "threshold": 0.5, "reasons": 2, **output},
        **settings,
    )


def read(record: LogRecord, form: str, registry: Registry) -> dict[str, Any]:
    """The prediction, by nothing but the specifications."""
    value = record.value or b""
    if "avro" in form:
        schema = fastavro.parse_schema(json.loads(registry.schemas[int.from_bytes(value[1:5], "big")]["schema"]))
        found: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)  # type: ignore[assignment]
        found["timestamp"] = _iso(found["timestamp"])
        if found["event"] is not None:
            found["event"] = json.loads(found["event"])
        if ended := found.get("ended"):
            ended |= {name: _iso(ended[name]) for name in ("started", "last")}
        if summary := found.get("summary"):
            summary["hours"] = [{**hour, "hour": _iso(hour["hour"])} for hour in summary["hours"]]
        return {name: one for name, one in found.items() if one is not None}
    document: dict[str, Any] = json.loads(value)
    return document["data"] if form == "structured" else document  # type: ignore[no-any-return]


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize("form", FORMS)
def test_each_form_says_what_json_does(tmp_path: Path, registry: Registry, form: str) -> None:
    found = [(b"\xff" if key == b"k3" else key, value, at) for key, value, at in events(150, bad=0.1)]
    plain, world = (made(tmp_path, registry, output) for output in ({}, FORMS[form]))
    for one in (plain, world):
        fill(one, found)
        one.serve()
    for topic in (OUTPUT, ALERTS):
        records = [
            (was, now) for p in range(3) for was, now in zip(plain.log(topic, p), world.log(topic, p), strict=True)
        ]
        assert len(records) > 20
        for was, now in records:
            wanted = json.loads(was.value or b"")
            there = read(now, form, registry)
            if "avro" in form:  # its numbers are float32, and the text of JSON is the shortest for the same bits
                there, wanted = _float32(there), _float32(wanted)
            assert there == wanted
            assert (now.key, now.timestamp_ms) == (was.key, was.timestamp_ms)
    verification = world.verify()
    assert verification.exit_code == 0, verification.summary()
    assert verification.summary()["alerts"] > 20
    if "avro" in form:
        assert list(registry.subjects) == [f"{OUTPUT}-value", f"{ALERTS}-value"]


@pytest.mark.parametrize("form", FORMS)
def test_a_policy_for_alerts_says_the_same_in_each_form(tmp_path: Path, registry: Registry, form: str) -> None:
    policy = {"cooldown": "1m", "hold": True, "end_record": True, "max_per_hour": 2, "mute": ["k2"]}
    plain, world = (made(tmp_path, registry, output, alerts=policy) for output in ({}, FORMS[form]))
    for one in (plain, world):
        fill(one, events(400, bad=0.0))
        one.serve()
    told: dict[str, set[Any]] = {OUTPUT: set(), ALERTS: set()}
    for topic, found in told.items():
        for p in range(3):
            for was, now in zip(plain.log(topic, p), world.log(topic, p), strict=True):
                there, wanted = read(now, form, registry), json.loads(was.value or b"")
                if "avro" in form:
                    there, wanted = _float32(there), _float32(wanted)
                assert there == wanted
                assert now.key == was.key
                found |= {there.get("held_back"), *{"score", "ended", "summary"} & set(there)}
    assert told[OUTPUT] == {None, "hold", "mute", "max_per_hour", "score"}
    assert told[ALERTS] == {None, "score", "ended", "summary"}
    verification = world.verify()
    assert verification.exit_code == 0, verification.summary()
    assert verification.summary()["end_records"] > 0


def _float32(prediction: dict[str, Any]) -> dict[str, Any]:
    found = {name: one for name, one in prediction.items() if one is not None}
    if "score" in found:
        found["score"] = np.float32(found["score"])
    if "prediction" in found:
        found["prediction"] = np.array(found["prediction"], np.float32).tolist()
    for reason in found.get("reasons", ()):
        reason["size"] = np.float32(reason["size"])
    return found


@pytest.mark.parametrize("form", ["binary", "structured"])
def test_the_attributes_of_a_prediction(tmp_path: Path, registry: Registry, form: str) -> None:
    """Those of the event that came, which say nothing of the prediction, are not carried along."""
    world = made(tmp_path, registry, FORMS[form], input={"topic": INPUT, "unwrap": "cloudevents"})
    value, headers = as_cloudevent(payments()[1], 0)
    world.broker.append(INPUT, 2, b"card 7", value, NOW_MS, [("traceparent", b"00-1"), *headers])
    world.serve()
    (record,) = world.log(OUTPUT, 2)
    attributes = {
        "specversion": "1.0",
        "id": "in-2-0",
        "source": "/lstmstream/t/predictions",
        "type": "lstmstream.prediction",
        "time": "2023-11-14T22:13:20Z",
        "subject": "card 7",
    }
    if form == "binary":
        assert dict(record.headers) == {
            "traceparent": b"00-1",
            "content-type": b"application/json",
            **{f"ce_{name}": text.encode() for name, text in attributes.items()},
        }
    else:
        assert list(record.headers) == [("traceparent", b"00-1"), ("content-type", b"application/cloudevents+json")]
        envelope = json.loads(record.value or b"")
        assert envelope.pop("data")["key"] == "card 7"
        assert envelope == {**attributes, "datacontenttype": "application/json"}
    for alert in world.log(ALERTS, 2):
        assert b"lstmstream.alert" in (alert.value or b"") + b"".join(text or b"" for _, text in alert.headers)
    assert world.verify().exit_code == 0


def test_a_plain_prediction_of_a_cloudevent_is_none(tmp_path: Path, registry: Registry) -> None:
    world = made(tmp_path, registry, {}, input={"topic": INPUT, "unwrap": "cloudevents"})
    for number, event in enumerate(payments()[:6]):
        value, headers = as_cloudevent(event, number)
        world.broker.append(INPUT, 0, b"k", value, NOW_MS, [("traceparent", b"00-1"), *headers])
    world.serve()
    assert {tuple(record.headers) for record in world.log(OUTPUT)} == {(("traceparent", b"00-1"),)}
    assert world.verify().exit_code == 0


def broken(form: str, record: LogRecord) -> Iterator[LogRecord]:
    """One change each that `verify` has to find."""
    value = record.value or b""
    yield record._replace(value=value.replace(b"model", b"nodel") if "avro" not in form else value[:-1] + b"!")
    if form == "structured":
        yield record._replace(value=value.replace(b'"type":"lstmstream.prediction"', b'"type":"lstmstream.alert"'))
        yield record._replace(value=value.replace(b"/predictions", b"/alerts"))
        yield record._replace(value=value[:-1] + b',"more":1}')
    if form != "avro":
        yield record._replace(headers=record.headers[:-1])
        yield record._replace(headers=[one for one in record.headers if one[0] in {"traceparent", "none"}])
    if "binary" in form:
        yield record._replace(headers=[h for h in record.headers if h[0] != "ce_id"])
        yield record._replace(headers=[*record.headers[:-2], ("ce_subject", b"x"), record.headers[-1]])


@pytest.mark.parametrize("form", FORMS)
def test_verify_finds_what_is_wrong_with_them(tmp_path: Path, registry: Registry, form: str) -> None:
    world = made(tmp_path, registry, FORMS[form])
    fill(world, events(60, bad=0.0))
    world.serve()
    log = world.log(OUTPUT, 1)
    right = log[1]
    for number, wrong in enumerate(broken(form, right)):
        assert wrong != right, number
        log[1] = wrong
        assert world.verify().exit_code == 1, number
    log[1] = right
    assert world.verify().exit_code == 0


def test_a_registry_that_is_away_at_the_start_is_waited_for(tmp_path: Path, registry: Registry) -> None:
    world = made(tmp_path, registry, FORMS["avro"])
    fill(world, events(40, bad=0.0))
    registry.fault = 503
    daemon = world.start(world.onnx_step())
    for _ in range(6):
        world.step(daemon)
    assert not world.log(OUTPUT, 0)
    assert world.health[id(daemon)].readyz()[1] == [
        "the schema registry cannot be used; waiting. The log has its error"
    ]
    registry.fault = None
    world.settle()
    assert world.health[id(daemon)].readyz() == (True, [])
    world.check_states()
    assert world.stop(daemon) == 0
    assert world.verify().exit_code == 0


def test_the_page_shows_alerts_in_any_form(tmp_path: Path, registry: Registry) -> None:
    from lstmstream.serve.factory import make_engine, open_output_form
    from tests.serve.helpers import Event, batch

    world = made(tmp_path, registry, FORMS["avro"])
    engine = make_engine(world.config(), world.onnx_step(), form=open_output_form(world.config()))
    engine.scorer.states.open(0)
    records = [Event(0, i, NOW_MS, b"k", value) for i, (_, value, _) in enumerate(events(30, bad=0.0))]
    observer = LiveObserver(world.model.card, lambda: 0.0)
    observer.on_commit(engine.process(batch(records)), None, None)  # type: ignore[arg-type]
    alerts, _ = observer.last()
    assert alerts
    assert all(json.loads(alert.value)["alert"] is True for alert in alerts)
