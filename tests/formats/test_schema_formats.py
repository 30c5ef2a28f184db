"""Avro and Protobuf values with a schema registry: what they stand for, and that no bytes of any kind do harm."""

from __future__ import annotations

import datetime as dt
import io
import json
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2

from lstmstream.errors import BadRecord, SchemaRegistryDown
from lstmstream.formats.avro import avro_reader
from lstmstream.formats.json_text import json_text
from lstmstream.formats.protobuf import protobuf_reader
from lstmstream.formats.schemas import UNKNOWN_FOR_S, FramedReader, Schema, UnknownSchema
from lstmstream.formats.wire_format import frame
from tests.schemas import FIELD, message_field, proto_file, proto_message

PAYMENT = {
    "type": "record",
    "name": "Payment",
    "namespace": "shop",
    "fields": [
        {"name": "amount", "type": "double"},
        {"name": "customer", "type": ["null", "string"]},
        {"name": "place", "type": {"type": "record", "name": "Place", "fields": [{"name": "city", "type": "string"}]}},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["CARD", "CASH"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "tags", "type": {"type": "map", "values": "int"}},
        {"name": "last", "type": {"type": "array", "items": "float"}},
        {"name": "raw", "type": "bytes"},
    ],
}
VALUE: dict[str, Any] = {
    "amount": 12.5,
    "customer": None,
    "place": {"city": "Köln"},
    "kind": "CASH",
    "at": dt.datetime(2026, 1, 5, 10, 31, 7, 123456, tzinfo=dt.UTC),
    "price": Decimal("19.90"),
    "tags": {"a": 1},
    "last": [0.5, 1.0],
    "raw": b"abc",
}


def avro_bytes(schema: Any, value: Any) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), value)
    return out.getvalue()


def avro(schema: Any) -> Callable[[bytes], bytes]:
    return avro_reader(Schema("AVRO", json.dumps(schema)))


def test_an_avro_record_is_a_json_object() -> None:
    assert json.loads(avro(PAYMENT)(avro_bytes(PAYMENT, VALUE))) == {
        **VALUE,
        "at": "2026-01-05T10:31:07.123456+00:00",
        "price": 19.9,
        "raw": "abc",
    }


def test_what_json_has_no_type_for() -> None:
    nan, infinity = float("nan"), float("inf")
    text = json_text(
        {"n": None, "a": [nan, infinity, -infinity], "i": {"x": infinity}, "d": Decimal("1.10"), "b": b"\xff"}
    )
    assert text == b'{"n":null,"a":[null,1e400,-1e400],"i":{"x":1e400},"d":1.10,"b":"/w=="}'
    assert json_text([Decimal("NaN"), Decimal("1e9999"), Decimal("-1e9999"), Decimal("1e-9999")]) == (
        b"[null,1e400,-1e400,0]"
    )
    assert json_text([dt.date(2026, 1, 5), dt.time(1, 2), UUID(int=1), {1: 3}]) == (
        b'["2026-01-05","01:02:00","00000000-0000-0000-0000-000000000001",{"1":3}]'
    )
    for wrong in ("\ud800", object()):
        with pytest.raises(BadRecord, match="the record cannot be written as JSON: "):
            json_text(wrong)


