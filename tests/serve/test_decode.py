"""The poison table: what is wrong with a record, at which stage, and that no message ever repeats a value."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lstmstream.errors import BadRecord
from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.model import Feature
from lstmstream.records import DeadLetter, Observations, UnreadableValue
from lstmstream.serve.decode import Decoder
from tests.serve.helpers import batch, one, onnx_step
from tests.serve.reference import Event, Refused, time_of

pytestmark = pytest.mark.usefixtures("either_codec")

SECRET = "s3cret-4711"


def decoder(**named: Any) -> Decoder:
    """Numbers amount and merchant.risk; categories channel (web, app, pos) and device.id (16 buckets)."""
    return Decoder(onnx_step("small").card, **named)


def letter(value: bytes | None, *, record_ms: int = 0, **named: Any) -> DeadLetter:
    observations, letters, documents, *_ = decoder(**named).decode(one(value, timestamp=record_ms))
    assert len(observations.index) == 0
    assert len(documents) == 1
    (found,) = letters
    assert found.index == 0
    return found


def good(value: bytes | dict[str, Any], **named: Any) -> Observations:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    observations, letters, documents, *_ = decoder(**named).decode(one(raw))
    assert letters == []
    assert list(documents) == [json.loads(raw, parse_int=int_of)]
    return observations


def int_of(digits: str) -> int | float:
    """What 64 bits cannot hold is a float."""
    return int(digits) if -(2**63) <= int(digits) < 2**64 else float(digits)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"null",
        b"{",
        b"{}{}",
        b"{} x",
        b"{'amount':1}",
        b'{"amount":01}',
        b'{"amount":+1}',
        b'{"amount":1,}',
        b'{"amount":.5}',
        b"[]",
        b'"x"',
        b"1",
        b"1e400",
        b"[1e400]",
        b"true",
        b'{"amount":NaN}',
        b'{"amount":nan}',
        b'{"amount":Infinity}',
        b'{"amount":-Infinity}',
        b'{"amount":1e400,"x":NaN}',
        b'{"amount":1e400,"x":-Infinity}',
        b'{"amount":1e400',
        b'\xef\xbb\xbf\xef\xbb\xbf{"amount":1}',
        b"\xef\xbb\xbf" * 100_000,
        '{"amount":1}'.encode("utf-16"),
        b'{"other":"\xff"}',
        b'{"other":1e400,"b":"\xc3"}',
        b'{"other":"\xed\xa0\x80"}',  # a surrogate as bytes
        b'{"other":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"other":"\\ud800","x":1e400}',
        b'{"other":1e400,"x":"\\ud800"}',
        b'{"other":1e400,"\\udfff":1}',
        b'{"other":"a\nb"}',
        b'{"other":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"other":1e400,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 100_000,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_utf8_json_object_fails_at_decode(value: bytes | None) -> None:
    found = letter(value)
    assert found.stage == "decode"
    assert found.with_value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the value is null"),
        (b"null", "the value is a JSON null, not an object"),
        (b"[]", "the value is a JSON array, not an object"),
        (b'"x"', "the value is a JSON string, not an object"),
        (b"1", "the value is a JSON number, not an object"),
        (b"false", "the value is a JSON boolean, not an object"),
        (b"[1e400]", "the value is a JSON array, not an object"),
        (
            '{"éé":x}'.encode(),
            "the value is not UTF-8 JSON: unexpected character, expected a JSON value at character 6",
        ),
    ],
)
def test_the_messages_of_decode(value: bytes | None, message: str) -> None:
    assert letter(value).message == message


@pytest.mark.parametrize(
    ("fields", "name", "kind"),
    [
        ('"amount":true', "amount", "boolean"),
        ('"amount":false', "amount", "boolean"),
        ('"amount":"1"', "amount", "string"),
        (f'"amount":"{SECRET}"', "amount", "string"),
        ('"amount":[1]', "amount", "array"),
        ('"amount":{}', "amount", "object"),
        ('"merchant":{"risk":true}', "merchant.risk", "boolean"),
        ('"amount":1,"amount":"1"', "amount", "string"),
        ('"channel":["web"]', "channel", "array"),
        ('"device":{"id":{}}', "device.id", "object"),
    ],
)
def test_a_wrong_type_fails_at_validate_and_names_the_field(fields: str, name: str, kind: str) -> None:
    found = letter(f"{{{fields}}}".encode())
    assert found.stage == "validate"
    assert found.message.startswith(f"field '{name}' is {'an' if kind[0] in 'ao' else 'a'} {kind}, ")
    assert SECRET not in found.message


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e39", "-1e39", "3.4028235677973366e38", "1" * 400, "-" + "9" * 39]
)
@pytest.mark.parametrize("name", ["amount", "merchant.risk"])
def test_numbers_beyond_float32_fail_at_validate(number: str, name: str) -> None:
    text = f'{{"amount":{number}}}' if name == "amount" else f'{{"merchant":{{"risk":{number}}}}}'
    assert letter(text.encode()).stage == "validate"
    assert letter(text.encode()).message == f"field '{name}' is not finite in float32"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("3.4028234663852886e38", 3.4028234663852886e38),
        ("3.40282356779733e38", 3.4028234663852886e38),  # rounds down, so it is finite
        ("1e-400", 0.0),
        ("-0.0", -0.0),
        ("16777217", 16777216.0),
        ("12345678901234567890", 1.2345679e19),
        ("123456789012345678901234567890", 1.2345679e29),
        ("0.1", 0.1),
        ("null", np.nan),
    ],
)
def test_numbers_are_rounded_to_float32(number: str, expected: float) -> None:
    for padding in ("", ',"other":1e400', ',"channel":7'):
        x = good(f'{{"amount":{number}{padding}}}'.encode()).x
        assert x.dtype == np.float32
        assert x[0, :1].tobytes() == np.array([expected], np.float32).tobytes()


def test_an_infinite_number_that_nobody_reads_does_no_harm() -> None:
    observations = good(b'{"amount":1,"amount":2.5,"other":[1e400,99999999999999999999],"channel":"app"}')
    assert (observations.x[0, 0], observations.categories[0, 0]) == (2.5, 2)
    assert good(b'{"amount":1e400,"amount":2.5}').x[0, 0] == 2.5


@pytest.mark.parametrize(
    "doc",
    [
        b"{}",
        b'{"amount":null}',
        b'{"merchant":5}',
        b'{"merchant":[{"risk":1}]}',
        b'{"merchant":null}',
        b' {"a":{}}\r\n',
    ],
)
def test_absent_null_and_paths_through_no_object_are_missing(doc: bytes) -> None:
    observations = good(doc)
    assert np.isnan(observations.x).all()
    assert observations.categories.tolist() == [[0, 0]]


def test_of_duplicate_names_the_last_counts() -> None:
    assert good(b'{"amount":"x","amount":3}').x[0, 0] == 3
    assert np.isnan(good(b'{"merchant":{"risk":1},"merchant":{}}').x[0, 1])


@pytest.mark.parametrize(
    ("channel", "code"),
    [("web", 1), ("app", 2), ("pos", 3), ("WEB", 0), ("", 0), ("fax", 0), (None, 0), (1, 0), (2**53, 0), (-(2**53), 0)],
)
def test_vocabulary(channel: Any, code: int) -> None:
    assert good({"channel": channel}).categories[0, 0] == code


@pytest.mark.parametrize(
    ("device", "text"), [("abc", "abc"), ("", ""), ("ключ", "ключ"), (7, "7"), (-7, "-7"), ("7", "7")]
)
def test_buckets_are_crc32_of_the_utf8_text(device: Any, text: str) -> None:
    expected = 1 + zlib.crc32(text.encode()) % 16
    assert good({"device": {"id": device}}).categories[0, 1] == expected


def test_known_buckets() -> None:
    """CRC-32 of "123456789" is 0xCBF43926, the algorithm's check value; of the empty text it is 0."""
    assert good({"device": {"id": "123456789"}}).categories[0, 1] == 1 + 0xCBF43926 % 16 == 7
    assert good({"device": {"id": 123456789}}).categories[0, 1] == 7
    assert good({"device": {"id": ""}}).categories[0, 1] == 1


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**63, 10**19, 2**64 - 1, -(2**63)])
def test_integers_of_64_bits_are_names_digit_for_digit(value: int) -> None:
    assert good(b'{"id":%d}' % value, key="id").keys == [b"%d" % value]
    expected = 1 + zlib.crc32(b"%d" % value) % 16
    assert good(b'{"device":{"id":%d}}' % value).categories[0, 1] == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("18446744073709551616", "beyond 64 bits"),
        ("-9223372036854775809", "beyond 64 bits"),
        ("9" * 400, "not whole"),
        ("1e400", "not whole"),
        ("1e300", "beyond 64 bits"),
        ("9007199254740994.0", "beyond 2^53"),
        ("0.5", "not whole"),
    ],
)
def test_numbers_that_are_no_names(value: str, reason: str) -> None:
    for fields, named in (('"channel":%s', {}), ('"device":{"id":%s}', {}), ('"id":%s', {"key": "id"})):
        for padding in ("", ',"other":1e400'):
            found = letter(("{" + fields % value + padding + "}").encode(), **named)
            assert found.stage == "validate"
            assert reason in found.message
            assert value not in found.message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (17.0, "17"), (-0.0, "0"), (1e3, "1000"), (float(2**53), "9007199254740992"), (True, "true"), (False, "false"),
        ("17.0", "17"), ("-17.00", "-17"), ("+5.0", "5"), ("-0.0", "0"), ("1.7e1", "17"), ("1.7E+01", "17"),
        ("True", "true"), ("TRUE", "true"), ("true", "true"), ("False", "false"), ("FALSE", "false"),
        ("007", "007"), ("007.0", "007.0"), ("1e5", "1e5"), ("17", "17"), ("+5", "+5"), (" A", " A"), ("17.5", "17.5"),
        ("17.", "17."), (".0", ".0"), (" 17.0", " 17.0"), ("17.0\n", "17.0\n"), ("1.0e-3", "1.0e-3"),
        ("9007199254740992.0", "9007199254740992"), ("9007199254740993.0", "9007199254740993.0"), ("tRUE", "tRUE"),
        ("1.0e9999999999", "1.0e9999999999"), ("1.2.0", "1.2.0"), ("\u0661.0", "\u0661.0"), ("yes", "yes"),
    ],
)  # fmt: skip
def test_the_text_of_a_category_and_a_key(value: Any, text: str) -> None:
    """`17.0` and `True` are how files without types spell 17 and true; codes stay as they are."""
    card = replace(onnx_step("small").card, features=(Feature("c", "category", vocabulary=("x", text)),))
    assert Decoder(card).decode(one(json.dumps({"c": value}).encode())).observations.categories.tolist() == [[2]]
    assert good({"device": {"id": value}}).categories[0, 1] == 1 + zlib.crc32(text.encode()) % 16
    if not isinstance(value, bool):
        assert good({"id": value}, key="id").keys == [text.encode()]


