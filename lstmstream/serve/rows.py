"""Records to be published, joined from columns: by the compiled codec, or with one format of Python for all of them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from lstmstream import codec
from lstmstream.formats.iso_columns import iso_texts
from lstmstream.records import Bools, Ints

_TEXTS, _INTEGERS, _TIMES, _FLAGS, _KEYS = range(5)  # kinds of columns, as in native/rows.h
_JSON_BOOLEANS = {True: b"true", False: b"false"}
_STAND_FOR_THEMSELVES = re.compile(rb"[ !#-\[\]-~]*")  # characters that a JSON string does not escape


class Rows:
    """N records, of columns from left to right; each column has a prefix, the same in all records."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._columns: list[tuple[int, bytes, Any]] = []

    def texts(self, prefix: bytes, texts: list[bytes]) -> None:
        """JSON as it is."""
        self._columns.append((_TEXTS, prefix, texts))

    def integers(self, prefix: bytes, integers: Ints) -> None:
        """[N] integers."""
        self._columns.append((_INTEGERS, prefix, np.ascontiguousarray(integers, np.int64)))

    def times(self, prefix: bytes, timestamps_ms: Ints) -> None:
        """[N] times in the years 1 to 9999 as ISO 8601 in milliseconds, UTC, without the closing Z."""
        self._columns.append((_TIMES, prefix, np.ascontiguousarray(timestamps_ms, np.int64)))

    def flags(self, prefix: bytes, flags: Bools) -> None:
        """[N] true or false."""
        self._columns.append((_FLAGS, prefix, np.ascontiguousarray(flags, np.bool_)))

    def keys(self, prefix: bytes, keys: list[bytes | None]) -> None:
        """The members `key` or `key_base64`."""
        self._columns.append((_KEYS, prefix, keys))

    def join(self, suffix: bytes) -> list[bytes | None]:
        """The records, all of which end with `suffix`."""
        compiled = codec.load()
        if compiled is not None:
            found: list[bytes | None] | None = compiled.write_rows(tuple(self._columns), suffix, self._count)
            if found is not None:
                return found
        layout = b"".join(
            prefix.replace(b"%", b"%%") + (b"%d" if kind == _INTEGERS else b"%b") for kind, prefix, _ in self._columns
        )
        columns = [_as_python_writes(kind, column) for kind, _, column in self._columns]
        return list(map((layout + suffix.replace(b"%", b"%%")).__mod__, zip(*columns, strict=True)))


def _as_python_writes(kind: int, column: Any) -> Sequence[object]:
    if kind == _TIMES:
        return iso_texts(column)
    if kind == _FLAGS:
        return [_JSON_BOOLEANS[flag] for flag in column.tolist()]
    if kind == _KEYS:
        return key_texts(column)
    texts: Sequence[object] = column.tolist() if kind == _INTEGERS else column
    return texts


def key_texts(keys: list[bytes | None]) -> list[bytes]:
    """The key of each prediction with its name."""
    if None not in keys and _STAND_FOR_THEMSELVES.fullmatch(b"".join(keys)):  # type: ignore[arg-type]  # no None
        return list(map(b'"key":"%b"'.__mod__, keys))
    return [_key_json(key) for key in keys]


def _key_json(key: bytes | None) -> bytes:
    if key is None:
        return b'"key":null'
    try:
        return b'"key":' + orjson.dumps(key.decode())
    except UnicodeDecodeError:
        return b'"key_base64":"' + b64encode(key) + b'"'
