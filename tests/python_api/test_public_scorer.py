"""`lstmstream.Scorer`: the daemon's answers in a notebook, and states that are kept between calls."""

from __future__ import annotations

import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from lstmstream import CannotServe, Scorer
from lstmstream.serve.encode import Encoder
from lstmstream.testing import TestDriver

MODEL = Path(__file__).parents[1] / "data" / "small.onnx"


def opened(**options: Any) -> Scorer:
    return Scorer.open(MODEL, **{"key": "customer", "timestamp": "time", **options})


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"customer": f"c{i % 3}", "time": 1_767_225_600 + i, "amount": i * 7 % 31, "channel": "web"}
        for i in range(count)
    ]


def test_the_answers_are_the_daemons() -> None:
    config = {
        "name": "t",
        "model": str(MODEL),
        "input": {"topic": "in", "key": "customer", "timestamp": "time"},
        "output": {"topic": "out"},
    }
    with TestDriver(config) as driver:
        driver.pipe_all(rows(50))
        streamed = [prediction.value for prediction in driver.read_predictions()]
    names = ("key", "timestamp", "score", "prediction", "alert", "steps")
    answers = opened().score(rows(50))
    assert [{name: answer[name] for name in names} for answer in answers] == [
        {name: value[name] for name in names} for value in streamed
    ]


def test_states_go_on_from_call_to_call() -> None:
    at_once = opened().score(rows(50))
    scorer = opened()
    assert scorer.score(rows(50)[:20]) + scorer.score(rows(50)[20:]) == at_once
    state = scorer.state("c0")
    assert state is not None
    assert (state.steps, state.last_timestamp) == (17, "2026-01-01T00:00:48Z")
    assert {name: part.shape for name, part in state.parts.items()} == {"h0": (8,), "c0": (8,)}
    assert scorer.state("c9") is None


def test_more_rows_than_a_batch() -> None:
    answers = opened().score(rows(10_000))
    assert len(answers) == 10_000
    assert answers[-1]["steps"] == 3334


def test_calls_from_several_threads_take_turns() -> None:
    scorer = opened()
    with ThreadPoolExecutor(6) as threads:
        parts = list(threads.map(scorer.score, [rows(60)] * 60))
    assert sorted(answer["steps"] for part in parts for answer in part if answer["key"] == "c0") == list(range(1, 1201))
    state = scorer.state("c0")
    assert state is not None
    assert state.steps == 1200


def test_an_interrupted_call_leaves_the_states_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, undisturbed = opened(), opened()
    encode = Encoder.encode

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(rows(5))
    assert scorer.state("c0") is None
    monkeypatch.setattr(Encoder, "encode", encode)
    assert scorer.score(rows(50)) == undisturbed.score(rows(50))
    assert str(scorer.state("c0")) == str(undisturbed.state("c0"))


def test_a_key_that_is_not_text_has_no_state() -> None:
    scorer = opened()
    scorer.score([{"customer": 17, "time": 0, "amount": 1.0}])
    assert scorer.state("17") is not None
    with pytest.raises(TypeError, match=r"a key is text, as in the answers: '17'; this is of type int"):
        scorer.state(17)  # type: ignore[arg-type]


def test_a_row_that_cannot_be_answered_says_why() -> None:
    answers = opened().score(
        [*rows(1), {"time": 0}, {"customer": "c0", "time": "soon"}, {"customer": "c0", "time": 1, "amount": "x"}]
    )
    assert answers[0]["error"] is None
    assert [answer["error"] for answer in answers[1:]] == [
        "field 'customer', the key, is missing",
        "field 'time' is not an ISO 8601 time such as 2026-01-31T12:00:00Z, nor a number",
        "field 'amount' is a string, not a number",
    ]
    assert all(answer["score"] is None for answer in answers[1:])


def test_values_of_python_are_those_of_json() -> None:
    plain = {"customer": "c0", "time": "2026-01-05T10:31:07.250Z", "amount": 12.5}
    same = [
        {"customer": "c0", "time": datetime(2026, 1, 5, 10, 31, 7, 250_000, tzinfo=UTC), "amount": np.float32(12.5)},
        {"customer": "c0", "time": np.datetime64("2026-01-05T10:31:07.250"), "amount": Decimal("12.5")},
    ]
    for row in same:
        assert opened().score([row]) == opened().score([plain])
    missing = [{**plain, "amount": value} for value in (None, float("nan"), np.float64("nan"))]
    without = {name: value for name, value in plain.items() if name != "amount"}
    for row in missing:
        assert opened().score([row]) == opened().score([without])
    for infinite in (float("inf"), np.float32("-inf")):
        (answer,) = opened().score([{**plain, "amount": infinite}])
        assert answer["error"] == "field 'amount' is not finite in float32"


class Channel(StrEnum):
    WEB = "web"


