"""A daemon whose events are Avro, Protobuf, CloudEvents or changes of Debezium gives the answers of the same JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import pytest

from lstmstream.formats.wire_format import frame
from tests.models import random_model
from tests.registry import Registry
from tests.schemas import FIELD, proto_file, proto_message
from tests.verify.world import INPUT, LETTERS, NOW_MS, VerifyWorld, fill

Event = dict[str, Any]
Record = tuple[bytes, list[tuple[str, bytes | None]]]  # value and headers
Write = Callable[[Event, int], Record]  # of an event and its number
CATEGORIES = {"channel": ["web", "7"], "shop": 5}
OLD = [("amount", "double"), ("channel", "string"), ("id", "long")]
NEW = [("id", "long"), ("note", "string", "new"), ("shop", ["null", "string"]), *OLD[:2]]


def payments(count: int = 120) -> list[Event]:
    """Those of the second half have a field more."""
    found = []
    for number in range(count):
        event: Event = {"id": number, "amount": (number * 37 % 101) / 4, "channel": ("web", "pos", "7")[number % 3]}
        if number >= count // 2:
            event |= {"shop": ("a", "b", None)[number % 3], "note": "new"}
        found.append(event)
    return found


def avro_schema(fields: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    named = [{"name": name, "type": kind} | ({"default": rest[0]} if rest else {}) for name, kind, *rest in fields]
    return {"type": "record", "name": "Payment", "fields": named}


def avro_bytes(schema: Mapping[str, Any], event: Event) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema)), event)
    return out.getvalue()


def as_avro(registry: Registry) -> Write:
    """The second half by another schema, with fields in another order."""
    schemas = {half: avro_schema(fields) for half, fields in enumerate((OLD, NEW))}
    numbers = {half: registry.add("in-value", json.dumps(schema)) for half, schema in schemas.items()}

    def write(event: Event, _number: int) -> Record:
        half = int("note" in event)
        return frame(numbers[half], avro_bytes(schemas[half], event)), []

    return write


def as_protobuf(registry: Registry) -> Write:
    """The second half by another schema, whose message is the second of its file."""
    from tests.formats.test_schema_formats import proto_class

    old = {"amount": (1, FIELD.TYPE_DOUBLE), "channel": (2, FIELD.TYPE_STRING), "id": (3, FIELD.TYPE_INT64)}
    new = {**old, "shop": (4, FIELD.TYPE_STRING), "note": (5, FIELD.TYPE_STRING)}
    files = [
        proto_file("shop", [proto_message("Payment", **old)]),
        proto_file("shop", [proto_message("Other"), proto_message("Payment", **new)]),
    ]
    for field in files[1].message_type[1].field:
        if field.name == "shop":
            field.proto3_optional = True
            field.oneof_index = 0
            files[1].message_type[1].oneof_decl.add(name="_shop")
    numbers = [registry.add("in-value", file.SerializeToString(), "PROTOBUF") for file in files]
    made = [proto_class(file, "shop.Payment") for file in files]

    def write(event: Event, _number: int) -> Record:
        half = int("note" in event)
        message = made[half](**{name: value for name, value in event.items() if value is not None})
        return frame(numbers[half], (b"\0", b"\x02\x02")[half] + message.SerializeToString()), []

    return write


def as_cloudevent(event: Event, number: int) -> Record:
    """Both modes in turn."""
    attributes = {"specversion": "1.0", "id": str(number), "source": "/shop", "type": "payment"}
    if number % 2:
        headers = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
        return json.dumps({**attributes, "data": event}).encode(), headers
    binary: list[tuple[str, bytes | None]] = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
    return json.dumps(event).encode(), [*binary, ("content-type", b"application/json")]


def as_change(event: Event, number: int) -> Record:
    """With and without a schema in turn."""
    change = {"before": None, "after": event, "op": "cu"[number % 2], "ts_ms": NOW_MS, "source": {"db": "shop"}}
    return json.dumps({"schema": {}, "payload": change} if number % 3 else change).encode(), []


def as_avro_change(registry: Registry) -> Write:
    """A whole envelope as Debezium's connectors write it in Avro."""
    row = avro_schema([*OLD, ("shop", ["null", "string"], None), ("note", ["null", "string"], None)])
    envelope = {
        "type": "record",
        "name": "Envelope",
        "fields": [
            {"name": "before", "type": ["null", row], "default": None},
            {"name": "after", "type": ["null", "Payment"], "default": None},
            {"name": "op", "type": "string"},
        ],
    }
    number = registry.add("in-value", json.dumps(envelope))
    return lambda event, _number: (frame(number, avro_bytes(envelope, {"after": event, "op": "c"})), [])


