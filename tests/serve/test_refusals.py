"""Records that a topic refuses for good, and batches that are too slow: one event or a smaller batch, not a loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lstmstream.errors import CannotServe, Fatal, RecordRefused, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.batch_limit import CAREFUL_COMMITS, PROMPT_S, BatchLimit
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, STATES, World

ALERTS = "alerts"
DAY_MS = 86_400_000


def amounts(world: World, values: list[float]) -> None:
    for value in values:
        world.produce(b"k", json.dumps({"amount": value}).encode(), partition=0)


def source(value: bytes | None) -> int:
    return int(json.loads(value or b"")["source"]["offset"])


def offset_of(headers: Any) -> int:
    return int(dict(headers)["__streams.errors.offset"])


def refuse(topic: str, offsets: set[int], *, when: Callable[[RecordBatch, int], bool] = lambda *_: True) -> Any:
    """A broker that takes no record of these input offsets in a topic; `when` looks at the record."""

    def on_write(batch: RecordBatch) -> None:
        if batch.topic != topic:
            return
        for row in range(len(batch)):
            at = offset_of(batch.headers[row]) if topic == LETTERS else source(batch.values[row])
            if at in offsets and when(batch, row):
                raise RecordRefused("no such time", topic=topic, partition=0)

    return on_write


def check(world: World, dead: set[int], count: int) -> None:
    """Each event has one prediction or one dead letter, and every state took every event."""
    log = world.broker.topics[OUTPUT].logs[0]
    assert [source(record.value) for record in log] == [at for at in range(count) if at not in dead]
    assert [json.loads(record.value or b"")["steps"] for record in log] == [
        at + 1 for at in range(count) if at not in dead
    ]
    letters = world.broker.topics[LETTERS].logs[0]
    assert [offset_of(record.headers) for record in letters] == sorted(dead)
    assert world.broker.offsets[0] == count


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("dead", [{0}, {7}, {19}, {3, 4, 5}, set(range(20))], ids=str)
def test_a_refused_prediction_becomes_a_dead_letter(dead: set[int], delivery: str) -> None:
    world = World(delivery=delivery)
    daemon = world.start()
    world.settle()
    world.broker.on_write = refuse(OUTPUT, dead)
    amounts(world, [float(i) for i in range(20)])
    world.settle(400)
    if delivery == "exactly_once":
        check(world, dead, 20)
        world.check_states()
    letters = [dict(record.headers) for record in world.broker.topics[LETTERS].logs[0]]
    assert {offset_of(headers.items()) for headers in letters} == dead
    assert all(headers["lstmstream.stage"] == b"publish" for headers in letters)
    assert all(b"no such time" in (headers["__streams.errors.message"] or b"") for headers in letters)
    if delivery == "exactly_once":
        assert world.metric(daemon, "dead_letters_total", stage="publish") == len(dead)
        assert world.metric(daemon, "predictions_total") == 20 - len(dead)
    for _ in range(13):
        amounts(world, [1.0])
        world.settle()
    assert daemon._batch_limit.of_failures == 4096, "it has grown again"


def test_a_refused_alert_takes_its_prediction_with_it() -> None:
    world = World(output={"topic": OUTPUT, "alerts_topic": ALERTS, "threshold": -100})
    world.start()
    world.settle()
    world.broker.on_write = refuse(ALERTS, {2})
    amounts(world, [1.0] * 5)
    world.settle()
    check(world, {2}, 5)
    assert [source(record.value) for record in world.broker.topics[ALERTS].logs[0]] == [0, 1, 3, 4]


def test_a_replay_agrees_with_the_state() -> None:
    """What a state is does not depend on what could be published."""
    world = World(state={"checkpoint_interval": "1h"})
    daemon = world.start()
    world.settle()
    world.broker.on_write = refuse(OUTPUT, {1, 2})
    amounts(world, [1.0, 5.0, 9.0])
    world.settle()
    world.kill(daemon)
    world.start()
    amounts(world, [2.0])
    world.settle()
    check(world, {1, 2}, 4)
    assert world.answers()[-1]["score"] == pytest.approx(world.expected()[-1][2])


FORMS: dict[str, Callable[[RecordBatch, int], bool]] = {
    "time": lambda batch, row: batch.timestamps[row] < 2_000_000,
    "no key": lambda batch, row: batch.keys[row] is None,
    "size": lambda batch, row: batch.values[row] is not None,
    "key": lambda batch, row: batch.keys[row] in (None, b"k"),
}


@pytest.mark.parametrize("why", FORMS)
def test_a_refused_dead_letter_is_written_in_a_plainer_form(why: str) -> None:
    world = World()
    world.start()
    world.settle()
    world.now_s = 5_000.0
    key = None if why == "no key" else b"k"
    world.broker.append(INPUT, 0, b"k", b'{"amount": 1}', 1_000_000)
    world.broker.append(INPUT, 0, key, b"nonsense", 1_000_000, [("n", b"1")])
    world.broker.append(INPUT, 0, b"k", b'{"amount": 1}', 1_000_000)
    world.broker.on_write = refuse(LETTERS, {1}, when=FORMS[why])
    world.settle()
    assert [source(record.value) for record in world.broker.topics[OUTPUT].logs[0]] == [0, 2]
    [letter] = world.broker.topics[LETTERS].logs[0]
    headers = dict(letter.headers)
    assert headers["lstmstream.stage"] == b"decode"
    assert headers["lstmstream.timestamp"] == b"1000000"
    assert letter.timestamp_ms >= 5_000_000
    if why in ("size", "key"):
        assert letter.value is None
        assert "n" not in headers
        assert b"a value of 8 bytes, headers of 2 bytes" in (headers["__streams.errors.message"] or b"")
    else:
        assert letter.value == b"nonsense"
        assert headers["n"] == b"1"
    assert letter.key == (b"k" if why in ("time", "size") else b"in-0-1")


def test_a_dead_letter_that_is_refused_in_every_form_ends_the_daemon() -> None:
    world = World()
    world.start()
    world.settle()
    world.broker.on_write = refuse(LETTERS, {0})
    world.produce(b"k", b"nonsense", partition=0)
    with pytest.raises(Fatal, match=r"in\[0\]@0: .*no such time.*dead-letter topic"):
        world.settle()
    assert world.broker.offsets[0] == 0


def test_a_refused_state_names_its_topic() -> None:
    world = World()
    world.start()
    world.settle()

    def on_write(batch: RecordBatch) -> None:
        if batch.topic == STATES:
            raise RecordRefused("too large", topic=STATES, partition=0, too_large=True)

    world.broker.on_write = on_write
    amounts(world, [1.0] * 10)
    with pytest.raises(CannotServe, match=r"state\.topic: too large.*'t\.state'"):
        world.settle()


BOUNDS: dict[str, tuple[dict[str, str], bytes | None, int, bytes, str]] = {
    # settings of the output topic → key, time from now, value, and what the dead letter says
    "old": ({"message.timestamp.before.max.ms": str(DAY_MS)}, b"k", -2 * DAY_MS, b'{"amount": 1}', "before.max.ms"),
    "future": ({"message.timestamp.after.max.ms": str(DAY_MS)}, b"k", 2 * DAY_MS, b'{"amount": 1}', "after.max.ms"),
    "large": ({"max.message.bytes": "150"}, b"k" * 40, 0, b'{"amount": 1}', "max.message.bytes=150"),
    "no key": ({"cleanup.policy": "compact"}, None, 0, b'{"amount": 1}', "without a key"),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_a_topic_is_known_to_refuse_is_not_tried(bound: str) -> None:
    """Thousands of such records do not cost a transaction each."""
    settings, key, from_now_ms, value, words = BOUNDS[bound]
    world = World()
    world.now_s = 1_700_000_000.0
    world.broker.create(OUTPUT, 3, settings)
    daemon = world.start()
    world.settle()
    world.settle()
    for _ in range(3):
        world.step(daemon)
    for _ in range(5):
        world.broker.append(INPUT, 0, key, value, int(world.now_s * 1000) + from_now_ms)
    world.settle()
    letters = world.broker.topics[LETTERS].logs[0]
    assert len(letters) == 5
    assert all(words in (dict(r.headers)["__streams.errors.message"] or b"").decode() for r in letters)
    assert world.metric(daemon, "transactions_total", outcome="aborted") == 0
    # Once the topic takes them they are predictions again.
    world.broker.topics[OUTPUT].settings.clear()
    world.now_s += 10
    for _ in range(3):
        world.step(daemon)
    world.broker.append(INPUT, 0, key, value, int(world.now_s * 1000) + from_now_ms)
    world.settle()
    assert len(world.broker.topics[OUTPUT].logs[0]) == 1


@pytest.mark.parametrize("most", [1, 3, 10])
def test_a_batch_that_is_too_slow_is_halved(most: int) -> None:
    world = World()
    daemon = world.start()
    world.settle()

    def on_write(batch: RecordBatch) -> None:
        if batch.topic == OUTPUT and len(batch) > most:
            world.now_s += 10
            raise TryAgain("expired")

    world.broker.on_write = on_write
    amounts(world, [float(i) for i in range(60)])
    world.settle(1000)
    world.check()
    assert daemon._batch_limit.now <= 2 * most


def test_the_limit_is_halved_and_grows_again() -> None:
    limit = BatchLimit(100)
    limit.on_refused(0)
    assert limit.now == 100, "a transaction without events says nothing"
    limit.on_refused(40)
    assert limit.now == 20
    for expected in (40, 80, 100):
        limit.on_commit()
        assert limit.now == expected
    limit.on_failure(1, 60.0)
    assert limit.now == 1
    for _ in range(CAREFUL_COMMITS - 1):
        limit.on_commit()
    assert limit.now == 1
    limit.on_commit()
    assert limit.now == 2


def test_transactions_that_fail_now_and_then_leave_the_batches_as_large_as_they_are() -> None:
    """One in five, at once: the size is not to blame. The second in a row, or a slow one, may be."""
    limit = BatchLimit(100)
    for _ in range(10):
        limit.on_failure(100, 0.1)
        assert limit.now == 100
        for _ in range(4):
            limit.on_commit()
    limit.on_failure(100, 0.1)
    limit.on_failure(100, 0.1)
    assert limit.now == 50
    limit.on_commit()
    limit.on_failure(50, 0.1)
    assert limit.now == 50
    limit.on_commit()
    limit.on_failure(50, PROMPT_S)
    assert limit.now == 25


@pytest.mark.parametrize(("why", "too_large", "aborted"), [("time", False, 1), ("size", True, 1), ("key", False, 3)])
def test_forms_that_cannot_help_are_passed_over(why: str, too_large: bool, aborted: int) -> None:
    world = World()
    daemon = world.start()
    world.settle()
    world.now_s = 5_000.0

    def on_write(batch: RecordBatch) -> None:
        if batch.topic == LETTERS and FORMS[why](batch, 0):
            raise RecordRefused("no", topic=LETTERS, partition=0, too_large=too_large)

    world.broker.on_write = on_write
    world.broker.append(INPUT, 0, b"k", b"nonsense", 1_000_000)
    world.settle()
    assert len(world.broker.topics[LETTERS].logs[0]) == 1
    assert world.metric(daemon, "transactions_total", outcome="aborted") == aborted
    assert not daemon._refusals._known, "what is committed is forgotten"


@pytest.mark.parametrize("refused", ["time", "no key", "key"])
@pytest.mark.parametrize(
    "settings",
    [
        {"cleanup.policy": "compact"},
        {"message.timestamp.before.max.ms": str(DAY_MS)},
        {"max.message.bytes": "2000000"},
        {"cleanup.policy": "compact", "message.timestamp.before.max.ms": str(DAY_MS)},
    ],
    ids=" and ".join,
)
def test_what_the_broker_refuses_and_what_is_known_of_the_topic_add_up(
    settings: dict[str, str], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dead-letter topic changes while the daemon runs: a refusal asks for one form, the settings for another."""
    world = World()
    daemon = world.start()
    world.settle()
    world.now_s = 1_700_000_000.0
    now_ms = int(world.now_s * 1000)
    encode, batches = daemon._engine._encoder.encode, []

    def counted(records: RecordBatch, *args: Any, **options: Any) -> Any:
        batches.append(records)
        assert sum(batch is records for batch in batches) < 8, "it is encoded again and again"
        return encode(records, *args, **options)

    monkeypatch.setattr(daemon._engine._encoder, "encode", counted)
    forms = {**FORMS, "time": lambda batch, row: batch.timestamps[row] < now_ms - DAY_MS}
    world.broker.topics[LETTERS].settings.update(settings)
    world.broker.on_write = refuse(LETTERS, {0}, when=forms[refused])
    world.broker.append(INPUT, 0, None, b"nonsense", now_ms - 3 * DAY_MS)
    world.settle()  # alone in its batch, so that the refusal is noted before the settings are looked at
    world.broker.append(INPUT, 0, b"k", b'{"amount": 1}', now_ms)
    world.settle()
    assert [offset_of(letter.headers) for letter in world.broker.topics[LETTERS].logs[0]] == [0]
    assert [source(record.value) for record in world.broker.topics[OUTPUT].logs[0]] == [1]
    assert world.broker.offsets[0] == 2