def test_a_schema_may_refer_to_others() -> None:
    place = Schema("AVRO", json.dumps(PAYMENT["fields"][2]["type"] | {"namespace": "shop"}))  # type: ignore[index]
    outer = {
        "type": "record",
        "name": "Order",
        "fields": [{"name": "to", "type": "shop.Place"}, {"name": "n", "type": "int"}],
    }
    twice = Schema("AVRO", json.dumps(outer), (("shop.Place", place), ("again", Schema("AVRO", place.text))))
    whole = json.loads(json.dumps(outer).replace('"shop.Place"', place.text))
    assert avro_reader(twice)(avro_bytes(whole, {"to": {"city": "Ulm"}, "n": 3})) == b'{"to":{"city":"Ulm"},"n":3}'
    with pytest.raises(BadRecord, match=r"it is not an Avro schema: UnknownType"):
        avro_reader(Schema("AVRO", json.dumps(outer)))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "it is not an Avro schema: JSONDecodeError"),
        ('{"type": "nothing"}', "it is not an Avro schema: UnknownType"),
        ('{"type": "record", "name": "r", "fields": [{"name": "next", "type": ["null", "r"]}]}',
         "the record 'r' contains itself, which is not supported"),
        ('{"type": "record", "name": "r", "fields": [{"name": "a", "type": {"type": "array", "items": "r"}}]}',
         "the record 'r' contains itself, which is not supported"),
        ('{"type": "record", "name": "r", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}',
         "it has an array of items that take no bytes, which could be any number"),
        ('{"type": "array", "items": {"type": "record", "name": "e", "fields": []}}',
         "it has an array of items that take no bytes, which could be any number"),
        ('{"type": "array", "items": {"type": "fixed", "name": "f", "size": 0}}',
         "it has an array of items that take no bytes, which could be any number"),
        ("[" * 5000 + "]" * 5000, "it is not an Avro schema: "),
    ],
)  # fmt: skip
def test_schemas_that_are_refused(schema: str, said: str) -> None:
    with pytest.raises(BadRecord) as caught:
        avro_reader(Schema("AVRO", schema))
    assert said in str(caught.value)


def varint(number: int) -> bytes:
    number, out = (number << 1) ^ (number >> 63), b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("string", varint(1 << 62) + b"abc", "it ends too early"),
        ("string", varint(-5) + b"abc", "it ends too early"),
        ("string", b"", "it ends too early"),
        ("string", varint(2) + b"\xff\xfe", "a text is not UTF-8"),
        ("string", b"\xff" * 30, ""),
        ("int", b"\x02\x02", "1 bytes are left at its end"),
        (["null", "int"], varint(7), "IndexError"),
        ({"type": "array", "items": "int"}, varint(1 << 60), "it ends too early"),
        ({"type": "array", "items": "int"}, varint(-3) + varint(1 << 60), "it ends too early"),
        ({"type": "map", "values": "null"}, varint(1 << 60), "it ends too early"),
        ({"type": "long", "logicalType": "timestamp-millis"}, varint(1 << 61), "OverflowError"),
        ({"type": "enum", "name": "e", "symbols": ["A"]}, varint(3), "IndexError"),
        ({"type": "fixed", "name": "f", "size": 2**40}, b"abc", "it ends too early"),
    ],
)
def test_hostile_avro(kind: Any, body: bytes, said: str) -> None:
    reader = avro({"type": "record", "name": "r", "fields": [{"name": "a", "type": kind}]})
    with pytest.raises(BadRecord) as caught:
        reader(body)
    assert str(caught.value).startswith("the value is not of its Avro schema: ")
    assert str(caught.value).endswith(said)


def hostile(source: random.Random, body: bytes) -> bytes:
    data = bytearray(body)
    for _ in range(source.randrange(1, 4)):
        match source.randrange(3):
            case 0 if data:
                data[source.randrange(len(data))] = source.randrange(256)
            case 1:
                del data[source.randrange(len(data) + 1) :]
            case _:
                at = source.randrange(len(data) + 1)
                data[at:at] = source.randbytes(source.randrange(1, 12))
    return bytes(data)


def only_bad_records(reader: Callable[[bytes], bytes], body: bytes) -> None:
    source = random.Random(5)
    good = 0
    for _ in range(3000):
        try:
            found = json.loads(reader(hostile(source, body)))
        except BadRecord:
            continue
        assert type(found) is dict
        good += 1
    assert 0 < good < 3000


def test_any_bytes_are_an_event_or_a_dead_letter() -> None:
    only_bad_records(avro(PAYMENT), avro_bytes(PAYMENT, VALUE))
    file, message = protobuf_payment()
    only_bad_records(protobuf_reader(Schema("PROTOBUF", file)), b"\0" + message)


# -- Protobuf