def test_a_vocabulary_that_spells_integers_and_booleans_is_found() -> None:
    card = replace(onnx_step("small").card, features=(Feature("c", "category", vocabulary=("17.0", "True", "A")),))
    for values, code in (((17, "17", "17.0", 17.0), 1), ((True, "True", "true"), 2), (("A",), 3), (("a", False), 0)):
        for value in values:
            found = Decoder(card).decode(one(json.dumps({"c": value}).encode())).observations.categories
            assert found.tolist() == [[code]]


def test_names_with_dots_are_found_as_they_are_and_along_their_path() -> None:
    card = replace(onnx_step("small").card, features=(Feature("a.b.c", "number"),))
    for document, expected in (
        ('{"a.b.c":1}', 1), ('{"a":{"b":{"c":1}}}', 1), ('{"a":{"b.c":1}}', 1), ('{"a.b":{"c":1}}', 1),
        ('{"a.b.c":1,"a.b":{"c":2},"a":{"b":{"c":3},"b.c":4}}', 1), ('{"a.b":{"c":1},"a":{"b":{"c":3}}}', 1),
        ('{"a.b":{},"a":{"b":{"c":1}}}', 1), ('{"a":{"b.c":1,"b":{"c":2}}}', 1), ('{"a.b":1,"a":{"b":{"c":1}}}', 1),
        ('{"a.b.c":null,"a":{"b":{"c":1}}}', np.nan), ('{"a":{"b":{}}}', np.nan), ('{"a":{"b":1}}', np.nan),
    ):  # fmt: skip
        assert np.array_equal(Decoder(card).decode(one(document.encode())).observations.x, [[expected]], equal_nan=True)
    for document in ('{"h.n":"k","u.t":5}', '{"h":{"n":"k"},"u":{"t":5}}'):
        found = good(document.encode(), key="h.n", timestamp="u.t")
        assert (found.keys, found.timestamps.tolist()) == ([b"k"], [5000])


