"""What a message or a file is, by its first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import re
import zlib
from typing import Any

import pytest

from lstmstream.errors import BadRecord
from lstmstream.formats.framing import compression, describe_bytes, file_format, text_encoding
from lstmstream.formats.json_documents import parse_document

OBJECT = b'{"amount":1,"note":"x"}'


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (gzip.compress(OBJECT, mtime=0), "gzip data"),
        (bz2.compress(OBJECT), "bzip2 data"),
        (lzma.compress(OBJECT), "xz data"),
        (b"\x28\xb5\x2f\xfd\x20\x17" + OBJECT, "zstd data"),
        (b"\x04\x22\x4d\x18" + OBJECT, "LZ4 data"),
        (b"\x82SNAPPY\0\0\0\0\1" + OBJECT, "Snappy data"),
        (b"\0\0\0\0\x2a\x06abc\xff", "a message of a schema registry (schema id 42): Avro, Protobuf or JSON Schema"),
        (b"\0\0\0\x7b\x22" + OBJECT, "a message of a schema registry (schema id 31522)"),  # JSON Schema: JSON follows
        (b"Obj\x01\x04\x14avro.codec", "an Avro container file"),
        (pickle.dumps({"amount": 1}), "a Python pickle"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"\x08\x96\x01\x12\x07testing\x1d\0\0\x80\x3f", "binary data"),  # Protobuf
        ("{}".encode("utf-16-le") + OBJECT.decode().encode("utf-16-le"), "UTF-16 text"),
        (OBJECT.decode().encode("utf-16"), "UTF-16 text"),
        (OBJECT.decode().encode("utf-16-be"), "UTF-16 text"),
        (OBJECT.decode().encode("utf-32"), "UTF-32 text"),
        (OBJECT.decode().encode("utf-32-be"), "UTF-32 text"),
        ('{"name":"é"}'.encode("latin-1"), "text in an encoding other than UTF-8 (byte 0xe9 at 9)"),
        (b"<?xml version='1.0'?><a/>", "HTML or XML"),
        (b" <html></html>", "HTML or XML"),
        (zlib.compress(OBJECT), "zlib data"),
    ],
)
def test_a_value_that_is_not_json_is_named_in_the_dead_letter(value: bytes, what: str) -> None:
    assert (describe_bytes(value) or "").startswith(what)
    with pytest.raises(BadRecord, match="the value is not UTF-8 JSON: it looks like ") as caught:
        parse_document(value)
    assert what in str(caught.value)
    assert caught.value.stage == "decode"
    assert "surrogates" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [b"", b"{", b"hello", OBJECT, b"\x1e" + OBJECT, "{'é': 1}".encode(), b"a,b\r\n1,2\r\n"]
)
def test_text_is_left_to_the_parser(value: bytes) -> None:
    assert describe_bytes(value) is None
    assert compression(value) is file_format(value) is text_encoding(value) is None


@pytest.mark.parametrize("value", [b"[1]", b"[" + OBJECT + b"]"])
def test_an_array_is_named(value: bytes) -> None:
    with pytest.raises(BadRecord, match="the value is a JSON array, not an object"):
        parse_document(value)


def test_a_byte_order_mark_before_json_is_skipped_once() -> None:
    document: dict[str, Any] = {"amount": 1, "note": "x"}
    assert parse_document(b"\xef\xbb\xbf" + OBJECT) == document
    assert parse_document(b'\xef\xbb\xbf{"amount":1e400}') == {"amount": float("inf")}
    with pytest.raises(BadRecord):
        parse_document(b"\xef\xbb\xbf" * 2 + OBJECT)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (b'{"a":NaN}', "NaN is not JSON; write null"),
        (b'{"a":[1,Infinity]}', "infinity is not JSON; write null"),
        (b'{"a":None}', "None is not JSON; write null"),
        (b'{"a":True}', "JSON has true and false in lower case"),
        (b"{'a':1}", "JSON strings have double quotes"),
    ],
)
def test_what_python_writes_for_json_is_named(value: bytes, hint: str) -> None:
    with pytest.raises(BadRecord, match=re.escape(f" ({hint})")):
        parse_document(value)
