"""The test driver behaves as a daemon on a broker does, whatever is done to it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

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