def test_counts_of_missing_and_unknown_values_are_of_good_records_in_the_cards_order() -> None:
    features = (
        Feature("c", "category", vocabulary=("x",)), Feature("n", "number"), Feature("d", "category", buckets=4),
    )  # fmt: skip
    card = replace(onnx_step("small").card, features=features)
    values = [b'{"c":"x","n":1,"d":"z"}', b'{"c":"y"}', b'{"c":null,"n":2}', b'{"n":true}', b"{"]
    counts = Decoder(card).decode(batch([Event(0, i, 0, b"k", v) for i, v in enumerate(values)])).field_counts
    assert (counts.missing.tolist(), counts.unknown.tolist()) == ([1, 1, 2], [1, 0, 0])
    assert counts.missing.dtype == counts.unknown.dtype == np.int64


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-05T10:31:07.123Z", 1767609067123),
        ("2026-01-05T10:31:07.123999Z", 1767609067123),
        ("2026-01-05T10:31:07,123Z", 1767609067123),
        ("2026-01-05T10:31:07.123", 1767609067123),
        ("2026-01-05 10:31:07.123", 1767609067123),
        ("2026-01-05T12:31:07.123+02:00", 1767609067123),
        ("2026-01-05T05:01:07.123-05:30", 1767609067123),
        ("2026-01-05", 1767571200000),
        ("20260105T103107Z", 1767609067000),
        ("1969-12-31T23:59:59.999Z", -1),
        ("0001-01-01T00:00:00Z", -62135596800000),
        ("9999-12-31T23:59:59.999999Z", 253402300799999),
        (0, 0),
        (1, 1000),
        (1.001, 1001),
        (1.0019, 1001),
        (4.35, 4350),
        (1767609067, 1767609067000),
        (1767609067.123, 1767609067123),
        (1767609067.9999, 1767609067999),
        (-1, -1000),
        (-0.001, -1),
        (99_999_999_999, 99_999_999_999_000),
        (100_000_000_000, 100_000_000_000),
        (99999999999.999, 99999999999999),
        (1e11, 100_000_000_000),
        (1767609067123, 1767609067123),
        (1767609067123.9, 1767609067123),
        (253402300799999, 253402300799999),
        (-(10**11), -(10**11)),
        (-62135596800000, -62135596800000),
        *((value, 1767571200000) for value in (20260105, 20260105.0, "20260105", " 20260105 ", "20260105.0")),
        *((value, 1767600720000) for value in (202601050812, 202601050812.0, "202601050812")),
        *((value, 1767600760000) for value in (20260105081240, 20260105081240.0, "20260105081240")),
        *((value, 1767600760123) for value in (20260105081240123, "20260105081240123", "20260105081240.1239")),
        *((value, 1767600760500) for value in (20260105081240.5, "20260105081240.5")),
        (190001009999, 190001009999),
        (210012312360, 210012312360),
        (19700101, 0),
        ("19000101", -2208988800000),
        (21001231, 4133894400000),
        (18991231, 18991231000),
        (19000100, 19000100000),
        (21010101, 21010101000),
        (20240229, 1709164800000),
        ("1767609067", 1767609067000),
        ("1767609067.1239", 1767609067123),
        ("1767609067.1239999999999999999", 1767609067123),
        ("1767609067123", 1767609067123),
        ("1.767609067e9", 1767609067000),
        ("-1.5", -1500),
        ("5", 5000),
        ("05", 5000),
        ("2026-01-05t10:31:07Z", 1767609067000),
        ("2026-01-05T10:31:07z", 1767609067000),
    ],
)
def test_times(value: Any, ms: int) -> None:
    assert timestamp_ms(value, "when") == ms
    assert good({"when": value}, timestamp="when").timestamps.tolist() == [ms]


