"""Protobuf messages to JSON text, by the descriptor of the file that declares them.

Fields have the names of the `.proto` file. A field without presence always has a value, as in every Protobuf library:
0 and the empty text are values; one with presence (`optional`, messages) that was not set is missing.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from lstmstream.errors import BadRecord
from lstmstream.formats.json_text import json_text
from lstmstream.formats.schemas import Read, Schema
from lstmstream.formats.wire_format import split_message_indexes

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Convert = Callable[[Any], Any]
MAX_MESSAGES = 100_000  # in one value: two bytes of it may be a message whose fields all have their defaults


def protobuf_reader(schema: Schema) -> Read:
    """Reads messages of the file that the schema describes. Raises BadRecord where it cannot be used."""
    pool = descriptor_pool.DescriptorPool()
    try:
        file = _add(pool, schema, None, set())
    except (TypeError, KeyError, ValueError, DecodeError, Base64Error) as error:
        said = " ".join(str(error).split())[:200]
        raise BadRecord("decode", f"it is not a Protobuf file descriptor: {said or type(error).__name__}") from error
    descriptors = list(pool.FindFileByName(file).message_types_by_name.values())
    objects = _Objects()
    classes: dict[tuple[int, ...], type[Message]] = {}

    def read(body: bytes) -> bytes:
        indexes, content = split_message_indexes(body)
        made = classes.get(indexes)
        if made is None:
            made = classes[indexes] = message_factory.GetMessageClass(_message_type(descriptors, indexes))
        try:
            message = made.FromString(content)
            value = objects.read_whole(message)
        except (DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
            name = made.DESCRIPTOR.full_name
            raise BadRecord("decode", f"the value is not a Protobuf message {name}: {type(error).__name__}") from error
        return json_text(value)

    return read


def _add(pool: descriptor_pool.DescriptorPool, schema: Schema, name: str | None, done: set[str]) -> str:
    """Adds the file after those that it imports; the name of the file."""
    file = FileDescriptorProto.FromString(b64decode(schema.text, validate=True))
    if name is not None:
        file.name = name  # by which others import it
    elif not file.name or file.name == "default":
        file.name = "lstmstream-event.proto"
    if file.name in done:
        return str(file.name)
    done.add(file.name)
    for reference, inner in schema.references:
        _add(pool, inner, reference, done)
    for imported in file.dependency:
        if imported not in done and imported.startswith("google/protobuf/"):
            done.add(imported)
            _add_well_known(pool, imported, done)
    pool.Add(file)
    return str(file.name)


def _add_well_known(pool: descriptor_pool.DescriptorPool, name: str, done: set[str]) -> None:
    found = FileDescriptorProto()
    _load_well_known(name).CopyToProto(found)
    for imported in found.dependency:
        if imported not in done:
            done.add(imported)
            _add_well_known(pool, imported, done)
    pool.Add(found)


def _load_well_known(name: str) -> Any:
    from google.protobuf import (  # noqa: PLC0415 - their import puts them into the default pool
        any_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        struct_pb2,
        timestamp_pb2,
        wrappers_pb2,
    )

    modules = (any_pb2, duration_pb2, empty_pb2, field_mask_pb2, struct_pb2, timestamp_pb2, wrappers_pb2)
    for module in modules:
        if module.DESCRIPTOR.name == name:
            return module.DESCRIPTOR
    return descriptor_pool.Default().FindFileByName(name)


def _message_type(descriptors: list[Descriptor], indexes: tuple[int, ...]) -> Descriptor:
    found: Descriptor | None = None
    here = descriptors
    for index in indexes:
        if not 0 <= index < len(here):
            path = ", ".join(map(str, indexes))
            raise BadRecord("decode", f"the value names the message type [{path}], which its schema does not have")
        found = here[index]
        here = list(found.nested_types)
    assert found is not None, "there is at least one index"
    return found


class _Objects:
    """Messages of one pool to dictionaries; holds what it has found out about each message type."""

    def __init__(self) -> None:
        self._fields: dict[str, list[tuple[str, bool, Convert | None]]] = {}
        self._left = 0  # messages that may still come

    def read_whole(self, message: Message) -> dict[str, Any]:
        """Field → value, those without a value left out. Raises BadRecord where it holds too many messages."""
        self._left = MAX_MESSAGES
        return self._read(message)

    def _read(self, message: Message) -> dict[str, Any]:
        self._left -= 1
        if self._left < 0:
            raise BadRecord("decode", f"the value holds more than {MAX_MESSAGES:,} Protobuf messages")
        descriptor = message.DESCRIPTOR
        fields = self._fields.get(descriptor.full_name)
        if fields is None:
            fields = self._fields[descriptor.full_name] = [
                (field.name, field.has_presence, self._conversion(field))  # type: ignore[arg-type]  # one of two types
                for field in descriptor.fields
            ]
        return {
            name: getattr(message, name) if convert is None else convert(getattr(message, name))
            for name, has_presence, convert in fields
            if not has_presence or message.HasField(name)
        }

    def _conversion(self, field: FieldDescriptor) -> Convert | None:
        """None where the value is one of JSON already."""
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            convert = self._of_one(inner.fields_by_name["value"]) or _same
            return lambda entries: {key: convert(value) for key, value in dict(entries).items()}
        one = self._of_one(field)
        if field.is_repeated:
            return list if one is None else lambda values: list(map(one, values))
        return one

    def _of_one(self, field: FieldDescriptor) -> Convert | None:
        if field.enum_type is not None:
            names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
            return lambda number: names.get(number, number)
        if field.message_type is None:
            return None
        name = field.message_type.full_name
        known: Convert | None = _OF_WELL_KNOWN.get(name)
        return self._read if known is None else known


def _same(value: Any) -> Any:
    return value


def _moment(message: Any) -> datetime:
    return _EPOCH + timedelta(seconds=message.seconds, microseconds=message.nanos // 1000)


def _json_like(message: Any) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


_OF_WELL_KNOWN: Mapping[str, Convert] = {
    "google.protobuf.Timestamp": _moment,
    "google.protobuf.Duration": lambda message: message.seconds + message.nanos / 1e9,
    **{
        f"google.protobuf.{kind}Value": lambda message: message.value
        for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
    },
    **{f"google.protobuf.{kind}": _json_like for kind in ("Struct", "Value", "ListValue", "FieldMask")},
}
