"""CloudEvents 1.0 on Kafka: from records to JSON objects, and predictions to CloudEvents.

Binary mode: the value is the data, and each attribute is a header `ce_NAME`. Structured mode: the value is a JSON
object with the attributes and the data. Either way the event is the data with each attribute as a field `ce_NAME`, so
that `input.timestamp: ce_time` means the same in both. Source: the CloudEvents
specification 1.0.2 and its Kafka binding.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.json_members import read_members
from lstmstream.records import Headers

PREFIX = "ce_"
CONTENT_TYPE = "content-type"
STRUCTURED = "application/cloudevents+json"
VERSION = "1.0"
_ENVELOPES = "application/cloudevents"  # how the content type of every structured or batched form begins
_DATA, _DATA_BASE64 = "data", "data_base64"
_VERSION_NAME = "specversion"


class CloudEvent(NamedTuple):
    """A record's data and attributes."""

    data: bytes | None  # in the format of the input, or JSON; None: it has none
    is_json: bool  # whatever the format of the input
    attributes: Mapping[str, bytes]  # `ce_NAME` → JSON text


def read_cloudevent(value: bytes | None, headers: Headers) -> CloudEvent:
    """The event of a record in either mode. Raises BadRecord, stage `decode`."""
    content_type = _content_type(headers)
    if content_type.startswith(_ENVELOPES):
        if content_type != STRUCTURED:
            raise BadRecord("decode", f"the content type is of CloudEvents, but not {STRUCTURED}")
        return _structured(read_members(value, "the value"))
    attributes = {
        name: orjson.dumps((text or b"").decode("utf-8", "replace"))
        for name, text in headers
        if name.startswith(PREFIX) and text is not None
    }
    if (version := attributes.get(PREFIX + _VERSION_NAME)) is not None:
        _check_version(version)
        return CloudEvent(value, is_json=False, attributes=attributes)
    try:  # some producers leave the content type out
        members = read_members(value, "the value")
    except BadRecord:
        members = {}
    if _VERSION_NAME not in members:
        raise BadRecord(
            "decode",
            f"the record is not a CloudEvent: it has neither a header ce_specversion nor the content type {STRUCTURED}",
        )
    return _structured(members)


def is_own_header(name: str) -> bool:
    """Whether a header says something of the CloudEvent that its record is, and so nothing of another record."""
    return name.startswith(PREFIX) or name.lower() == CONTENT_TYPE


def _content_type(headers: Headers) -> str:
    """In lower case and without parameters; empty where there is none. The last one counts."""
    found = b""
    for name, value in headers:
        if name.lower() == CONTENT_TYPE:
            found = value or b""
    return found.decode("utf-8", "replace").partition(";")[0].strip().lower()


def _structured(members: Mapping[str, bytes]) -> CloudEvent:
    _check_version(members.get(_VERSION_NAME))
    attributes = {
        PREFIX + name: text for name, text in members.items() if name not in (_DATA, _DATA_BASE64) and text != b"null"
    }
    encoded = members.get(_DATA_BASE64, b"null")
    if encoded != b"null":
        return CloudEvent(_from_base64(encoded), is_json=False, attributes=attributes)
    return CloudEvent(members.get(_DATA, b"{}"), is_json=True, attributes=attributes)


def _check_version(text: bytes | None) -> None:
    if text is None:
        raise BadRecord("decode", "the CloudEvent has no specversion")
    if text != b'"1.0"':
        raise BadRecord("decode", f"the CloudEvent's specversion is not {VERSION}, the only one supported")


def _from_base64(text: bytes) -> bytes:
    try:
        return b64decode(msgspec.json.decode(text, type=str), validate=True)
    except (msgspec.MsgspecError, Base64Error, ValueError) as error:
        raise BadRecord("decode", "the CloudEvent's data_base64 is not base64 text") from error