def protobuf_payment() -> tuple[str, bytes]:
    """The schema of a file with every kind of field, and a message."""
    inner = proto_message("Place", city=(1, FIELD.TYPE_STRING))
    payment = proto_message(
        "Payment",
        amount=(1, FIELD.TYPE_DOUBLE),
        count=(2, FIELD.TYPE_INT64),
        kind=message_field(3, ".shop.Kind", FIELD.TYPE_ENUM),
        place=message_field(4, ".shop.Payment.Place"),
        at=message_field(5, ".google.protobuf.Timestamp"),
        limit=message_field(6, ".google.protobuf.Int64Value"),
        last=(7, FIELD.TYPE_FLOAT, FIELD.LABEL_REPEATED),
        raw=(8, FIELD.TYPE_BYTES),
        places=message_field(9, ".shop.Payment.Place", label=FIELD.LABEL_REPEATED),
        tags=message_field(10, ".shop.Payment.TagsEntry", label=FIELD.LABEL_REPEATED),
        note=(11, FIELD.TYPE_STRING),
    )
    payment.nested_type.append(inner)
    entry = proto_message("TagsEntry", key=(1, FIELD.TYPE_STRING), value=(2, FIELD.TYPE_INT32))
    entry.options.map_entry = True
    payment.nested_type.append(entry)
    kind = descriptor_pb2.EnumDescriptorProto(name="Kind")
    for number, name in enumerate(["CARD", "CASH"]):
        kind.value.add(name=name, number=number)
    file = proto_file("shop", [payment], ["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"], [kind])
    message = proto_class(file, "shop.Payment")(
        amount=12.5, count=2**60, kind=1, limit={"value": 0}, last=[0.5, 1], raw=b"abc", tags={"a": 1}
    )
    message.place.city = "Köln"
    message.at.seconds, message.at.nanos = 1767609067, 123456789
    message.places.add(city="Ulm")
    return proto_schema(file), message.SerializeToString()


