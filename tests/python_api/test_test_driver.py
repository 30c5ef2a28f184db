"""The test driver behaves as a daemon on a broker does, whatever is done to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from kafka.partitioner.default import murmur2

from lstmstream import CannotServe
from lstmstream.testing import TestDriver
from lstmstream.transport.memory import FAULT_POINTS

MODEL = Path(__file__).parents[1] / "data" / "small.onnx"
CONFIG: dict[str, Any] = {
    "name": "t",
    "model": str(MODEL),
    "input": {"topic": "in", "key": "customer"},
    "output": {"topic": "out", "alerts_topic": "alerts", "threshold": 0.0},
}


def event(customer: str, amount: float) -> dict[str, Any]:
    return {"customer": customer, "amount": amount, "channel": "web"}


@pytest.fixture
def driver() -> Iterator[TestDriver]:
    with TestDriver(CONFIG, partitions=3) as running:
        yield running


def test_predictions_alerts_and_dead_letters_come_out_once(driver: TestDriver) -> None:
    driver.pipe(event("c1", 12.5), key="c1", headers={"trace": b"7"})
    driver.pipe(b"no JSON", key="c1")
    (prediction,) = driver.read_predictions()
    assert (prediction.key, prediction.value["key"], prediction.value["steps"]) == ("c1", "c1", 1)
    assert prediction.headers == {"trace": b"7"}
    assert prediction.value["source"]["partition"] == prediction.partition
    assert [alert.value for alert in driver.read_alerts()] == [prediction.value]
    (letter,) = driver.read_dead_letters()
    assert (letter.key, letter.value, letter.stage) == (b"c1", b"no JSON", "decode")
    assert (letter.partition, letter.offset) == (prediction.partition, 1)
    assert driver.read_predictions() == driver.read_alerts() == driver.read_dead_letters() == []
    assert driver.metric("lstmstream_predictions_total") == 1
    assert driver.metric("lstmstream_dead_letters_total", stage="decode") == 1


def test_a_key_goes_where_a_producer_would_send_it(driver: TestDriver) -> None:
    for number in range(8):
        driver.pipe(event(f"c{number}", 1), key=f"c{number}")
    found = {prediction.key: prediction.partition for prediction in driver.read_predictions()}
    assert found == {f"c{number}": (murmur2(b"c%d" % number) & 0x7FFFFFFF) % 3 for number in range(8)}


def test_a_record_has_the_given_time_or_the_clocks(driver: TestDriver) -> None:
    driver.pipe(event("c1", 1), timestamp=datetime(2026, 3, 1, tzinfo=UTC))
    driver.pipe(event("c1", 1), timestamp=1_772_323_200_500)
    before = driver.now
    driver.pipe(event("c1", 1))
    first, second, third = (prediction.value["timestamp"] for prediction in driver.read_predictions())
    assert (first, second) == ("2026-03-01T00:00:00.000Z", "2026-03-01T00:00:00.500Z")
    assert before.isoformat(timespec="milliseconds").replace("+00:00", "Z") == third


def test_the_state_of_a_key_has_the_parts_of_the_card(driver: TestDriver) -> None:
    assert driver.state("c1") is None
    driver.pipe_all([event("c1", 1), event("c1", 2), event("c2", 3)])
    state = driver.state("c1")
    assert state is not None
    assert state.steps == 2
    assert {name: part.shape for name, part in state.parts.items()} == {"h0": (8,), "c0": (8,)}
    assert driver.state("c1", partition=2) is None


@pytest.mark.parametrize("point", ["poll", "begin", "commit", "committed", "stable_end"])
def test_a_fault_changes_no_answer(driver: TestDriver, point: str) -> None:
    amounts = [1.0, 20.0, 3.5, 7.0]
    with TestDriver(CONFIG, partitions=3) as untroubled:
        for second, amount in enumerate(amounts):
            untroubled.pipe(event("c1", amount), timestamp=1000 * second)
        expected = [(p.value["score"], p.value["steps"]) for p in untroubled.read_predictions()]
    for second, amount in enumerate(amounts):
        driver.fail_next(point, times=2)
        driver.pipe(event("c1", amount), timestamp=1000 * second)
    assert [(p.value["score"], p.value["steps"]) for p in driver.read_predictions()] == expected


@pytest.mark.parametrize("point", ["begin", "commit", "committed"])
def test_a_crash_at_any_point_changes_no_answer(driver: TestDriver, point: str) -> None:
    driver.pipe(event("c1", 1))
    driver.crash_at(point)
    driver.pipe(event("c1", 20))
    assert not driver.running
    driver.pipe(event("c1", 3))  # waits
    driver.restart()
    assert [p.value["steps"] for p in driver.read_predictions()] == [1, 2, 3]
    assert driver.running


def test_states_are_written_when_time_has_passed(driver: TestDriver) -> None:
    driver.pipe_all([event("c1", 1)] * 6)  # one write for five events at most
    assert driver.metric("lstmstream_state_checkpoints_total") == 0
    driver.advance(31)
    assert driver.metric("lstmstream_state_checkpoints_total") == 1
    driver.advance(31)
    assert driver.metric("lstmstream_state_checkpoints_total") == 1


def test_stop_hands_over_and_restart_goes_on(driver: TestDriver) -> None:
    driver.pipe(event("c1", 1))
    assert driver.stop() == 0
    with pytest.raises(RuntimeError, match="restart"):
        driver.state("c1")
    driver.restart()
    driver.pipe(event("c1", 1))
    assert [p.value["steps"] for p in driver.read_predictions()] == [1, 2]


def test_a_configuration_file_is_taken_as_the_daemon_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "lstmstream.yaml"
    path.write_bytes(orjson.dumps({**CONFIG, "kafka": {"bootstrap_servers": "nowhere:9092"}}))
    with TestDriver(path) as driver:
        driver.pipe(event("c1", 1))
        assert len(driver.read_predictions()) == 1


def test_what_cannot_start_says_why() -> None:
    with pytest.raises(CannotServe, match=r"input\.topic: is missing"):
        TestDriver({**CONFIG, "input": {}})
    with pytest.raises(CannotServe, match="does not exist"):
        TestDriver({**CONFIG, "model": "nowhere.onnx"})


def test_an_unknown_fault_point_is_refused(driver: TestDriver) -> None:
    with pytest.raises(ValueError, match=FAULT_POINTS[0]):
        driver.fail_next("lunch")


# --- a mistake in a test does not look like a daemon that does nothing ------------------------------------------------


@pytest.mark.parametrize("point", FAULT_POINTS)
def test_a_crash_at_any_point_is_survived(point: str) -> None:
    """Also at those that a start or a stop comes to: the test goes on, and the records that wait are answered."""
    with TestDriver(CONFIG) as driver:
        driver.pipe(event("c1", 1))
        driver.crash_at(point)
        driver.pipe(event("c1", 2))
        if driver.running and driver.stop() == 0:
            driver.restart()
        while not driver.running:
            driver.restart()
        driver.pipe(event("c1", 3))
        while not driver.running:
            driver.restart()
        assert [p.value["steps"] for p in driver.read_predictions()] == [1, 2, 3]


def test_a_daemon_that_is_killed_at_its_stop_says_so(driver: TestDriver) -> None:
    driver.pipe(event("c1", 1))
    driver.crash_at("commit")
    assert driver.stop() == -9
    assert not driver.running
    driver.restart()
    assert driver.state("c1") is not None


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        (
            "lstmstream_prediction_total",
            {},
            "there is no metric 'lstmstream_prediction_total'; did you mean lstmstream_pr",
        ),
        ("lstmstream_predictions", {}, "did you mean lstmstream_predictions_total"),
        ("lstmstream_dead_letters_total", {}, "has other labels: stage='decode' or stage='late'"),
        ("lstmstream_dead_letters_total", {"step": "decode"}, "has other labels: stage='decode'"),
        (
            "lstmstream_dead_letters_total",
            {"stage": "dekode"},
            "has no stage='dekode'; there are decode, late, publish",
        ),
    ],
)
def test_a_metric_that_is_not_there_is_not_0(
    driver: TestDriver, name: str, labels: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        driver.metric(name, **labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"value": '{"customer": "c1"}'}, r"not of type str; of JSON text pipe text\.encode\(\)"),
        ({"value": [1]}, "not of type list"),
        (
            {"value": {"amount": {1}}},
            r"cannot be written as JSON: Type is not JSON serializable: set; pipe the bytes of the",
        ),
        ({"value": {"amount": 2**70}}, "cannot be written as JSON: Integer exceeds 64-bit range"),
        ({"value": {}, "key": 5}, "a record key is text, bytes or None, not of type int; 5 as text is '5'"),
        ({"value": {}, "timestamp": "2026-01-01"}, "not of type str"),
        ({"value": {}, "timestamp": 1767225600.5}, "whole milliseconds since 1970, not of type float"),
        ({"value": {}, "headers": {"a": "b"}}, "header 'a': 'b': its name is text, and its value bytes or None"),
        ({"value": {}, "headers": [("a", b"b")]}, "headers are a mapping of names to bytes, not of type list"),
    ],
)
def test_what_is_no_record_is_a_type_error(driver: TestDriver, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        driver.pipe(**arguments)
    assert not driver.read_dead_letters()


@pytest.mark.parametrize("partition", [-1, 3])
def test_a_partition_that_is_not_there_is_refused(driver: TestDriver, partition: int) -> None:
    with pytest.raises(ValueError, match=f"partition {partition}: topic 'in' has the partitions 0 to 2"):
        driver.pipe(event("c1", 1), partition=partition)


def test_one_event_is_not_taken_for_several(driver: TestDriver) -> None:
    with pytest.raises(TypeError, match="pipe_all takes several values; give one to pipe"):
        driver.pipe_all(event("c1", 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_time_does_not_go_back(driver: TestDriver, seconds: float) -> None:
    before = driver.now
    with pytest.raises(ValueError, match="time passes by a number of seconds, 0 or more"):
        driver.advance(seconds)
    assert driver.now == before


def test_a_time_without_a_zone_is_in_utc_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is in an event; a test must not depend on where it runs."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with TestDriver(CONFIG, start=datetime(2026, 3, 1)) as driver:
            assert driver.now.replace(second=0, microsecond=0) == datetime(2026, 3, 1, tzinfo=UTC)
            driver.pipe(event("c1", 1), timestamp=datetime(2026, 3, 1))
            assert driver.read_predictions()[0].value["timestamp"] == "2026-03-01T00:00:00.000Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_numbers_of_numpy_and_decimals_are_numbers(driver: TestDriver) -> None:
    for amount in (np.float64(12.5), np.float32(12.5), Decimal("12.5"), 12.5):
        driver.pipe({"customer": "c1", "amount": amount, "channel": "web"})
    assert [p.value["steps"] for p in driver.read_predictions()] == [1, 2, 3, 4]


def test_what_is_no_configuration_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="is the path of a YAML file, or its content, not a NoneType"):
        TestDriver(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="partitions is 0; a topic has 1 or more"):
        TestDriver(CONFIG, partitions=0)
    with TestDriver(CONFIG) as driver, pytest.raises(ValueError, match="times is -1"):
        driver.fail_next("poll", -1)


def test_a_stage_of_a_file_is_chosen(tmp_path: Path) -> None:
    shared = {"name": "t", "kafka": {"bootstrap_servers": "nowhere:9092"}}
    first = {key: value for key, value in CONFIG.items() if key != "name"}
    path = tmp_path / "two.yaml"
    path.write_bytes(orjson.dumps({**shared, "stages": [{"name": "only", **first}]}))
    with TestDriver(path, stage="only") as driver:
        driver.pipe(event("c1", 1))
        assert len(driver.read_predictions()) == 1
    with pytest.raises(CannotServe, match="has the stages only; choose one with stage="):
        TestDriver(path)
    with pytest.raises(CannotServe, match="stages: can only be taken from a YAML file; give its path"):
        TestDriver(orjson.loads(path.read_bytes()))
