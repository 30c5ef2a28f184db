"""`verify` compares the events of `output.events` with what the input gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lstmstream.errors import CannotServe
from lstmstream.transport import memory
from lstmstream.transport.partitioner import murmur2
from lstmstream.verify.enriched import ENRICHED
from lstmstream.verify.topics import Limits
from tests.verify.test_findings import COUNT, kinds, made
from tests.verify.world import OUTPUT, VerifyWorld

ENRICHED_TOPIC = "next"
ADD = {"risk": "score", "seen": "steps", "high": "alert", "p": "prediction[0]"}


@pytest.fixture(autouse=True)
def partitions_as_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "crc32", lambda key: murmur2(key) & 0x7FFFFFFF if key else 0)


def served(folder: Path, key: str | None = None, **serving: Any) -> VerifyWorld:
    events = {"topic": ENRICHED_TOPIC, "add": ADD, **({} if key is None else {"key": key})}
    world = made(folder, output={"threshold": 0.6, "events": events})
    world.serve(**serving)
    return world


def fullest(world: VerifyWorld) -> int:
    """A partition of the enriched events that has some."""
    return max(range(len(world.broker.topics[ENRICHED_TOPIC].logs)), key=lambda n: len(world.log(ENRICHED_TOPIC, n)))


@pytest.mark.parametrize("key", [None, "channel"])
def test_they_are_right(tmp_path: Path, key: str | None) -> None:
    world = served(tmp_path, key)
    done = world.verify()
    assert kinds(done) == {}
    summary = done.summary()
    written = sum(map(len, world.broker.topics[ENRICHED_TOPIC].logs))
    assert summary["enriched_events"] == written > COUNT / 2


def test_some_of_them_and_round_after_round(tmp_path: Path) -> None:
    world = served(tmp_path)
    whole = world.verify().summary()["enriched_events"]
    some = world.verify(sample=0.4)
    assert kinds(some) == {}
    assert 0 < some.summary()["enriched_events"] < whole
    later = world.verify(limits=Limits(first=20, last=50))
    assert kinds(later) == {}
    assert 0 < later.summary()["enriched_events"] < whole
    following = world.verification()
    following.round()
    following.round()
    assert kinds(following) == {}
    assert following.summary()["enriched_events"] == whole


def _lose(world: VerifyWorld, number: int) -> None:
    del world.log(ENRICHED_TOPIC, number)[5]


def _alter(world: VerifyWorld, number: int) -> None:
    log = world.log(ENRICHED_TOPIC, number)
    log[5] = log[5]._replace(value=(log[5].value or b"").replace(b'"risk":', b'"risk":1'))


def _lose_a_header(world: VerifyWorld, number: int) -> None:
    log = world.log(ENRICHED_TOPIC, number)
    at = next(at for at, record in enumerate(log) if record.headers)
    log[at] = log[at]._replace(headers=[])


def _write_twice(world: VerifyWorld, number: int) -> None:
    log = world.log(ENRICHED_TOPIC, number)
    log.append(log[5])


def _swap(world: VerifyWorld, number: int) -> None:
    """Two of one key."""
    log = world.log(ENRICHED_TOPIC, number)
    other = next(at for at in range(6, len(log)) if log[at].key == log[5].key)
    log[5], log[other] = log[other], log[5]


def _put_elsewhere(world: VerifyWorld, number: int) -> None:
    count = len(world.broker.topics[ENRICHED_TOPIC].logs)
    world.log(ENRICHED_TOPIC, (number + 1) % count).append(world.log(ENRICHED_TOPIC, number).pop(5))
    world.number_again(ENRICHED_TOPIC, (number + 1) % count)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (_lose, {"missing": 1}),
        (_alter, {"missing": 1}),
        (_lose_a_header, {"missing": 1}),
        (_write_twice, {"duplicate": 1}),
        (_swap, {"out_of_order": 1}),
        (_put_elsewhere, {"missing": 1}),
    ],
    ids=lambda one: one.__name__.strip("_") if callable(one) else "",
)
@pytest.mark.parametrize("key", [None, "channel"])
def test_a_fault_is_found(
    plant: Callable[[VerifyWorld, int], None], found: dict[str, int], key: str | None, tmp_path: Path
) -> None:
    world = served(tmp_path, key)
    number = fullest(world)
    plant(world, number)
    world.number_again(ENRICHED_TOPIC, number)
    done = world.verify()
    assert kinds(done).keys() == found.keys()
    assert {finding.record for finding in done.comparison.findings.kept} == {ENRICHED}
    if "missing" in found:
        assert kinds(done) == found


def test_one_of_an_event_that_has_no_prediction_is_not_asked_for(tmp_path: Path) -> None:
    """The prediction is missing, which is one finding, and the enriched event is there."""
    world = served(tmp_path)
    del world.log(OUTPUT, 1)[5]
    world.number_again(OUTPUT, 1)
    assert kinds(world.verify()) == {"missing": 1}


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    world = served(tmp_path)
    number = fullest(world)
    assert world.verify(tolerance=1e-5).summary()["enriched_events"] is None
    world.broker.truncate(ENRICHED_TOPIC, number, 5)  # by retention
    assert kinds(world.verify()) == {}
    del world.broker.topics[ENRICHED_TOPIC]
    with pytest.raises(CannotServe, match=r"output\.events\.topic: there is no topic 'next'"):
        world.verify()
