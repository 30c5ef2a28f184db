"""Avro records to JSON text, by the schema that wrote them. Needs fastavro (extra `avro`).

A field is found by its name, so events of an older and a newer schema mix in one stream: a field that a schema does not
have is missing, as in JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import fastavro
import orjson

from lstmstream.errors import BadRecord
from lstmstream.formats.json_text import json_text
from lstmstream.formats.schemas import Read, Schema

_NAMED = {"record", "error", "enum", "fixed"}


def avro_reader(schema: Schema) -> Read:
    """Reads records of the schema. Raises BadRecord where it cannot be used."""
    named: dict[str, Any] = {}
    try:
        for one in _with_references(schema):
            parsed = fastavro.parse_schema(orjson.loads(one.text), named_schemas=named)
    except Exception as error:  # the library raises whatever its code meets
        raise BadRecord("decode", f"it is not an Avro schema: {_said(error)}") from error
    _Widths(named).check(parsed)

    def read(body: bytes) -> bytes:
        data = BytesIO(body)
        try:
            value = fastavro.schemaless_reader(data, parsed, None)
        except Exception as error:  # as above
            raise BadRecord("decode", f"the value is not of its Avro schema: {_reason(error)}") from error
        if left := len(body) - data.tell():
            raise BadRecord("decode", f"the value is not of its Avro schema: {left} bytes are left at its end")
        return json_text(value)

    return read


def _with_references(schema: Schema) -> Iterator[Schema]:
    """Each once, after those that it refers to."""
    done: set[str] = set()

    def walk(one: Schema) -> Iterator[Schema]:
        for _, inner in one.references:
            yield from walk(inner)
        if one.text not in done:
            done.add(one.text)
            yield one

    return walk(schema)


class _Widths:
    """Refuses schemas by which a few bytes could ask for more memory or stack than there is."""

    def __init__(self, named: dict[str, Any]) -> None:
        self._named = named
        self._open: list[str] = []  # the types that are being looked at, each inside the one before
        self._known: dict[str, int] = {}

    def check(self, schema: Any) -> int:
        """The least number of bytes of a value. Raises BadRecord."""
        if isinstance(schema, list):
            return 1 + min((self.check(one) for one in schema), default=0)
        if isinstance(schema, str):
            return self._of_name(schema)
        kind = schema["type"]
        if isinstance(kind, dict | list):
            return self.check(kind)
        if kind in ("array", "map"):
            width = self.check(schema["items" if kind == "array" else "values"])
            if kind == "array" and width == 0:
                raise BadRecord("decode", "it has an array of items that take no bytes, which could be any number")
            return 1
        return self._of_named(schema, kind) if kind in _NAMED else self._of_name(kind)

    def _of_name(self, name: str) -> int:
        if name in self._open:
            raise BadRecord("decode", f"the record {name!r} contains itself, which is not supported")
        if name in self._named and name not in self._known:
            return self.check(self._named[name])
        return self._known.get(name, {"null": 0, "float": 4, "double": 8}.get(name, 1))

    def _of_named(self, schema: dict[str, Any], kind: str) -> int:
        name = schema["name"]
        if kind not in ("record", "error"):
            return int(schema["size"]) if kind == "fixed" else 1
        if name in self._open:
            return self._of_name(name)
        self._open.append(name)
        width = sum(self.check(field["type"]) for field in schema["fields"])
        self._open.pop()
        self._known[name] = width
        return width


def _reason(error: Exception) -> str:
    """Not in the library's words, which may quote the value."""
    if isinstance(error, EOFError):
        return "it ends too early"
    return "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else type(error).__name__


def _said(error: Exception) -> str:
    """The library's text on one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