@pytest.mark.parametrize(
    "value",
    [
        "soon", "", "nan", "2026-13-01", "01/05/2026", "5.1.2026", "20260105-0812", "2026-01-05x10:31", "1e999", "inf",
        "1" * 5000, 1767609067123456, "1767609067123456", 1.767609067123456e18, "\u0661\u0662", "1_000",
        "2026-01-05T25:00:00Z", "2026-01-05T10:31:60Z", "10000-01-01", "10:31",
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", True, None, [], {}, [1], 253402300800000,
        -62135596800001, -62135596801.0, 10**18, 10**30, 1e300, -1e300,
    ],
)  # fmt: skip
def test_what_is_no_time_fails_at_validate(value: Any) -> None:
    found = letter(json.dumps({"when": value}).encode(), timestamp="when")
    assert found.stage == "validate"
    if isinstance(value, str | int) and len(str(value)) > 4:
        assert str(value) not in found.message
    assert "field 'when'" in found.message


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1767609067123456, "; it looks like microseconds; divide by 1000"),
        ("1767609067123456", "; it looks like microseconds; divide by 1000"),
        (1767609067123456789, "; it looks like nanoseconds; divide by 1000000"),
        (1.767609067123456e18, "; it looks like nanoseconds; divide by 1000000"),
        (-(10**13) * 7, ""),
        (1e300, ""),
    ],
)
def test_other_units_of_time_are_named(value: Any, hint: str) -> None:
    found = letter(json.dumps({"when": value}).encode(), timestamp="when")
    assert found.message == f"field 'when' lies outside years 1..9999{hint}"