@pytest.mark.parametrize(
    ("field", "values", "same"),
    [
        ("customer", [17.0, np.float32(17), np.int8(17), np.uint64(17), Decimal("17.00"), b"17", np.str_("17"),
                      np.array(17)], "17"),
        ("customer", [UUID(int=5)], "00000000-0000-0000-0000-000000000005"),
        ("customer", [date(2026, 1, 5)], "2026-01-05"),
        ("customer", [2**64 - 1, np.uint64(2**64 - 1), Decimal(2**64 - 1)], str(2**64 - 1)),
        ("channel", [Channel.WEB, b"web", bytearray(b"web"), np.bytes_(b"web"), np.str_("web")], "web"),
        ("channel", [True, np.bool_(True), "True"], "true"),
        ("time", [date(2026, 1, 5), np.datetime64("2026-01-05"), datetime(2026, 1, 5), b"20260105", Decimal(1767571200),
                  np.int64(1767571200), "2026-01-05T01:00:00+01:00", np.float64(1767571200.0)], "2026-01-05T00:00:00Z"),
        ("time", [np.datetime64("2026-01-05T10:31:07.123999999", "ns"), Decimal("1767609067.1239999")],
         "2026-01-05T10:31:07.123Z"),
        ("time", [datetime(1969, 12, 31, 23, 59, 59, 999999), np.datetime64(-1, "us")], "1969-12-31T23:59:59.999Z"),
        ("amount", [2**70, float(2**70), Decimal(2**70), np.float64(2**70), np.array(float(2**70))], 2.0**70),
        ("amount", [np.longdouble(0.5), np.float16(0.5), Decimal("0.5"), np.array(0.5)], 0.5),
        ("amount", [np.bool_(True)], True),
        ("amount", [np.datetime64("NaT"), Decimal("NaN"), Decimal("sNaN"), np.float16("nan"),
                    np.longdouble("nan")], None),
    ],
)  # fmt: skip
def test_values_of_other_types_are_those_of_json(field: str, values: list[Any], same: Any) -> None:
    row = {"customer": "c0", "time": 1_767_225_600, "amount": 1.5, "channel": "app"}
    expected = opened().score([{**row, field: same}])
    for value in values:
        assert opened().score([{**row, field: value}]) == expected, repr(value)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("customer", b"\xff", "field 'customer' is bytes that are not UTF-8; write it as text"),
        ("customer", 2**64, "field 'customer' is an integer beyond 64 bits; send such an id as a string"),
        ("customer", datetime(2026, 1, 5), "field 'customer' is a date and time, neither a string nor an integer"),
        ("customer", ["c0"], "field 'customer' is an array, neither a string nor an integer"),
        ("customer", {"a": 1}, "field 'customer' is an object, neither a string nor an integer"),
        ("customer", np.bool_(True), "field 'customer' is a boolean, neither a string nor an integer"),
        ("customer", float("inf"), "field 'customer' is a number that is not whole; send it as a string, or use"),
        ("customer", {1, 2}, "field 'customer' is a set, neither a string nor an integer"),
        ("customer", "\ud800", "the row cannot be written as JSON: "),
        ("amount", date(2026, 1, 5), "field 'amount' is a date, not a number"),
        ("amount", np.timedelta64(1, "s"), "field 'amount' is a timedelta64, not a number"),
        ("amount", 1j, "field 'amount' is a complex, not a number"),
        ("amount", b"1", "field 'amount' is a binary value, not a number"),
        ("amount", [1.0], "field 'amount' is an array, not a number"),
        ("amount", Decimal("Infinity"), "field 'amount' is not finite in float32"),
        ("amount", Decimal("1e999999999"), "field 'amount' is not finite in float32"),
        ("amount", -(10**400), "field 'amount' is not finite in float32"),
        ("time", 2**70, "field 'time' lies outside years 1..9999"),
        ("time", float("inf"), "field 'time' is an infinite number, not a time"),
        ("time", timedelta(1), "field 'time' is a duration, not a time"),
        ("time", np.datetime64("10000-01-01"), "field 'time' lies outside years 1..9999"),
        ("time", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))), "field 'time' lies outside years 1..9999"),
        ("time", 20260230, "field 'time' looks like a date from 1900 to 2100, but is not a valid one"),
        ("time", [1], "field 'time' is an array, not a time"),
    ],
)
def test_values_that_no_event_may_have_are_errors_of_their_row(field: str, value: Any, error: str) -> None:
    row = {"customer": "c0", "time": 1_767_225_600, "amount": 1.5}
    scorer = opened()
    answers = scorer.score([row, {**row, field: value}, row])
    assert answers[1]["error"].startswith(error)
    assert [answer["steps"] for answer in answers] == [1, None, 2]


