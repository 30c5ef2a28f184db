"""`lstmstream state import`: a group starts from the states of a file, or nothing of it counts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import CannotServe, TryAgain
from lstmstream.serve.erasure_records import pack_request
from lstmstream.serve.state_records import FLOOR
from lstmstream.states import stored
from lstmstream.states.export import export_states
from lstmstream.states.joining import JoinAt
from lstmstream.states.seeding import seed_offsets
from lstmstream.transport.partitioner import partition_of
from tests.serve.memory_world import INPUT, MAGIC, PARTITIONS, STATES, World, amount_of, card, crash_at_call, fold
from tests.serve.test_snapshots import let_it_write
from tests.states.seed_world import KEYS, PAST_MS, Past, answered, at_the_beginning, produce, seed
from tests.states.world import CONFIG, Opened

MAX_CALLS = 14


@pytest.fixture
def world() -> World:
    """With events that nobody has answered."""
    made = World()
    produce(made, 30)
    return made


def serve(world: World, *, kill: bool = False) -> None:
    daemon = world.start()
    world.settle()
    (world.kill if kill else world.stop)(daemon)


def test_the_daemon_goes_on_from_the_states_of_the_file(tmp_path: Path) -> None:
    """Also from those whose keys come back only after many restarts."""
    world, past = World(), Past()
    produce(world, 6, KEYS[:3])
    seed(world, past.write(tmp_path / "s.jsonl", world))
    for kill in (True, False, True, False):
        serve(world, kill=kill)
        world.check_states()
        produce(world, 15, KEYS[:3])
    produce(world, 30)
    serve(world)
    assert answered(world) == past.expected(world)


def test_a_table_has_nulls_for_what_is_not_there(tmp_path: Path) -> None:
    """As a file of state export comes back from Parquet or from a database."""
    world, past = World(), Past()
    produce(world, 6, KEYS[:3])
    nulls = {"key_base64": None, "partition": None, "failures": None}
    seed(world, past.write(tmp_path / "s.jsonl", world, **nulls))
    serve(world)
    assert answered(world) == past.expected(world)


def test_a_snapshot_has_them_too(tmp_path: Path) -> None:
    """Those that the daemon has not changed, too."""
    world, past = World(state={"checkpoint_interval": "5s", "dir": str(tmp_path / "snapshots")}), Past()
    produce(world, 6, KEYS[:3])
    seed(world, past.write(tmp_path / "s.jsonl", world))
    daemon = world.start()
    world.settle()
    let_it_write(world, daemon)
    world.stop(daemon)
    daemon = world.start()
    world.settle()
    assert world.metric(daemon, "restores_total", source="snapshot") == PARTITIONS
    world.kill(daemon)
    produce(world, 30)
    serve(world)
    assert answered(world) == past.expected(world)


@pytest.mark.parametrize(
    "point", ["bounds", "read", "poll", "begin", "sent", "commit", "committed", "committed_offset"]
)
def test_a_kill_leaves_all_or_nothing(point: str, tmp_path: Path) -> None:
    """At each call of its kind. A daemon that comes then answers from all of the states, from none, or not at all."""
    found = set()
    for nth in range(MAX_CALLS):
        outcome = kill_at(point, nth, tmp_path)
        if outcome is None:
            break
        found.add(outcome)
    assert found


def kill_at(point: str, nth: int, tmp_path: Path) -> str | None:
    world, past = World(), Past()
    produce(world, 30)
    path = past.write(tmp_path / "s.jsonl", world)
    with crash_at_call(world, point, nth) as crash:
        seed(world, path)
    outcome = "killed" if crash.happened else None
    world.abort_transactions()
    daemon = world.start()
    problem = ""
    try:
        world.settle()
    except CannotServe as error:
        problem = str(error)
    if problem:
        assert "was stopped before it had written all" in problem
        world.kill(daemon)
        seed(world, path)
        daemon = world.start()
        world.settle()
        outcome = "refused"
    world.stop(daemon)
    serve(world)
    if answered(world) != past.expected(world):
        world.check()  # it started without any states
        outcome = "nothing"
    produce(world, 10)
    serve(world)
    assert answered(world) == (world.expected() if outcome == "nothing" else past.expected(world))
    return outcome


@pytest.mark.parametrize("point", ["poll", "begin", "sent", "commit", "committed", "committed_offset", "recover"])
def test_a_broker_that_fails_meanwhile(world: World, point: str, tmp_path: Path) -> None:
    past = Past()
    world.faults += [point] * 3 + ["begin"]
    seed(world, past.write(tmp_path / "s.jsonl", world))
    serve(world)
    assert answered(world) == past.expected(world)


def test_what_a_run_before_has_left_does_not_count(world: World, tmp_path: Path) -> None:
    """Neither for the next run, nor for a daemon whose states begin at the same offset."""
    with crash_at_call(world, "committed", 3):
        seed(world, Past(seed=2).write(tmp_path / "other.jsonl", world))
    assert any(world.state_logs())
    again = World()
    again.broker, again.now_s = world.broker, world.now_s
    said: list[str] = []
    past = Past(KEYS[5:])
    seed(world, past.write(tmp_path / "s.jsonl", world), said=said.append)
    assert "of an unfinished import or build will not count" in said[0]
    serve(world, kill=True)
    serve(world)
    assert answered(world) == past.expected(world)


def test_a_daemon_that_starts_without_states_does_not_meet_them(world: World, tmp_path: Path) -> None:
    with crash_at_call(world, "committed", 3):
        seed(world, Past().write(tmp_path / "s.jsonl", world))
    world.broker.offsets.clear()  # as the message says
    serve(world)
    serve(world)
    world.check()


def test_a_group_that_begins_while_the_file_is_looked_at(world: World, tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="group 't' has begun"):
        seed(world, Past().write(tmp_path / "s.jsonl", world), before_begin=lambda: serve(world))
    serve(world)
    world.check()


def test_a_daemon_that_comes_right_after_the_last_transaction(world: World, tmp_path: Path) -> None:
    """The import does not know that it went through, and finds the daemon in the group."""
    past, other, count = Past(), World(), 0
    path = past.write(tmp_path / "s.jsonl", world)

    def note(at: str) -> None:
        nonlocal count
        count += at == "committed"

    def fail(at: str) -> None:
        nonlocal count
        count -= at == "committed"
        if at == "committed" and count == 0:
            world.start()
            raise TryAgain("a lost connection")

    produce(other, 30)
    other.watch = note
    seed(other, path)
    world.watch = fail
    seed(world, path)
    world.watch = lambda _point: None
    world.settle()
    assert answered(world) == past.expected(world)


@pytest.mark.parametrize("point", ["begin", "sent", "commit"])
@pytest.mark.parametrize("nth", [0, 2, 4])
def test_a_daemon_that_joins_meanwhile_stops_it(world: World, point: str, nth: int, tmp_path: Path) -> None:
    seen = 0

    def watch(at: str) -> None:
        nonlocal seen
        seen += at == point
        if seen == nth + 1:
            seen += 1
            world.watch = lambda _point: None
            world.start()

    path = Past().write(tmp_path / "s.jsonl", world)
    world.watch = watch
    with pytest.raises(CannotServe, match="has other members: lstmstream-t at here"):
        seed(world, path)
    (daemon,) = world.daemons
    with contextlib.suppress(CannotServe):
        world.settle()
    assert all(key is None or key[:1] != FLOOR for log in world.state_logs() for _, _, key, *_ in log) or (
        answered(world) == world.expected()
    )
    world.kill(daemon)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": "00"}, "has states of another model or other settings (identity 00)"),
        ({"identity": None}, "does not say which model and settings its states belong to"),
        ({"partition": 7}, "and Kafka's partitioner (murmur2) takes"),
        ({"key": "same", "partition": -1}, "rows 1 and 2 have the same key"),
        ({"timestamp": 2_000_000}, "they overlap, and events in both would count twice"),
        ({"steps": 0}, "row 1: steps is 0, which cannot be"),
        ({"steps": "3"}, "line 1: is not a state: '3' is not a whole number"),
        ({"failures": 70_000}, "row 1: failures is 70000, which cannot be"),
        ({"parts": {"mean": [1.0]}}, "line 1: has no count"),
        ({"parts": {"mean": [1.0, 2.0], "count": [1.0]}}, "part 'mean' has the shape [2], not [1]"),
        ({"parts": {"mean": [1e300], "count": [1.0]}}, "row 1: its state is not finite; the file is damaged"),
    ],
)
def test_a_file_that_is_refused(world: World, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotServe) as raised:
        seed(world, Past().write(tmp_path / "s.jsonl", world, **changes))
    assert message in str(raised.value)
    assert not any(world.state_logs()), "nothing was written"
    assert not world.broker.offsets


def test_a_file_that_was_cut(world: World, tmp_path: Path) -> None:
    path = Past().write(tmp_path / "s.jsonl", world)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CannotServe, match="line 10: is not a state"):
        seed(world, path)


def test_a_group_that_has_begun(world: World, tmp_path: Path) -> None:
    path = Past().write(tmp_path / "s.jsonl", world)
    serve(world)
    with pytest.raises(CannotServe, match="group 't' has begun: its offset of in"):
        seed(world, path)
    world.broker.offsets.clear()
    with pytest.raises(CannotServe, match=r"topic 't\.state' has states already"):
        seed(world, path)


def test_a_group_with_a_member(world: World, tmp_path: Path) -> None:
    world.start()
    with pytest.raises(CannotServe, match="has other members: lstmstream-t at here"):
        seed(world, Past().write(tmp_path / "s.jsonl", world))


def test_where_the_input_goes_on(world: World, tmp_path: Path) -> None:
    past = Past()
    path = past.write(tmp_path / "s.jsonl", world)
    ends = {p: len(log) for p, log in enumerate(world.broker.topics[INPUT].logs)}
    seed(world, path, JoinAt.parse([f"{p}:{end - 2}" for p, end in ends.items()], None))
    serve(world)
    assert sorted({(p, offset) for p, offset, *_ in answered(world)}) == [
        (p, offset) for p, end in ends.items() for offset in (end - 2, end - 1)
    ]


def test_by_time(world: World, tmp_path: Path) -> None:
    path = Past().write(tmp_path / "s.jsonl", world)
    at_ms = [record.timestamp_ms for log in world.broker.topics[INPUT].logs for record in log]
    since = sorted(at_ms)[20]
    seed(world, path, JoinAt({}, since))
    serve(world)
    assert len(answered(world)) == sum(time >= since for time in at_ms)
    other = World()
    produce(other, 30)
    with pytest.raises(CannotServe, match="they overlap"):
        seed(other, path, JoinAt({}, PAST_MS))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (["0:1"], "give one for each partition of 'in'; missing: 1, 2"),
        (["0:1", "1:1", "2:999"], "--at-offset 2:999: partition 2 has offsets 0 to"),
        (["0:1", "1:1", "2:1", "3:1"], "--at-offset 3:1: topic 'in' has no partition 3"),
        (["0-1"], "--at-offset 0-1: is not PARTITION:OFFSET"),
        (["0:1", "0:2"], "partition 0 was given another offset before"),
    ],
)
def test_offsets_that_cannot_be(world: World, tmp_path: Path, offsets: list[str], message: str) -> None:
    with pytest.raises(CannotServe) as raised:
        seed(world, Past().write(tmp_path / "s.jsonl", world), JoinAt.parse(offsets, None))
    assert message in str(raised.value)


def test_states_that_cannot_be_rebuilt_are_not(world: World, tmp_path: Path) -> None:
    """What was imported is not in the input: a damaged record, or an offset that was moved back, is refused."""
    seed(world, Past().write(tmp_path / "s.jsonl", world))
    serve(world)
    log = next(log for log in world.broker.topics[STATES].logs if log)
    at = next(i for i, record in enumerate(log) if record.key is not None and record.key[:1] != FLOOR)
    good = log[at]
    newest = [i for i, record in enumerate(log) if record.key == good.key][-1]
    good = log[newest]
    value = good.value or b""
    log[newest] = good._replace(value=value[:-1] + bytes([value[-1] ^ 1]))
    world.start()
    with pytest.raises(CannotServe, match=r"state record is damaged, the first at offset .* began with those"):
        world.settle()
    world.kill(world.daemons[0])
    log[newest] = good
    world.broker.offsets = dict.fromkeys(range(PARTITIONS), 0)
    world.start()
    with pytest.raises(CannotServe, match=r"was moved back to 0, .* began with those"):
        world.settle()


def test_an_input_that_is_not_there(world: World, tmp_path: Path) -> None:
    del world.broker.topics[INPUT]
    with pytest.raises(
        CannotServe, match=r"the topics cannot be used, for 10 s: input\.topic: topic 'in' does not exist"
    ):
        seed(world, Past().write(tmp_path / "s.jsonl", world))


# -- state.max_keys


def test_places_of_states_that_were_there_before() -> None:
    partitions, times = np.array([1, 0, 1, 1, 0]), np.array([5, 9, 7, 5, 3])
    assert seed_offsets(partitions, np.argsort(times, kind="stable")).tolist() == [-3, -1, -1, -2, -2]


def limited_world(max_keys: int) -> tuple[World, Past, dict[bytes, int]]:
    """And the times of the keys' last events: the order of the file is another one."""
    world, past = World(state={"max_keys": max_keys, "checkpoint_interval": "5s"}), Past()
    return world, past, {key: PAST_MS - 7 * (number * 7 % len(KEYS)) for number, key in enumerate(KEYS)}


