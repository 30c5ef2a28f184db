"""`lstmstream state build`: the engine over a history, then the daemon over the topic; `verify` judges both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lstmstream.errors import CannotServe
from lstmstream.states import build as states_build
from lstmstream.states.build import history_config
from lstmstream.states.seeding import seed_offsets
from lstmstream.transport.partitioner import partition_of
from lstmstream.verify.published import dead_letter_headers
from lstmstream.verify.topics import Limits
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, PARTITIONS
from tests.states.build_world import (
    TOPIC,
    Event,
    append_events,
    build,
    build_world,
    events,
    judge,
    lines,
    past,
    repartition,
)
from tests.states.seed_world import at_the_beginning
from tests.verify.world import ALERTS, NOW_MS, VerifyWorld


@pytest.fixture
def world(tmp_path: Path) -> VerifyWorld:
    return build_world(tmp_path)


def test_answers_and_alerts_are_those_of_one_run_over_both(world: VerifyWorld, tmp_path: Path) -> None:
    """With late events, silences and dead letters, and with what the policy for alerts remembers."""
    found = past()
    files = [lines(tmp_path / "1.jsonl", found[:70]), lines(tmp_path / "2.jsonl", found[70:])]
    assert build(world, files) == len({event["id"] for event in found})
    world.serve()
    code, summary = judge(world, files)
    assert (code, summary["findings"]) == (0, [])
    assert summary["predictions"] + summary["dead_letters"] == TOPIC
    held_back = [answer["held_back"] for answer in world.answers() if "held_back" in answer]
    assert {"hold", "mute"} <= set(held_back)
    ended = [json.loads(record.value or b"").get("ended") for p in range(PARTITIONS) for record in world.log(ALERTS, p)]
    assert any(one and one["offset"] == -1 for one in ended)  # it began with an event of the history
    world.serve()  # from what the daemon has written since
    assert judge(world, files)[0] == 0


def test_a_history_that_is_not_the_one_is_found_out(world: VerifyWorld, tmp_path: Path) -> None:
    found = past()
    build(world, [lines(tmp_path / "1.jsonl", found)])
    world.serve()
    other = lines(tmp_path / "2.jsonl", [event for event in found if event["id"] != "k1"])
    code, summary = judge(world, [other])
    assert code == 1
    assert {json.loads(json.dumps(one))["kind"] for one in summary["findings"]} <= {"wrong", "missing"}


def test_without_the_history_it_says_what_it_cannot_judge(world: VerifyWorld, tmp_path: Path) -> None:
    build(world, [lines(tmp_path / "1.jsonl", past())])
    world.serve()
    code, summary = judge(world, None)
    assert (code, summary["findings"]) == (2, [])
    assert "built from history (--history)" in summary["unjudged"][0]["reason"]


def test_a_history_of_nobody(world: VerifyWorld, tmp_path: Path) -> None:
    world.serve()
    with pytest.raises(CannotServe, match="--history: the states of this group were not built from history"):
        judge(world, [lines(tmp_path / "1.jsonl", past())])


@pytest.mark.parametrize("late_ms", [0, 5])
def test_an_overlap_is_refused(world: VerifyWorld, tmp_path: Path, late_ms: int) -> None:
    """At the time of the first event that the input has in the partition, or later."""
    first = min((record.timestamp_ms, record.key) for log in world.broker.topics[INPUT].logs for record in log)
    event = {"id": (first[1] or b"").decode(), "ts": first[0] + late_ms, "amount": 1}
    with pytest.raises(CannotServe, match=r"2\.jsonl: row 0: has an event of key .* they overlap"):
        build(world, [lines(tmp_path / "1.jsonl", past()), lines(tmp_path / "2.jsonl", [event])])
    assert not any(world.state_logs())


def test_an_empty_history(world: VerifyWorld, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="the history has no events"):
        build(world, [lines(tmp_path / "1.jsonl", [])])


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"key": "id"}, ("other", "ts"), "--key other: the config names another field, input.key: id"),
        ({}, ("id", None), "--timestamp COLUMN"),
        ({}, (None, "ts"), "--key COLUMN"),
    ],
)
def test_what_is_not_known_of_a_history(
    world: VerifyWorld, settings: dict[str, str], options: tuple[str | None, str | None], message: str
) -> None:
    world.settings["input"] = {"topic": INPUT, **settings}
    with pytest.raises(CannotServe, match=message):
        history_config(world.config(), world.model, *options)


# -- state.max_keys


def limited_world(tmp_path: Path) -> VerifyWorld:
    world = build_world(tmp_path)
    world.settings["state"] = {"max_keys": 2, "checkpoint_interval": "5s"}
    world.settings["input"] = {"topic": INPUT}
    return world


def serve_in_lives(world: VerifyWorld, lives: int) -> None:
    """Daemons that are killed after some events each."""
    for number in range(lives):
        daemon = world.start(world.onnx_step())
        for _ in range(8 + number):
            world.step(daemon)
            world.now_s += 0.7
        world.kill(daemon)
    world.serve()


@pytest.mark.parametrize("lives", [0, 4])
def test_the_most_recent_keys_of_history_and_topic(tmp_path: Path, lives: int) -> None:
    """Which of the keys of the history goes first has to be known after restarts too."""
    world, found = limited_world(tmp_path), past()
    world.settings["batch"] = {"max_events": 4}
    file = lines(tmp_path / "1.jsonl", found)
    assert build(world, [file]) == 2 * PARTITIONS
    serve_in_lives(world, lives)
    code, summary = judge(world, [file])
    assert (code, summary["findings"]) == (0, [])
    assert summary["predictions"] + summary["dead_letters"] == TOPIC
    code, summary = judge(world, None)
    assert (code, summary["findings"]) == (2, [])
    assert summary["not_judged"] < TOPIC, "what began after the history is judged without it"


def test_a_wrong_order_of_the_keys_of_a_history_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_build, "seed_offsets", lambda partitions, order: seed_offsets(partitions, order[::-1]))
    world = limited_world(tmp_path)
    file = lines(tmp_path / "1.jsonl", past()[:140])
    build(world, [file])
    world.serve()
    assert judge(world, [file])[0] == 1


# -- input.max_lateness

LATENESS_MS = 5_000


@pytest.mark.parametrize("with_history", [True, False])
def test_a_late_event_of_a_key_of_the_history_makes_room_for_nobody(tmp_path: Path, with_history: bool) -> None:
    """It is dropped and not seen, so that no key is evicted for it. Without the history nobody can tell that."""
    world = limited_world(tmp_path)
    world.settings["alerts"] = {}
    world.settings["input"] = {"topic": INPUT, "late": "drop"}
    keys = [key for key in map(b"q%d".__mod__, range(99)) if partition_of(key, PARTITIONS) == 0]
    of_history, first, second = keys[:3]
    events = [(first, 1), (of_history, 2), (second, 3), (first, 4)]
    for partition in range(PARTITIONS):
        world.log(INPUT, partition).clear()
    for key, time_ms in events:
        value = json.dumps({"id": key.decode(), "ts": NOW_MS + time_ms, "amount": 1.0}).encode()
        world.broker.append(INPUT, 0, key, value, NOW_MS + time_ms, [])
    history = lines(tmp_path / "1.jsonl", [{"id": of_history.decode(), "ts": NOW_MS + 10, "amount": 1.0}])
    build(world, [history], at_the_beginning())
    world.serve()
    assert [(x["key"], x["steps"]) for x in world.answers()] == [
        (first.decode(), 1),
        (second.decode(), 1),
        (first.decode(), 2),
    ]
    code, summary = judge(world, [history] if with_history else None)
    assert (code, summary["not_judged"]) == ((0, 0) if with_history else (2, 4))


def late_world(tmp_path: Path) -> tuple[VerifyWorld, list[Event]]:
    """And a history that ends later than the topic begins: events of the topic are too late because of it."""
    world = build_world(tmp_path)
    world.settings["input"] = {"topic": INPUT, "max_lateness": f"{LATENESS_MS}ms"}
    world.settings["batch"] = {"max_events": 4}
    return world, [{**event, "ts": event["ts"] + 200_000} for event in past()]


def too_late(world: VerifyWorld, found: list[Event]) -> tuple[int, list[tuple[int, int]]]:
    """By a loop of its own: how many events of the history are, and (partition, offset) of those of the topic."""
    newest_ms, in_history, in_topic = [-1] * PARTITIONS, 0, []

    def is_late(partition: int, event: Event) -> bool:
        if event["amount"] == "much":
            return False
        late = event["ts"] < newest_ms[partition] - LATENESS_MS
        newest_ms[partition] = max(newest_ms[partition], event["ts"])
        return late

    for event in found:
        in_history += is_late(partition_of(event["id"].encode(), PARTITIONS), event)
    for partition in range(PARTITIONS):
        for record in world.log(INPUT, partition):
            in_topic += [(partition, record.offset)] * is_late(partition, json.loads(record.value or b""))
    return in_history, in_topic


def late_letters(world: VerifyWorld) -> list[tuple[int, int]]:
    said = [dead_letter_headers(record.headers) for p in range(PARTITIONS) for record in world.log(LETTERS, p)]
    return sorted((one.source.partition, one.source.offset) for one in said if one and one.stage == "late")


@pytest.mark.parametrize("lives", [0, 4])
@pytest.mark.parametrize("max_keys", [None, 2])
def test_the_time_of_the_history_goes_on_in_the_topic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lives: int, max_keys: int | None
) -> None:
    world, found = late_world(tmp_path)
    if max_keys:
        world.settings["state"] = {"max_keys": max_keys, "checkpoint_interval": "5s"}
    files = [lines(tmp_path / "1.jsonl", found[:90]), lines(tmp_path / "2.jsonl", found[90:])]
    in_history, in_topic = too_late(world, found)
    assert in_history > 0
    assert in_topic[0] == (0, 0)
    build(world, files, at_the_beginning())
    said = re.findall(
        r"(\d+) of \d+ rows are too late and change no state; the first: row \d+", capsys.readouterr().err
    )
    assert sum(map(int, said)) == in_history
    serve_in_lives(world, lives)
    assert late_letters(world) == in_topic
    code, summary = judge(world, files)
    assert (code, summary["findings"]) == (0, [])
    assert summary["predictions"] + summary["dead_letters"] == TOPIC


def test_without_the_history_its_time_is_known(tmp_path: Path) -> None:
    """Of a key that begins in the topic the first event is too late, because of the history; the second is judged."""
    world, found = late_world(tmp_path)
    del world.settings["alerts"]  # these are decided on by events of other keys, too
    partition = partition_of(b"new", PARTITIONS)
    log = world.log(INPUT, partition)
    for at_ms in (max(event["ts"] for event in found), log[0].timestamp_ms):
        event = {"id": "new", "ts": at_ms, "amount": 1.0}
        world.broker.append(INPUT, partition, b"new", json.dumps(event).encode(), at_ms, [])
        log.insert(0, log.pop())
    world.number_again(INPUT, partition)
    build(world, [lines(tmp_path / "1.jsonl", found)], at_the_beginning())
    world.serve()
    assert (partition, 0) in late_letters(world)
    done = world.verify(limits=Limits(1, 2))
    assert len(done.comparison.findings) == 0
    assert partition not in {one["partition"] for one in done.summary()["unjudged"]}


def test_a_build_that_forgets_the_time_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_build.HistoryRun, "times_ms", lambda _self: {})
    world, found = late_world(tmp_path)
    file = lines(tmp_path / "1.jsonl", found)
    build(world, [file], at_the_beginning())
    world.serve()
    assert judge(world, [file])[0] == 1


# -- and state repartition


@pytest.mark.parametrize("bound", [{}, {"max_lateness": f"{LATENESS_MS}ms"}], ids=["none", "max_lateness"])
@pytest.mark.parametrize("built", [False, True])
def test_keys_that_stay_and_new_ones_are_judged_after_a_repartition(
    tmp_path: Path, bound: dict[str, str], *, built: bool
) -> None:
    """With the history or without it; those that have moved are not."""
    world = build_world(tmp_path)
    del world.settings["alerts"]
    world.settings["input"] = {"topic": INPUT, **bound}
    files = [lines(tmp_path / "1.jsonl", past())] if built else None
    if files:
        build(world, files)
    ahead: Event = {"id": "k0", "ts": world.log(INPUT, 0)[-1].timestamp_ms + 300_000, "amount": 1}
    append_events(world, [ahead])  # the other partitions' time is behind
    world.serve()
    for topic in (INPUT, OUTPUT, ALERTS, LETTERS):
        world.broker.grow(topic, 5)
    repartition(world, 5)
    more = events(TOPIC, ahead["ts"] - 300_000, 3)
    append_events(world, [*more, *({**event, "id": f"new{event['id']}"} for event in more)])
    world.serve()
    for history in (None, files) if built else (None,):
        code, summary = judge(world, history)
        assert (code, summary["findings"]) == (2, [])
        assert summary["not_judged"] < summary["events"] - TOPIC // 2
        assert {one["reason"] for one in summary["unjudged"]} == {
            "their keys may have had states that were moved, or imported or built from history (--history)"
        }