@pytest.mark.parametrize(
    "value",
    [
        20261301, 20250229, 20260230, "20260230", " 20260230.0", 20260105.5, "20260105.5", 202601052460,
        202601050812.5, 20260105081260, 20260230081240.5, 20260105246000000, "20260132",
    ],
)  # fmt: skip
def test_the_digits_of_a_date_that_does_not_exist_are_not_seconds(value: Any) -> None:
    expected = "field 'when' looks like a date from 1900 to 2100, but is not a valid one; write the time as ISO 8601"
    assert letter(json.dumps({"when": value}).encode(), timestamp="when").message == expected


def test_an_infinite_time_fails_at_validate() -> None:
    for number in (b"1e400", b"-1e400"):
        found = letter(b'{"when":%b}' % number, timestamp="when")
        assert (found.stage, found.message) == ("validate", "field 'when' is an infinite number, not a time")


@given(
    st.floats(-1e13, 1e13) | st.integers(-(10**14), 10**14) | st.integers(-(10**13), 10**13).map(lambda ms: ms / 1000)
)
def test_times_are_the_decimal_text_cut_off(value: float) -> None:
    try:
        expected = time_of(value)
    except Refused:
        with pytest.raises(BadRecord):
            timestamp_ms(value, "when")
    else:
        assert timestamp_ms(value, "when") == expected, Decimal(value)


@pytest.mark.parametrize("timestamp", [-1, -2, 253402300800000, 2**63 - 1, -(2**63)])
def test_a_record_without_a_time_fails_at_validate(timestamp: int) -> None:
    found = letter(b"{}", record_ms=timestamp)
    assert found.stage == "validate"
    assert ("-1" in found.message) == (timestamp == -1)
    assert good(b'{"when":5}', timestamp="when").timestamps.tolist() == [5000]


@pytest.mark.parametrize(
    ("value", "key"),
    [("c1", b"c1"), ("", b""), ("ключ", "ключ".encode()), (42, b"42"), (-7, b"-7"), (1.0, b"1"), (1e3, b"1000")],
)
def test_a_key_from_a_field(value: Any, key: bytes) -> None:
    assert good({"id": value}, key="id").keys == [key]
    assert good({"who": {"id": value}}, key="who.id").keys == [key]


@pytest.mark.parametrize(
    "doc", ["{}", '{"id":null}', '{"id":true}', '{"id":1.5}', '{"id":1e300}', '{"id":[]}', '{"id":{}}']
)
def test_no_key_where_a_field_should_give_it_fails_at_validate(doc: str) -> None:
    found = letter(doc.encode(), key="id")
    assert found.stage == "validate"
    assert "field 'id'" in found.message


