"""Whole batches of JSON are read as record by record: the same columns, or left to that way."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream import codec
from lstmstream.formats.iso_columns import iso_column_ms, iso_texts
from lstmstream.formats.json_documents import parse_document
from lstmstream.formats.timestamps import TIMESTAMP_MAX_MS, TIMESTAMP_MIN_MS, timestamp_ms
from lstmstream.model import Card, Feature
from lstmstream.model.card import StatePart, StateSpec
from lstmstream.records import RecordBatch, UnreadableValue
from lstmstream.serve import event_fields
from lstmstream.serve.decode import Decoded, Decoder

pytestmark = pytest.mark.usefixtures("either_codec")


def card(*features: Feature) -> Card:
    return Card(
        name="m",
        version="1",
        task="anomaly",
        features=features,
        state=StateSpec(1, (0.0,), (StatePart("mean", 0, (1,)),)),
        outputs=("state_out", "score"),
        threshold=None,
        fingerprint="f" * 32,
    )


CARD = card(
    Feature("amount", "number", None, None),
    Feature("channel", "category", ("web", "app", "17", "true", "é"), None),
    Feature("place.risk", "number", None, None),
    Feature("place.shop", "category", None, 50),
    Feature("spectrum", "number", None, None, size=3),
    Feature("a b", "number", None, None),
)


# Fields of the model and others, an object, a name with a dot, one that is not written as it is, and one twice.
TEXTS = ("amount", "id", "channel", "at", "other", "more", "é", "place", "spectrum", "place.risk", 'q"', "amount")


def decoder(**options: Any) -> Decoder:
    return Decoder(CARD, **{"key": "id", "timestamp": "at", "max_bytes": 4_000, "texts": TEXTS, **options})


def assert_texts(texts: Mapping[str, list[bytes | None]], records: RecordBatch, rows: list[int]) -> int:
    """That they are as those of the documents, where there is one; how many there are."""
    found = 0
    for row in rows:
        value = records.values[row]
        document = parse_document(value)
        for name, column in texts.items():
            text = column[row]
            assert text is None or text == event_fields._text(document, name, value or b""), (name, text)
            found += bool(text)
    return found


def batch(values: list[bytes | None], keys: list[bytes | None] | None = None) -> RecordBatch:
    n = len(values)
    numbers = np.arange(n, dtype=np.int64)
    times = np.full(n, 1_700_000_000_000, np.int64)
    return RecordBatch("in", numbers * 0, numbers, times, [b"k"] * n if keys is None else keys, values, [()] * n)


def assert_same(got: Decoded, wanted: Decoded) -> None:
    a, b = got.observations, wanted.observations
    assert a.keys == b.keys
    for name in ("index", "offsets", "timestamps", "categories"):
        assert getattr(a, name).tolist() == getattr(b, name).tolist(), name
    assert a.x.tobytes() == b.x.tobytes()  # -0.0 is not 0.0
    assert got.dead_letters == wanted.dead_letters
    assert list(got.documents) == list(wanted.documents)
    assert got.field_counts.missing.tolist() == wanted.field_counts.missing.tolist()
    assert got.field_counts.unknown.tolist() == wanted.field_counts.unknown.tolist()


def check(values: list[bytes | None], **options: Any) -> bool:
    """Whether all went the fast way."""
    one, records = decoder(**options), batch(values)
    decoded = one.decode(records)
    assert_same(decoded, one._decode_each(records))
    assert_texts(decoded.texts, records, decoded.observations.index.tolist())
    return one._fast.read(records) is not None


PLAIN = {
    "id": "c1",
    "at": "2026-01-31T12:00:00.250Z",
    "amount": 12.5,
    "channel": "web",
    "place": {"risk": 1, "shop": "x", "more": [1, {"a": None}]},
    "spectrum": [1, None, 2.5],
    "a b": -3,
    "other": {"deep": [1, 2, {"x": "é"}]},
}


def plain(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**PLAIN, **changes}.items() if v is not ...}).encode()


@pytest.mark.usefixtures("either_codec")
def test_texts_are_kept_where_they_are_met() -> None:
    """Of the model's own fields those of numbers with the codec alone: msgspec reads a field once."""
    values: list[bytes | None] = [
        plain(other="x", more=...),
        plain(other=1.5, more=[1]),
        plain(other=...)[:-1] + b',"other":1,"other":2}',
    ]
    texts = decoder().decode(batch(values)).texts
    assert texts["other"] == [b'"x"', b"1.5", b"2"]
    assert texts["more"] == [b"", None, b""]
    assert texts["at"] == [b'"2026-01-31T12:00:00.250Z"'] * 3
    assert texts.get("amount", [b"12.5"] * 3) == [b"12.5"] * 3
    assert ("amount" in texts) == (codec.load() is not None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"amount": None},
        {"amount": ...},
        {"amount": 2**53 + 1},
        {"amount": 2**64 - 1},
        {"amount": 1e-320},
        {"channel": None},
        {"channel": "17.0"},
        {"channel": 17},
        {"channel": "fax"},
        {"place": ...},
        {"place": {}},
        {"spectrum": ...},
        {"spectrum": None},
        {"id": "17.0"},
        {"id": "True"},
        {"id": -5},
        {"id": 2**64 - 1},
        {"id": ""},
        {"at": 1_700_000_000},
        {"at": 1_700_000_000.5},
        {"at": "1700000000"},
        {"at": "2026-01-31 12:00:00"},
        {"at": "20260131T120000Z"},
        {"at": "2026-01-31T12:00:00.250+01:00"},
    ],
    ids=str,
)  # fmt: skip
def test_plain_values_go_the_fast_way(changes: dict[str, Any]) -> None:
    assert check([plain(), plain(**changes), plain()])


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"{} {}",
        b"{},{}",
        b"\xef\xbb\xbf{}",
        b'{"a":NaN}',
        b'{"amount":1e400}',
        b'{"other":1e400}',
        b'{"other":"\\ud800"}',
        b'{"other":"\xff"}',
        b'{"other":"\x01"}',
        b'{"other":01}',
        b'{"other":1.}',
        b'{"other":-}',
        b'{"other":"\\x"}',
        b'{"other":[1,]}',
        b'{"other":tru}',
        b'{"other":' + b"[" * 1500 + b"]" * 1500 + b"}",
        b'{"\\ud800":1}',
        b'{"id":"a","id":5}',
        plain(amount="1"),
        plain(amount=True),
        plain(amount=1e39),
        plain(amount=10**30),
        plain(channel=1.5),
        plain(channel=True),
        plain(channel=2**64),
        plain(place=None),
        plain(place=5),
        plain(place=[]),
        plain(spectrum=[1, 2]),
        plain(spectrum="123"),
        plain(id=None),
        plain(id=True),
        plain(id=1.0),
        plain(id=2**64),
        plain(at=None),
        plain(at="yesterday"),
        plain(at=10**30),
        plain(at="2026-02-30T00:00:00Z"),
        plain(**{"place.risk": 5}),
        plain(**{"place.risk": None}),
        plain(other="x" * 5_000),
        UnreadableValue(plain(), "damaged"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_all_others_are_read_one_by_one(value: bytes | None) -> None:
    check([plain(), value, plain()])
    check([value])


def test_pieces_of_records_are_never_joined() -> None:
    """Records that only together are JSON, and one that is two."""
    assert not check([b'{"id":"a","at":1', b"}", b'{"id":"b","at":2},{"id":"c","at":3}'])
    assert not check([b'{"id":"a","at":1,"other":"', b'"}', b'{"id":"b","at":2}\n{"id":"c","at":3}'])


def test_a_key_of_the_record_counts_in_the_size() -> None:
    records = batch([plain()], [b"k" * 4_000])
    one = decoder()
    assert one._fast.read(records) is None
    assert_same(one.decode(records), one._decode_each(records))


@pytest.mark.parametrize("ahead", [False, True])
def test_times_far_ahead(ahead: bool) -> None:
    at = "2026-01-31T12:00:00Z" if ahead else "2023-11-14T23:00:00Z"
    records = batch([plain(at=at), plain(at="2023-11-14T22:13:20Z")])
    one = decoder(max_future_ms=86_400_000)
    assert len(one.decode(records).dead_letters) == ahead
    assert_same(one.decode(records), one._decode_each(records))


def test_record_times_and_keys_where_no_field_is_named() -> None:
    records = batch([plain(id=...), plain(at=...)], [b"a", None])
    records.timestamps[1] = -1
    one = Decoder(CARD)
    assert one._fast.read(records) is not None
    assert len(one.decode(records).dead_letters) == 1
    assert_same(one.decode(records), one._decode_each(records))


def test_a_field_may_be_key_and_category() -> None:
    one = Decoder(card(Feature("shop", "category", ("5", "x"), None)), key="shop")
    for values in ([b'{"shop":5}', b'{"shop":"x"}'], [b'{"shop":5}', b"{}"]):
        records = batch(list(values))
        assert (one._fast.read(records) is None) == (b"{}" in values)
        assert_same(one.decode(records), one._decode_each(records))
    both = Decoder(card(Feature("at", "number", None, None)), timestamp="at")
    records = batch([b'{"at":1700000000}'])
    assert both._fast.read(records) is None
    assert_same(both.decode(records), both._decode_each(records))


def test_names_that_could_be_read_in_two_ways_are_read_one_by_one() -> None:
    for features in (
        [Feature("a", "number", None, None), Feature("a.b", "number", None, None)],
        [Feature("a.b.c", "number", None, None)],
    ):
        one = Decoder(card(*features))
        records = batch([b'{"a":{"b":{"c":1}}}', b'{"a.b.c":2,"a.b":3}', b'{"a.b":{"c":4}}'])
        assert one._fast.read(records) is None
        assert_same(one.decode(records), one._decode_each(records))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(0, 1, width=16),
    st.text(max_size=6),
    st.sampled_from(["web", "17.0", "True", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456", "é", "1e5"]),
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
documents = st.fixed_dictionaries(
    {},
    optional={
        "id": scalars,
        "at": scalars,
        "amount": scalars,
        "channel": scalars,
        "place": anything | st.fixed_dictionaries({}, optional={"risk": scalars, "shop": scalars, "x": anything}),
        "place.risk": scalars,
        "spectrum": anything | st.lists(scalars, min_size=3, max_size=3),
        "a b": scalars,
        "other": anything,
    },
)


@given(st.lists(documents, min_size=1, max_size=4), st.booleans())
@settings(max_examples=1_500, deadline=None)
def test_any_documents(events: list[dict[str, Any]], escape: bool) -> None:
    check([json.dumps(event, ensure_ascii=escape).encode("utf-8", "surrogatepass") for event in events])


def test_damaged_bytes() -> None:
    """Single bytes changed, taken out, put in or doubled."""
    source = random.Random(5)
    fast = 0
    for _ in range(6_000):
        value = bytearray(plain(amount=source.choice([1, -0.0, 1.5e-7, 123456789.123])))
        for _ in range(source.choice([1, 1, 2, 4])):
            at, kind = source.randrange(len(value)), source.randrange(4)
            new = source.choice([source.randrange(256), *b'{}[]",:\\u0123456789eE+-. \n\t/tfn'])
            if kind == 0:
                value[at] = new
            elif kind == 1:
                del value[at]
            elif kind == 2:
                value.insert(at, new)
            else:
                value[at:at] = value[at : at + source.randrange(9)]
        fast += check([bytes(value)])
    assert fast > 500


numbers = st.from_regex(r"\A-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?\Z")


@given(st.lists(numbers, min_size=1, max_size=5))
@settings(max_examples=2_000, deadline=None)
def test_numbers_have_the_same_bits(texts: list[str]) -> None:
    check([b'{"id":"a","at":1,"amount":%b}' % text.encode() for text in texts])


# -- times

moments = st.integers(TIMESTAMP_MIN_MS, TIMESTAMP_MAX_MS)


@given(st.lists(moments, min_size=1, max_size=20), st.sampled_from("T "), st.sampled_from([0, 3, 6]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_columns_of_times_there_and_back(ms: list[int], between: str, digits: int, zone: bool) -> None:
    times = np.array(ms, np.int64)
    plain_texts = np.datetime_as_string(times.astype("datetime64[ms]"), unit="ms").tolist()
    assert [text.decode() for text in iso_texts(times)] == plain_texts
    cut = {0: 19, 3: 23, 6: 23}[digits]
    texts = [
        text[:cut].replace("T", between) + ("789" if digits == 6 else "") + ("Z" if zone else "")
        for text in plain_texts
    ]
    found = iso_column_ms(texts)
    assert found is not None
    assert found.tolist() == [timestamp_ms(text, "at") for text in texts]


@pytest.mark.parametrize(
    "text",
    ["2026-02-29T00:00:00Z", "2024-02-30T00:00:00Z", "1900-02-29T00:00:00Z", "2026-00-01T00:00:00Z",
     "2026-13-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-01-32T00:00:00Z", "2026-04-31T00:00:00Z",
     "2026-01-01T24:00:00Z",
     "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z",
     "0000-01-01T00:00:00Z", "2026-01-01x00:00:00Z", "2026-01-01T00:00:00X",
     "2026/01/01T00:00:00Z",
     "2026-01-01T00-00-00Z", "٢026-01-01T00:00:00Z", "2026-01-01T00:00:0/Z", "2026-01-01T00:00:00,123Z", "2026-1-01"],
)  # fmt: skip
def test_no_valid_time_is_left_to_the_other_way(text: str) -> None:
    assert iso_column_ms([text]) is None
    assert iso_column_ms(["2026-01-01T00:00:00Z", text]) is None


@pytest.mark.usefixtures("either_codec")
@pytest.mark.parametrize("name", ['size "L"', "a\\b", "tab\there"])
def test_a_name_that_json_writes_with_escapes(name: str) -> None:
    one = Decoder(card(Feature(name, "number", None, None), Feature("amount", "number", None, None)), timestamp="at")
    found = one.decode(batch([json.dumps({name: 7, "amount": 1.5, "at": 0}).encode()]))
    assert found.observations.x.tolist() == [[7, 1.5]]
