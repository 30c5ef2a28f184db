"""The texts of fields are those that the parsed document gives, whichever way they are found."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import codec
from lstmstream.formats.json_documents import dump_finite, parse_document
from lstmstream.serve import event_fields
from lstmstream.serve.event_fields import EventFields
from lstmstream.serve.fast_decode import LazyDocuments

either_codec = pytest.mark.usefixtures("either_codec")
NAMES = ("a", "ä", "b.c", 'q"u', "b")

digits = st.text("0123456789", min_size=1, max_size=20)
numbers = st.builds(
    lambda sign, whole, rest: sign + (whole.lstrip("0") or "0") + rest,
    st.sampled_from(["", "-"]),
    digits | st.just("0"),
    st.just("") | digits.map(".{}".format) | st.sampled_from(["e2", "E-3", "e-400", ".5e1", ".0", ".00", ".10"]),
)
texts = st.text(max_size=5)
strings = texts.map(json.dumps) | texts.map(lambda text: json.dumps(text, ensure_ascii=False))
plain = st.sampled_from(["true", "false", "null", "[]", "{}", "[1.50]", '{"c":1}', '{"c":{"c":"\\u0041"}}', "1e400"])
members = st.tuples(
    st.sampled_from(['"a"', '"ä"', '"b"', '"b.c"', '"q\\"u"', '"\\u0061"', '"other"']),
    st.sampled_from(["", " ", "\t\n"]),
    numbers | strings | plain,
)
events = st.lists(members, max_size=6).map(
    lambda found: "{" + ",".join(f"{name}{space}:{space}{value}{space}" for name, space, value in found) + " }"
)


def read(texts: list[bytes], *names: str) -> list[list[bytes]]:
    values: list[bytes | None] = list(texts)
    return EventFields(names).read(values, LazyDocuments(values), np.arange(len(values)))


def from_documents(texts: list[bytes], *names: str) -> list[list[bytes]]:
    return [[event_fields._text(parse_document(text), name, text) for text in texts] for name in names]


@either_codec
@given(st.lists(events, min_size=1, max_size=4))
@settings(max_examples=500, deadline=None)
def test_the_same_as_from_documents(found: list[str]) -> None:
    texts = [event.encode() for event in found]
    assert read(texts, *NAMES) == from_documents(texts, *NAMES)


@either_codec
@pytest.mark.parametrize(
    "value",
    [
        "0", "-0", "7", "-7", "123456789012345678", "999999999999999999", "1234567890123456789", "18446744073709551616",
        "0.0", "-0.0", "0.5", "0.50", "1.0", "1.00", "10.0", "0.001", "0.0011", "0.00099", "0.0001", "0.00001", "1e5",
        "12345678901234.5", "123456789012345.5", "123456789.123456", "123456789.1234567", "0.123456789012345",
        "0.1234567890123456", "99999999999999.9", "1234567890123456.0", "0.000", "5e-324", "1.7976931348623157e308",
    ],
)  # fmt: skip
def test_numbers_are_written_as_from_documents(value: str) -> None:
    text = b'{"a":%b}' % value.encode()
    assert read([text], "a") == from_documents([text], "a")


@given(st.lists(st.text(st.sampled_from('a"\\\n\té\x7f,'), max_size=3), min_size=1, max_size=4))
@settings(deadline=None)
def test_strings_are_written_as_from_documents(strings: list[str]) -> None:
    assert event_fields.string_texts(strings) == list(map(dump_finite, strings))


class Refused:
    """Documents that nobody may ask for."""

    def __getitem__(self, at: Any) -> Any:
        raise AssertionError("a document was parsed")


@either_codec
def test_no_document_is_parsed_for_what_is_usual() -> None:
    text = '{"ts":"2026-01-31T12:00:00Z","n":-52.38,"who":"é","whole":17,"yes":true,"no":null,"zero":0.0}'.encode()
    names = ["ts", "n", "who", "whole", "yes", "no", "zero", "absent"]
    found = EventFields(names).read([b"not asked for", text], Refused(), np.array([1]))  # type: ignore[arg-type]
    wanted = ['"2026-01-31T12:00:00Z"', "-52.38", '"é"', "17", "true", "null", "0.0", ""]
    assert found == [[value.encode()] for value in wanted]


@either_codec
def test_one_that_is_unusual_leaves_its_neighbours() -> None:
    texts = [b'{"a":1.5}', b'{"a":1.50}', b'{"a":[1]}', b"{}", b'{"a":1,"a":2}', b'{"\\u0061":3,"a":1}']
    assert read(texts, "a", "a") == [[b"1.5", b"1.5", b"[1]", b"", b"2", b"1"]] * 2


@pytest.mark.usefixtures("compiled_codec")
def test_the_codec_keeps_no_reference() -> None:
    module = codec.load()
    assert module is not None
    name, value, names = b"a name", b'{"a name":1}', (b"a name",)
    before = sys.getrefcount(name), sys.getrefcount(value)
    assert module.read_members([value, None, b"[]"], (name,)) == [[b"1", None, None]]
    with pytest.raises(TypeError, match="tuple of bytes"):
        module.read_members([value], ("a",))
    assert module.read_members([value], names * 65) is None
    assert module.read_members((value,), names) is None
    assert (sys.getrefcount(name), sys.getrefcount(value)) == before