def proto_class(file: descriptor_pb2.FileDescriptorProto, name: str) -> Any:
    pool = descriptor_pool.DescriptorPool()
    for known in (timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def proto_schema(file: descriptor_pb2.FileDescriptorProto) -> str:
    from base64 import b64encode

    return b64encode(file.SerializeToString()).decode()


def test_a_protobuf_message_is_a_json_object() -> None:
    schema, message = protobuf_payment()
    reader = protobuf_reader(Schema("PROTOBUF", schema))
    assert json.loads(reader(b"\0" + message)) == {
        "amount": 12.5, "count": 2**60, "kind": "CASH", "place": {"city": "Köln"}, "limit": 0, "last": [0.5, 1.0],
        "at": "2026-01-05T10:31:07.123456+00:00", "raw": "abc", "places": [{"city": "Ulm"}], "tags": {"a": 1},
        "note": "",
    }  # fmt: skip
    empty = {"amount": 0.0, "count": 0, "kind": "CARD", "last": [], "raw": "", "places": [], "tags": {}, "note": ""}
    assert json.loads(reader(b"\0")) == empty, "without presence there is always a value"
    assert json.loads(reader(b"\0" + b"\x18\x09"))["kind"] == 9, "a constant that the schema does not have"
    assert json.loads(reader(b"\x04\x00\x00" + b"\x0a\x01x")) == {"city": "x"}, "a message type inside another"
    for indexes, path in ((b"\x02\x02", "1"), (b"\x02\x01", "-1"), (b"\x04\x00\x08", "0, 4")):
        with pytest.raises(BadRecord, match=rf"names the message type \[{path}\], which its schema does not have"):
            reader(indexes)


@pytest.mark.parametrize(
    "message",
    [
        b"\x09\x01",
        b"\x5a\x02\xff\xfe",
        b"\x22" + b"\xff" * 9 + b"\x01",
        b"\x2a\x0a\x08" + b"\x80" * 8 + b"\x40",
        b"\x0f",
    ],
)
def test_hostile_protobuf(message: bytes) -> None:
    reader = protobuf_reader(Schema("PROTOBUF", protobuf_payment()[0]))
    with pytest.raises(BadRecord, match=r"the value is not a Protobuf message shop\.Payment: "):
        reader(b"\0" + message)


def test_messages_in_messages_have_a_limit() -> None:
    node = proto_message("Node", next=message_field(1, ".deep.Node"))
    reader = protobuf_reader(Schema("PROTOBUF", proto_schema(proto_file("deep", [node]))))
    assert reader(b"\0\x0a\x02\x0a\x00") == b'{"next":{"next":{}}}'
    body = b""
    for _ in range(20_000):
        size, head = len(body), b"\x0a"
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        body = head + bytes([size]) + body
    with pytest.raises(BadRecord, match="not a Protobuf message"):
        reader(b"\0" + body)


def test_messages_that_take_no_bytes_have_a_limit() -> None:
    file, _ = protobuf_payment()
    reader = protobuf_reader(Schema("PROTOBUF", file))
    assert len(json.loads(reader(b"\0" + b"\x4a\x00" * 1000))["places"]) == 1000
    with pytest.raises(BadRecord, match=r"^the value holds more than 100,000 Protobuf messages$"):
        reader(b"\0" + b"\x4a\x00" * 100_000)
    assert json.loads(reader(b"\0"))["places"] == []


def test_a_protobuf_file_may_import_others() -> None:
    place = proto_file("geo", [proto_message("Place", city=(1, FIELD.TYPE_STRING))])
    order = proto_file("shop", [proto_message("Order", to=message_field(1, ".geo.Place"))], ["geo/place.proto"])
    schema = Schema("PROTOBUF", proto_schema(order), (("geo/place.proto", Schema("PROTOBUF", proto_schema(place))),))
    assert protobuf_reader(schema)(b"\0\x0a\x03\x0a\x01x") == b'{"to":{"city":"x"}}'
    for wrong in (
        Schema("PROTOBUF", proto_schema(order)),
        Schema("PROTOBUF", 'syntax = "proto3";'),
        Schema("PROTOBUF", ""),
    ):
        with pytest.raises(BadRecord):
            protobuf_reader(wrong)(b"\0")


# -- by the number of the schema


class Source:
    """Schemas in a dict; an exception is raised."""

    def __init__(self, **schemas: Any) -> None:
        self.schemas = {int(name[1:]): schema for name, schema in schemas.items()}
        self.asked: list[int] = []

    def schema(self, schema_id: int) -> Schema:
        self.asked.append(schema_id)
        found = self.schemas.get(schema_id, UnknownSchema("the schema registry does not have it"))
        if isinstance(found, Exception):
            raise found
        return found  # type: ignore[no-any-return]


def one(kind: str) -> Schema:
    return Schema("AVRO", json.dumps({"type": "record", "name": "r", "fields": [{"name": "a", "type": kind}]}))


def test_each_record_is_read_by_its_own_schema_and_each_schema_is_asked_for_once() -> None:
    source = Source(_1=one("int"), _2=one("string"))
    reader = FramedReader(source, "AVRO", avro_reader)
    found = [reader(frame(1, b"\x02")), reader(frame(2, b"\x02x")), reader(frame(1, b"\x04"))]
    assert found == [b'{"a":1}', b'{"a":"x"}', b'{"a":2}']
    assert source.asked == [1, 2]
    with pytest.raises(BadRecord, match=r"the value is not of its Avro schema: it ends too early \(schema 2\)"):
        reader(frame(2, b""))


def test_a_schema_that_is_not_known_is_asked_for_again_after_a_while() -> None:
    now_s = 0.0
    source = Source()
    reader = FramedReader(source, "AVRO", avro_reader, clock=lambda: now_s)
    for _ in range(3):
        with pytest.raises(BadRecord, match=r"^schema 7: the schema registry does not have it$"):
            reader(frame(7, b"\x02"))
    assert source.asked == [7]
    source.schemas[7] = one("int")
    now_s = UNKNOWN_FOR_S
    assert reader(frame(7, b"\x02")) == b'{"a":1}'


def test_a_schema_that_cannot_be_used_is_asked_for_once() -> None:
    source = Source(_3=Schema("PROTOBUF", ""), _4=Schema("AVRO", "{"), _5=SchemaRegistryDown("away"))
    reader = FramedReader(source, "AVRO", avro_reader)
    for _ in range(2):
        with pytest.raises(BadRecord, match=r"^schema 3 cannot be used: it is of the type PROTOBUF, not AVRO"):
            reader(frame(3, b""))
        with pytest.raises(BadRecord, match=r"^schema 4 cannot be used: it is not an Avro schema: JSONDecodeError"):
            reader(frame(4, b""))
        with pytest.raises(SchemaRegistryDown):
            reader(frame(5, b""))
    assert source.asked == [3, 4, 5, 5]