class FormatWorld(VerifyWorld):
    def __init__(self, path: Path, registry: Registry, **reading: str) -> None:
        super().__init__(
            path,
            kafka={"bootstrap_servers": "nowhere:1", "schema_registry": {"url": registry.url, "timeout": "2s"}},
            input={"topic": INPUT, **reading},
            output={"include": ["id", "note", "shop"], "threshold": 0.5},
        )

    def write(self, events: Sequence[Event], write: Write, *, start: int = 0) -> None:
        for number, event in enumerate(events, start):
            value, headers = write(event, number)
            key = b"k%d" % (number % 7)
            self.broker.append(INPUT, number % 7 % 3, key, value, NOW_MS + 1000 * number, headers)

    def answers_without_source(self) -> list[Any]:
        return [{name: value for name, value in one.items() if name != "source"} for one in self.answers()]


WRITERS: dict[str, tuple[Callable[[Registry], Write], dict[str, str]]] = {
    "avro": (as_avro, {"format": "avro"}),
    "protobuf": (as_protobuf, {"format": "protobuf"}),
    "json_schema": (lambda _: lambda event, _n: (frame(7, json.dumps(event).encode()), []), {"format": "json_schema"}),
    "cloudevents": (lambda _: as_cloudevent, {"unwrap": "cloudevents"}),
    "debezium": (lambda _: as_change, {"unwrap": "after"}),
    "debezium in avro": (as_avro_change, {"format": "avro", "unwrap": "after"}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_the_answers_of_json(tmp_path: Path, registry: Registry, name: str) -> None:
    """Half of them before a kill, half after it, by another schema; `verify` finds nothing."""
    model = random_model(tmp_path, categories=CATEGORIES)
    plain = FormatWorld(model, registry)
    plain.write(payments(), lambda event, _number: (json.dumps(event).encode(), []))
    plain.serve()
    make, reading = WRITERS[name]
    world = FormatWorld(model, registry, **reading)
    writer = make(registry)
    world.write(payments()[:60], writer)
    daemon = world.start(world.onnx_step())
    world.settle()
    world.kill(daemon)
    world.write(payments()[60:], writer, start=60)
    world.serve()
    found, expected = world.answers_without_source(), plain.answers_without_source()
    for answers in (found, expected):  # a field that is null is there in some formats only
        _without_nulls(answers)
    assert found == expected
    verification = world.verify()
    assert verification.exit_code == 0, verification.summary()
    assert verification.summary()["predictions"] == 120


def _without_nulls(answers: list[Any]) -> None:
    for answer in answers:
        answer["event"] = {name: value for name, value in answer["event"].items() if value is not None}


def test_what_cannot_be_read_is_a_dead_letter_with_its_bytes_and_reason(tmp_path: Path, registry: Registry) -> None:
    world = FormatWorld(random_model(tmp_path, categories=CATEGORIES), registry, format="avro")
    writer = as_avro(registry)
    good = writer(payments(2)[0], 0)[0]
    other = avro_schema([("amount", "string"), ("channel", "string")])
    text = registry.add("other", json.dumps(other))
    proto = registry.add("proto", b"x", "PROTOBUF")
    bad = {
        good[:-1]: "the record cannot be decoded: the value is not of its Avro schema: it ends too early (schema 1)",
        good + b"x": "the record cannot be decoded: the value is not of its Avro schema: 1 bytes are left at its end"
        " (schema 1)",
        b"\0\0\0\x03\xe7abc": "the record cannot be decoded: schema 999: the schema registry does not have it (Schema"
        " not found)",
        frame(proto, b""): f"the record cannot be decoded: schema {proto} cannot be used: it is of the type PROTOBUF,"
        " not AVRO; see input.format",
        b'{"amount": 1}': "the record cannot be decoded: the value begins with the byte 123, not with the 0 of a schema"
        " registry's serializer; see input.format",
        frame(text, avro_bytes(other, {"amount": "1", "channel": "x"})): "field 'amount' is a string, not a number",
    }  # fmt: skip
    fill(world, [(b"a", value, NOW_MS) for value in [good, *bad, good]])
    world.broker.append(INPUT, sum(b"a") % 3, b"a", None, NOW_MS, [])
    world.serve()
    letters = [record for log in world.broker.topics[LETTERS].logs for record in log]
    said = {letter.value: dict(letter.headers)["__streams.errors.message"] or b"" for letter in letters}
    assert {value: text.decode() for value, text in said.items()} == {**bad, None: "the value is null"}
    stages = {dict(letter.headers)["lstmstream.stage"] for letter in letters}
    assert stages == {b"decode", b"validate"}
    assert [answer["steps"] for answer in world.answers()] == [1, 2]
    assert world.verify().exit_code == 0


def test_a_registry_that_is_away_is_waited_for(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """What needs no new schema is answered; then it is alive and not ready, and goes on by itself."""
    world = FormatWorld(random_model(tmp_path, categories=CATEGORIES), registry, format="avro")
    writer = as_avro(registry)
    world.write(payments()[:60], writer)
    daemon = world.start(world.onnx_step())
    world.settle()
    registry.stop()
    world.write(payments()[50:60], writer, start=60)
    world.settle()
    assert len(world.answers()) == 70, "these are of a schema that is known"
    world.write(payments()[60:], writer, start=70)
    for _ in range(3):
        world.step(daemon)
    ready, reasons = world.health[id(daemon)].readyz()
    assert (ready, reasons) == (False, ["the schema registry cannot be used; waiting. The log has its error"])
    assert world.health[id(daemon)].livez()[0]
    assert world.phase(daemon) == "running", "nothing is wrong with the broker"
    assert len(world.answers()) == 70
    world.kill(daemon)
    daemon = world.start(world.onnx_step())  # has no schema to replay with
    for _ in range(12):
        world.now_s += 5
        world.step(daemon)
    assert "restoring partition 0 failed, trying again" in caplog.text
    assert "the broker failed" not in caplog.text
    assert len(world.answers()) == 70
    assert world.phase(daemon) == "restoring"
    registry.start()
    world.now_s += 10
    world.settle()
    assert len(world.answers()) == 130
    assert world.health[id(daemon)].readyz() == (True, [])
    assert world.stop(daemon) == 0
    assert world.verify().exit_code == 0
    assert registry.requests.count("GET /schemas/ids/2") == 2, "once by each daemon that needed it"


def test_a_delete_and_its_tombstone_leave_the_state_of_their_key(tmp_path: Path, registry: Registry) -> None:
    world = FormatWorld(random_model(tmp_path, categories=CATEGORIES), registry, unwrap="after")
    deleted = json.dumps({"before": {"id": 1}, "after": None, "op": "d"}).encode()
    world.broker.append(INPUT, 0, b"k", as_change(payments()[0], 0)[0], NOW_MS, [])
    for value in (deleted, None):
        world.broker.append(INPUT, 0, b"k", value, NOW_MS, [])
    world.broker.append(INPUT, 0, b"k", as_change(payments()[1], 1)[0], NOW_MS, [])
    world.serve()
    assert [answer["steps"] for answer in world.answers()] == [1, 2]
    letters = [record for log in world.broker.topics[LETTERS].logs for record in log]
    assert [dict(letter.headers)["__streams.errors.message"] for letter in letters] == [
        b"the record cannot be decoded: the change is a delete, after which there is no row to score",
        b"the value is null",
    ]
    assert world.verify().exit_code == 0


def test_key_and_time_may_come_from_attributes_and_columns(tmp_path: Path, registry: Registry) -> None:
    model = random_model(tmp_path, categories=CATEGORIES)
    headers = [("ce_specversion", b"1.0"), ("ce_subject", b"card 7"), ("ce_time", b"2023-11-14T22:13:20.5Z")]
    world = FormatWorld(model, registry, unwrap="cloudevents", key="ce_subject", timestamp="ce_time")
    world.broker.append(INPUT, 0, None, b'{"amount": 1}', NOW_MS, headers)
    world.serve()
    (answer,) = world.answers()
    assert (answer["key"], answer["timestamp"]) == ("card 7", "2023-11-14T22:13:20.500Z")
    assert world.verify().exit_code == 0
    change = {"after": {"card": {"no": 8}, "amount": 1}, "op": "c", "source": {"ts_ms": NOW_MS + 700}}
    world = FormatWorld(model, registry, unwrap="after", key="card.no", timestamp="__source_ts_ms")
    world.broker.append(INPUT, 0, None, json.dumps(change).encode(), NOW_MS, [])
    world.serve()
    (answer,) = world.answers()
    assert (answer["key"], answer["timestamp"]) == ("8", "2023-11-14T22:13:20.700Z")
    assert world.verify().exit_code == 0


def test_states_belong_to_a_format(tmp_path: Path, registry: Registry) -> None:
    """Which events count depends on it, so it is part of the identity; JSON's is what it was."""
    from lstmstream.serve.identity import state_identity

    model = random_model(tmp_path)
    plain, avro, change = (
        state_identity(world.config(), world.model.card)
        for world in (
            FormatWorld(model, registry),
            FormatWorld(model, registry, format="avro"),
            FormatWorld(model, registry, format="avro", unwrap="after"),
        )
    )
    assert (plain.others, avro.others, change.others) == ("", "format avro", "format avro, unwrap after")