def test_the_records_own_key_may_be_anything() -> None:
    for key in (None, b"", b"\xff", b"x" * 65_536):
        assert decoder().decode(one(b"{}", key=key)).observations.keys == [key]


def test_size_limit_comes_before_parsing() -> None:
    value = b'{"amount":1,"x":"' + b"y" * 10_000_000 + b'"}'
    found = letter(value)
    assert (found.stage, found.with_value) == ("decode", False)
    assert found.message == "key and value have 10000020 bytes, more than input.max_bytes = 10000000"
    assert good(b"{}" + b" " * 97, max_bytes=100).index.tolist() == [0]
    assert letter(b"{}" + b" " * 98, max_bytes=100).with_value is False


def test_neighbours_of_poison_are_untouched() -> None:
    values = [b'{"amount":1}', b"{", b'{"amount":2,"channel":"web"}', b'{"amount":true}', b'{"amount":1e39}', b"{}"]
    events = [Event(i % 2, i, 1000 + i, b"%d" % i, value) for i, value in enumerate(values)]
    observations, letters, documents, *_ = decoder().decode(batch(events))
    assert observations.index.tolist() == [0, 2, 5]
    assert observations.offsets.tolist() == [0, 2, 5]
    assert observations.partitions.tolist() == [0, 0, 1]
    assert observations.timestamps.tolist() == [1000, 1002, 1005]
    assert observations.keys == [b"0", b"2", b"5"]
    assert observations.x[:2, 0].tolist() == [1, 2]
    assert observations.categories[:, 0].tolist() == [0, 1, 0]
    assert [documents[i] for i in (0, 2, 5)] == [{"amount": 1}, {"amount": 2, "channel": "web"}, {}]
    assert len(documents) == len(values)
    assert [(one.index, one.stage) for one in letters] == [(1, "decode"), (3, "validate"), (4, "validate")]


def test_an_empty_batch() -> None:
    observations, letters, documents, *_ = decoder(key="id", timestamp="when").decode(batch([]))
    assert (observations.x.shape, observations.categories.shape, letters, documents) == ((0, 2), (0, 2), [], [])


def test_an_array_feature_fills_as_many_columns() -> None:
    features = (Feature("a", "number"), Feature("samples", "number", size=3), Feature("b", "number"))
    card = replace(onnx_step("small").card, features=features)
    values = [
        b'{"a": 1, "samples": [2, null, 4.5], "b": 5}',
        b'{"a": 1, "samples": null}',
        b'{"samples": [1, 2]}',
        b'{"samples": [1, 2, 3, 4]}',
        b'{"samples": 1}',
        b'{"samples": [1, true, 2]}',
        b'{"samples": [1, 1e39, 2]}',
    ]
    events = [Event(0, row, 0, b"k", value) for row, value in enumerate(values)]
    observations, letters, _, counts, *_ = Decoder(card).decode(batch(events))
    assert (counts.missing.tolist(), counts.unknown.tolist()) == ([0, 1, 1], [0, 0, 0])
    nan = np.nan
    np.testing.assert_array_equal(observations.x, np.array([[1, 2, nan, 4.5, 5], [1, nan, nan, nan, nan]], np.float32))
    assert [(letter.index, letter.stage, letter.message) for letter in letters] == [
        (2, "validate", "field 'samples' is an array of 2, not of 3 numbers"),
        (3, "validate", "field 'samples' is an array of 4, not of 3 numbers"),
        (4, "validate", "field 'samples' is a number, not an array of 3 numbers"),
        (5, "validate", "field 'samples' holds a boolean, not 3 numbers"),
        (6, "validate", "field 'samples' is not finite in float32"),
    ]


def test_a_record_that_cannot_be_decoded_is_a_dead_letter_whatever_its_bytes_look_like() -> None:
    found = letter(UnreadableValue(b'{"amount": 1}', "the value claims 9 bytes, 2 are left"))
    assert found.stage == "decode"
    assert found.message == "the record cannot be decoded: the value claims 9 bytes, 2 are left"
    assert found.with_value