def test_fields_inside_objects_and_names_with_dots() -> None:
    row = {"customer": "c0", "time": 1_767_225_600}
    expected = opened().score([{**row, "device": {"id": "1"}, "merchant": {"risk": 0.5}}])
    for same in (
        {"device.id": "1", "merchant.risk": 0.5},
        {"device": OrderedDict(id=np.int64(1)), "merchant": MappingProxyType({"risk": Decimal("0.5")})},
        {"device": {"id": b"1"}, "merchant.risk": np.float32(0.5), "merchant": "other"},
    ):
        assert opened().score([{**row, **same}]) == expected
        assert opened().score([OrderedDict({**row, **same})]) == expected
        assert opened().score([MappingProxyType({**row, **same})]) == expected


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ({"customer": "c0"}, "put a single row into a list"),
        ("c0", "put a single row into a list"),
        ([["c0", 1]], "row 0 is a list, not a mapping"),
        ([{"customer": "c0"}, None], "row 1 is a NoneType, not a mapping"),
    ],
)
def test_what_is_no_row_is_a_type_error(rows: Any, what: str) -> None:
    with pytest.raises(TypeError, match=what):
        opened().score(rows)


def test_a_field_that_no_row_has_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    scorer = Scorer.open("builtin:demo")
    row = {"customer": "c1", "time": 1_767_225_600, "Amount": 3, "merchant": "fuel", "entry": None}
    scorer.score([row])
    scorer.score([row])
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "the rows: no fields 'amount', 'distance_km'; the fields are 'customer', 'time', 'Amount', 'merchant',"
        " 'entry'; 'amount': did you mean 'Amount'?"
    )
    caplog.clear()
    Scorer.open("builtin:demo").score([{**row, "amount": 1, "distance_km": 1}, {"customer": "c1"}])
    assert caplog.records == []


def test_without_a_named_key_it_refuses() -> None:
    with pytest.raises(
        CannotServe,
        match=r"neither the config nor the model's card names the key; give key=FIELD, or no_key=True if all events",
    ):
        Scorer.open(MODEL, timestamp="time")
    answers = Scorer.open(MODEL, no_key=True, timestamp="time").score(rows(3))
    assert [(answer["key"], answer["steps"]) for answer in answers] == [(None, 1), (None, 2), (None, 3)]
    assert Scorer.open("builtin:demo", no_key=True).score([{"time": 1}])[0]["key"] is None


def test_without_a_named_timestamp_it_refuses_where_scores_depend_on_it() -> None:
    with pytest.raises(CannotServe, match="give timestamp=FIELD, or no_timestamp=True to use the time of reading"):
        Scorer.open(MODEL, key="customer", ttl="1h")
    before = time.time()
    (answer,) = Scorer.open(MODEL, key="customer", ttl="1h", no_timestamp=True).score([{"customer": "c0", "time": 1}])
    assert datetime.fromisoformat(answer["timestamp"]).timestamp() >= before - 1


@pytest.mark.parametrize("name", ["key", "timestamp"])
def test_a_name_and_no_name_contradict_each_other(name: str) -> None:
    with pytest.raises(CannotServe, match=f"{name} and no_{name} contradict each other; give one of them"):
        Scorer.open(MODEL, **{name: "x", f"no_{name}": True})


def test_the_key_and_the_timestamp_are_the_models_own_unless_given() -> None:
    scorer = Scorer.open("builtin:demo")
    assert scorer.card.training["fields"]["key"] == "customer"
    answers = scorer.score([{"customer": "c1", "time": 1_767_225_600, "amount": 3}, {"customer": "c2", "time": 0}])
    assert [answer["key"] for answer in answers] == ["c1", "c2"]
    assert answers[0]["timestamp"] == "2026-01-01T00:00:00.000Z"


def test_saved_states_go_on(tmp_path: Path) -> None:
    first = opened()
    first.score(rows(20))
    first.save(tmp_path / "states")
    second = opened()
    second.score(rows(5))  # forgotten
    second.load(tmp_path / "states")
    assert second.score(rows(50)[20:]) == first.score(rows(50)[20:])
    assert [path.name for path in tmp_path.iterdir()] == ["states"]


@pytest.mark.parametrize(
    "options", [{"ttl": "1h"}, {"late": "drop"}, {"key": "channel"}, {"timestamp": "when"}], ids=str
)
def test_states_of_other_settings_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    scorer = opened()
    scorer.score(rows(3))
    scorer.save(tmp_path / "states")
    with pytest.raises(CannotServe, match="its states belong to model small"):
        opened(**options).load(tmp_path / "states")


def test_a_damaged_file_of_states_is_refused(tmp_path: Path) -> None:
    scorer = opened()
    scorer.score(rows(3))
    path = tmp_path / "states"
    scorer.save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04", whole[:-1], whole[:-20] + b"\0" * 20, whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CannotServe, match="cannot be used as a file of states"):
            opened().load(path)


def test_options_are_checked_as_the_daemons() -> None:
    with pytest.raises(CannotServe, match=r"state\.ttl"):
        opened(ttl="soon")
    with pytest.raises(CannotServe, match="does not exist"):
        Scorer.open("nowhere.onnx")


def test_alerts_follow_the_threshold() -> None:
    answers = opened(threshold=0.0).score(rows(5))
    assert all(answer["alert"] for answer in answers)