def expected_of_limited(world: World, past: Past, times: dict[bytes, int], max_keys: int) -> list[Any]:
    """As Past.expected, with only the most recent keys of each partition."""
    found = []
    for partition, log in enumerate(world.broker.topics[INPUT].logs):
        mine = sorted((key for key in KEYS if partition_of(key, PARTITIONS) == partition), key=lambda key: times[key])
        states = {key: past.states[key] for key in mine[-max_keys:]}
        for record in log:
            assert record.key is not None
            mean, count, steps = states.pop(record.key, (np.float32(0.5), np.float32(0), 0))
            mean, count = fold(mean, count, np.float32(amount_of(record.value)))
            states[record.key] = mean, count, steps + 1
            if len(states) > max_keys:
                del states[next(iter(states))]
            found.append((partition, record.offset, float(str(mean - count)), steps + 1))
    return found


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("max_keys", [1, 2, 3, 5])
def test_the_least_recent_ones_go_first(tmp_path: Path, max_keys: int, *, kill: bool) -> None:
    """As if their last events had come before the input, in the order of their times. Some are too many already."""
    world, past, times = limited_world(max_keys)
    produce(world, 4, KEYS[:2])
    path = past.write(tmp_path / "s.jsonl", world)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "timestamp": times[row["key"].encode()]}) + "\n" for row in rows))
    seed(world, path)
    for number in range(6):
        serve(world, kill=kill)
        produce(world, 5, [*KEYS[number : number + 3], b"new%d" % number])
    serve(world)
    assert answered(world) == expected_of_limited(world, past, times, max_keys)


