"""What a person on call reads in the log: a line a minute, dead letters with their place, fields that never come."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lstmstream.config import Config
from lstmstream.serve.config_warnings import config_warnings, unreachable_probes
from lstmstream.testing import TestDriver

MODEL = Path(__file__).parents[1] / "data" / "small.onnx"
GOOD = {"customer": "c1", "amount": 3.5, "merchant": {"risk": 0.1}, "channel": "web", "device": {"id": "d"}}


def config(**output: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "model": str(MODEL),
        "input": {"topic": "in", "key": "customer"},
        "output": {"topic": "out", "alerts_topic": "alerts", "threshold": 0.0, **output},
    }


@pytest.fixture
def driver(caplog: pytest.LogCaptureFixture) -> Iterator[TestDriver]:
    caplog.set_level(logging.INFO)
    with TestDriver(config(), partitions=2) as running:
        yield running


def lines(caplog: pytest.LogCaptureFixture, start: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage().startswith(start)]


def test_a_line_a_minute_says_what_was_done(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.pipe_all([GOOD] * 30 + [{"amount": 1}] * 2 + [b"no JSON"])
    driver.advance(2)  # the gauges are set once a second
    assert lines(caplog, "the last minute") == []
    driver.advance(59)
    (beat,) = lines(caplog, "the last minute")
    said = vars(beat)
    assert (said["events"], said["predictions"], said["alerts"], said["late"]) == (33, 30, 30, 0)
    assert said["dead_letters"] == {"decode": 1, "validate": 2}
    assert (said["keys"], said["lag"], said["phase"]) == (1, 0, "running")
    assert 0 < said["latency_p99_s"] < 1
    assert said["events_per_s"] == pytest.approx(33 / 61, abs=0.05)
    driver.advance(61)
    idle = vars(lines(caplog, "the last minute")[1])
    assert (idle["events"], idle["dead_letters"]) == (0, {})
    assert "latency_p99_s" not in idle


def test_what_a_fault_did_twice_is_counted_once(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.fail_next("commit", times=2)
    driver.pipe_all([GOOD] * 5)
    driver.advance(61)
    assert vars(lines(caplog, "the last minute")[0])["events"] == 5


def test_dead_letters_have_a_line_per_kind_and_minute(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.pipe(GOOD)
    for _ in range(4):
        driver.pipe({**GOOD, "amount": "s3cret"})
    driver.pipe({"amount": 1})
    first, other = lines(caplog, "dead letters:")
    assert first.getMessage() == "dead letters: field 'amount' is a string, not a number"
    said = vars(first)
    assert (said["stage"], said["count"]) == ("validate", 1)
    assert (said["topic"], said["partition"], said["offset"]) == ("in", 0, 1)
    assert other.getMessage() == "dead letters: field 'customer', the key, is missing"
    driver.advance(61)
    (again,) = lines(caplog, "dead letters:")[2:]
    assert (vars(again)["count"], vars(again)["offset"]) == (3, 2)
    driver.advance(120)
    assert len(lines(caplog, "dead letters:")) == 3, "nothing came since"
    assert "s3cret" not in caplog.text


def test_kinds_of_dead_letters_are_bounded(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    """Messages of one kind differ in numbers; there may be many kinds all the same."""
    driver.pipe_all([b"[" * i + b"x" for i in range(1, 200)])
    assert 1 <= len(lines(caplog, "dead letters:")) <= 50


def test_where_nothing_can_be_answered_it_is_said(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.pipe_all([{"amount": 1}] * 99)
    assert lines(caplog, "none of the last") == []
    driver.pipe({"amount": 1})
    (warning,) = lines(caplog, "none of the last 100 events could be scored")
    assert warning.levelno == logging.WARNING
    assert "t.dead-letter" in warning.getMessage()
    assert warning.getMessage().endswith("have the fields 'amount'")
    driver.pipe_all([{"amount": 1}] * 200)
    assert len(lines(caplog, "none of the last")) == 1
    driver.pipe(GOOD)
    assert len(lines(caplog, "events are scored again")) == 1


def test_a_renamed_field_is_said_with_what_there_is(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    renamed = {**GOOD, "Amount": 3.5}
    del renamed["amount"]
    driver.pipe_all([renamed] * 999)
    assert lines(caplog, "field ") == []
    driver.pipe(renamed)
    (warning,) = lines(caplog, "field 'amount': none of the last 1000 events has it")
    assert "did you mean 'Amount'?" in warning.getMessage()
    assert driver.metric("lstmstream_missing_values_total", field="amount") == 1000
    assert driver.metric("lstmstream_missing_values_total", field="merchant.risk") == 0
    driver.pipe_all([renamed] * 3000)
    assert len(lines(caplog, "field 'amount'")) == 1, "once"
    driver.pipe(GOOD)
    driver.pipe_all([renamed] * 1000)
    assert len(lines(caplog, "field 'amount'")) == 1, "not again within the hour"


def test_few_events_are_enough_after_a_minute(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    bare = {"customer": "c1", "amount": 1, "channel": "web", "device": {"id": "d"}}
    for _ in range(19):
        driver.pipe(bare)
    driver.advance(61)
    assert lines(caplog, "field ") == []
    driver.pipe(bare)
    (warning,) = lines(caplog, "field 'merchant.risk': none of the last 20 events has it, and the model reads it")
    assert "'customer', 'amount', 'channel', 'device'" in warning.getMessage()


@pytest.mark.parametrize("events", [20, 400])
def test_a_burst_with_nothing_after_it_is_enough_after_a_minute(
    driver: TestDriver, caplog: pytest.LogCaptureFixture, events: int
) -> None:
    bare = {"customer": "c1", "amount": 1, "Channel": "web", "merchant": {"risk": None}, "device": {"id": "d"}}
    driver.pipe_all([bare] * events)
    driver.advance(58)
    assert lines(caplog, "field ") == []
    driver.advance(120)
    risk, channel = sorted(lines(caplog, "field "), key=lambda line: "channel" in line.getMessage())
    assert f"field 'merchant.risk': none of the last {events} events has it" in risk.getMessage()
    assert f"field 'channel': none of the last {events} events has it" in channel.getMessage()
    assert "did you mean 'Channel'?" in channel.getMessage()


@pytest.mark.parametrize(
    ("merchant", "said"),
    [
        ({"risk": None}, "it is null"),
        ([{"risk": 1}], "their 'merchant' is an array, not an object"),
        ('{"risk": 1}', "their 'merchant' is a string, not an object"),
        ({"Risk": 1, "id": 2}, "they have 'merchant.Risk', 'merchant.id'; did you mean 'merchant.Risk'?"),
        (None, "they have 'customer', 'amount', 'merchant', 'channel', 'device'; did you mean 'merchant'?"),
    ],
)
def test_what_is_in_the_place_of_a_nested_field_is_said(
    driver: TestDriver, caplog: pytest.LogCaptureFixture, merchant: Any, said: str
) -> None:
    driver.pipe_all([{**GOOD, "merchant": merchant}] * 1000)
    (warning,) = lines(caplog, "field 'merchant.risk': none of the last 1000 events has it")
    assert warning.getMessage().endswith(f"the model reads it; {said}")


def test_a_field_that_a_part_of_the_producers_has_renamed_is_said(
    driver: TestDriver, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = {**GOOD, "AMOUNT": 3.5}
    del renamed["amount"]
    lacking = {name: value for name, value in GOOD.items() if name != "amount"}
    driver.pipe_all([GOOD, lacking] * 10)
    assert lines(caplog, "field ") == []
    driver.advance(2)
    driver.pipe_all([b"no JSON", GOOD, renamed])
    driver.advance(2)
    driver.pipe_all([GOOD, renamed] * 10)
    (warning,) = lines(caplog, "field 'amount': some events have 'AMOUNT' instead")
    place = tuple(vars(warning)[name] for name in ("topic", "partition", "offset"))
    assert place in {("in", 0, 22), ("in", 1, 22)}


def test_values_that_the_model_does_not_know_are_said(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.pipe_all([{**GOOD, "channel": "WEB"}] * 1000)
    (warning,) = lines(caplog, "field 'channel': none of the last 1000 events has a value that the model knows")
    assert "WEB" not in warning.getMessage()
    assert driver.metric("lstmstream_unknown_categories_total", field="channel") == 1000


def test_fields_of_the_output_that_never_come_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with TestDriver(config(include=["note", "amount"], key="account")) as driver:
        driver.pipe_all([GOOD] * 1000)
    found = [record.getMessage() for record in lines(caplog, "field ")]
    assert len(found) == 2
    assert all("output.include or output.key names it" in text for text in found)


def test_a_restart_says_where_states_came_from(driver: TestDriver, caplog: pytest.LogCaptureFixture) -> None:
    driver.pipe_all([{**GOOD, "customer": f"c{i}"} for i in range(20)])
    driver.advance(40)
    driver.pipe_all([GOOD] * 3)
    driver.crash()
    caplog.clear()
    driver.restart()
    first, second = lines(caplog, "partition restored")
    said = vars(first) if vars(first)["partition"] == 0 else vars(second)
    assert (said["states"], said["offset"]) == (20, 23)
    assert said["replay_from"] + said["replayed"] == 23
    (done,) = lines(caplog, "all partitions restored")
    assert (vars(done)["partitions"], vars(done)["states"]) == (2, 20)


@pytest.mark.parametrize(
    ("host", "inside", "said"), [("127.0.0.1", True, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False)]
)
def test_a_loopback_address_in_a_container_is_said(
    monkeypatch: pytest.MonkeyPatch, host: str, inside: bool, said: bool
) -> None:
    monkeypatch.setattr("os.path.exists", lambda _path: False)
    if inside:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    else:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    loaded = Config.model_validate({**config(), "kafka": {"bootstrap_servers": "x:1"}, "http": {"host": host}})
    assert (unreachable_probes(loaded) is not None) is said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, False),
        ({"state": {"replay": "3d"}}, True),
        ({"state": {"replay": "3d"}, "on_model_change": "reset"}, True),
        ({"state": {"replay": "3d"}, "on_model_change": "replay"}, False),
    ],
)
def test_a_replay_that_is_never_made_is_told_at_the_start(settings: dict[str, Any], *, said: bool) -> None:
    base = {**config(), "kafka": {"bootstrap_servers": "x:1"}}
    found = [text for text in config_warnings(Config.model_validate(base | settings)) if "state.replay" in text]
    assert len(found) == said