# -- input.max_lateness

NOW_MS, LATENESS_MS = 1_700_000_000_000, 5_000


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("keys", [KEYS, KEYS[:1]])
def test_the_time_of_the_newest_state_goes_on(tmp_path: Path, keys: list[bytes], *, kill: bool) -> None:
    """Of each partition; where it has no state, the time begins with the input."""
    world, past = World(input={"topic": INPUT, "max_lateness": "5s"}), Past(keys)
    path = past.write(tmp_path / "s.jsonl", world)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    newest_ms, lines = [-1] * PARTITIONS, []
    for number, row in enumerate(rows):
        at_ms = NOW_MS + 20_000 * partition_of(row["key"].encode(), PARTITIONS) - 3_000 * (number * 7 % len(KEYS))
        newest_ms[row["partition"]] = max(newest_ms[row["partition"]], at_ms)
        lines.append(json.dumps({**row, "timestamp": at_ms}) + "\n")
    path.write_text("".join(lines))
    late = set()
    for number in range(45):
        partition, at_ms = number % PARTITIONS, NOW_MS - 6_000 + 1_000 * (number % 11) + 2_000 * number
        if at_ms < newest_ms[partition] - LATENESS_MS:
            late.add((partition, number // PARTITIONS))
        newest_ms[partition] = max(newest_ms[partition], at_ms)
        world.broker.append(INPUT, partition, b"x%d" % (number % 4), b'{"amount": 1}', at_ms, [])
    seed(world, path, at_the_beginning())
    for _ in range(2):
        serve(world, kill=kill)
    places = {(partition, offset) for partition in range(PARTITIONS) for offset in range(15)}
    assert {(partition, offset) for partition, offset, *_ in answered(world)} == places - late
    assert {partition for partition, offset in late if offset == 0} == ({1, 2} if len(keys) > 1 else {2})


class Exports:
    """Groups with a bound on lateness, of which one is exported and others begin with its states."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = self._world = World(input={"topic": INPUT, "max_lateness": "5s"})
        monkeypatch.setattr(stored, "load_config", lambda _path, stage=None: self._world.config())
        monkeypatch.setattr(stored, "load_model", lambda _model, base: SimpleNamespace(card=card()))
        monkeypatch.setattr(stored, "open_kafka_admin", lambda _config: Opened(self._world.broker, INPUT))

    def imported(self, folder: Path, suffix: str, **settings: Any) -> World:
        """A group that begins with the states of the first one."""
        file = folder / f"s.{suffix}"
        assert export_states(CONFIG, file, prefix=None, partition=None, stage=None) == 0
        other = World(**{**self.world.settings, **settings})
        seed(other, file, at_the_beginning())
        return other


def is_late(world: World, key: bytes, second: int) -> bool:
    before = len(world.answers())
    produce_at(world, key, second)
    serve(world)
    return len(world.answers()) == before


def produce_at(world: World, key: bytes, second: int) -> None:
    partition = partition_of(key, PARTITIONS)
    world.broker.append(INPUT, partition, key, b'{"amount": 1}', NOW_MS + 1_000 * second, [])


@pytest.mark.parametrize("gone", ["erased", "evicted", "without an answer"])
def test_the_stream_time_of_an_export_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    """Also where the newest event has left no state: an event that was too late before the export is so after it."""
    exports = Exports(monkeypatch)
    world = exports.world
    one, newest = [key for key in KEYS if partition_of(key, PARTITIONS) == partition_of(KEYS[0], PARTITIONS)][:2]
    if gone == "evicted":
        world.settings["state"] = {"max_keys": 1}
    produce_at(world, one, 0)
    produce_at(world, newest, 60)
    if gone == "evicted":
        produce_at(world, one, 58)
    if gone == "without an answer":
        log = world.broker.topics[INPUT].logs[partition_of(newest, PARTITIONS)]
        log[-1] = log[-1]._replace(value=b'{"amount": %g}' % MAGIC)
    serve(world)
    if gone == "erased":
        world.broker.append(STATES, partition_of(newest, PARTITIONS), *pack_request([newest]))
        produce_at(world, one, 58)
        serve(world)
    other = exports.imported(tmp_path, "jsonl")
    states = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [(state["key"], state["stream_time"]) for state in states] == [(one.decode(), "2023-11-14T22:14:20Z")]
    assert is_late(world, one, 54)
    assert is_late(other, one, 54)
    assert not is_late(world, one, 55)
    assert not is_late(other, one, 55)


def test_without_a_bound_an_export_names_no_stream_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exports = Exports(monkeypatch)
    exports.world.settings["input"] = {"topic": INPUT}
    produce_at(exports.world, KEYS[0], 60)
    serve(exports.world)
    exports.imported(tmp_path, "jsonl")
    (state,) = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    assert "stream_time" not in state
