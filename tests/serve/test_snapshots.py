"""`state.dir`: a restore from a snapshot is the restore from the topic, whatever happens to the snapshot."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.records import RecordBatch
from lstmstream.serve import loop_share, snapshot_merge, snapshots
from lstmstream.serve.config_warnings import config_warnings, unwritable_snapshots
from lstmstream.serve.daemon import POLL_TIMEOUT_S, Daemon
from lstmstream.serve.snapshot_file import SnapshotFile, SnapshotHead, SnapshotRefused, SnapshotWriter, other_records
from lstmstream.serve.state_records import ENTITY_KEY, FLOOR, floor_key, pack_key
from lstmstream.transport.memory import MemoryReader, MemoryTransport
from lstmstream.transport.ports import PollResult
from tests.serve.memory_world import INPUT, PARTITIONS, STATES, FakeStep, World, card
from tests.serve.restore_world import rows_of

KEYS = [b"a", b"b", b"c", b"d", None, b"\xff\x00"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(state={"dir": str(tmp_path), "checkpoint_interval": "5s"})


def files(world: World) -> list[Path]:
    return sorted((Path(world.settings["state"]["dir"]) / STATES).glob("*.snapshot"))


def produce(world: World, count: int) -> None:
    for number in range(count):
        world.produce(KEYS[number % len(KEYS)], b'{"amount": %d}' % number)


def let_it_write(world: World, daemon: Daemon, *, seconds: float = 3 * snapshots.LOOK_INTERVAL_S) -> None:
    """Time goes by, in which each partition is looked at."""
    for _ in range(round(seconds / 5)):
        world.now_s += 5
        world.step(daemon)


def serve(world: World, count: int, *, kill: bool = False, **changes: Any) -> Daemon:
    """A daemon's life with so many events, which writes snapshots."""
    daemon = world.start(**changes)
    produce(world, count)
    world.settle()
    let_it_write(world, daemon)
    (world.kill if kill else world.stop)(daemon)
    return daemon


def restored_from(world: World, **changes: Any) -> tuple[dict[str, float], dict[int, Any]]:
    """Where a new daemon has its states from, and what they are; it is killed."""
    daemon = world.start(**changes)
    world.settle()
    found = {source: world.metric(daemon, "restores_total", source=source) for source in ("snapshot", "topic")}
    states = {number: rows_of(slab) for number, slab in daemon.states.slabs.items()}
    world.kill(daemon)
    return found, states


def test_a_restore_uses_it_and_the_rest_of_the_topic(world: World) -> None:
    serve(world, 30)
    assert len(files(world)) == PARTITIONS
    daemon = world.start()
    produce(world, 20)
    world.settle()
    world.stop(daemon)
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}
    assert (restored_from(world, state={})[1], sum(map(len, states.values()))) == (states, len(KEYS))
    serve(world, 10)
    world.check()


def test_what_it_says_of_itself(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    daemon = world.start()
    produce(world, 30)
    world.settle()
    let_it_write(world, daemon)
    said = [record for record in caplog.records if record.getMessage() == "snapshot written"]
    assert {record.partition for record in said} == set(range(PARTITIONS))  # type: ignore[attr-defined]
    newest = {record.partition: record for record in said}
    for number, path in ((int(path.name.split("-")[0]), path) for path in files(world)[-PARTITIONS:]):
        labels = {"topic": INPUT, "partition": str(number)}
        assert world.metric(daemon, "state_snapshot_bytes", **labels) == path.stat().st_size
        taken_s = newest[number].taken_ms / 1000  # type: ignore[attr-defined]
        assert world.metric(daemon, "state_snapshot_timestamp_seconds", **labels) == taken_s
        assert path.stat().st_mode & 0o777 == 0o600
    assert world.metric(daemon, "state_snapshots_total", outcome="written") == len(said)
    assert world.metric(daemon, "state_snapshots_total", outcome="failed") == 0
    assert (Path(world.settings["state"]["dir"]) / STATES).stat().st_mode & 0o777 == 0o700


def test_an_idle_partition_is_not_written_again(world: World) -> None:
    serve(world, 30)
    before = files(world)
    daemon = world.start()
    world.settle()
    let_it_write(world, daemon, seconds=snapshots.MAX_AGE_S + 2 * snapshots.LOOK_INTERVAL_S)
    assert files(world) == before
    for path in before:  # and what it found is known
        labels = {"topic": INPUT, "partition": path.name.split("-")[0]}
        assert world.metric(daemon, "state_snapshot_bytes", **labels) == path.stat().st_size


def test_two_are_kept(world: World) -> None:
    daemon = world.start()
    for _ in range(4):
        produce(world, 6)
        world.settle()
        let_it_write(world, daemon, seconds=snapshots.MAX_AGE_S + 2 * snapshots.LOOK_INTERVAL_S)
    assert len(files(world)) == 2 * PARTITIONS
    assert not [path for path in files(world)[0].parent.iterdir() if path not in files(world)]


def test_a_key_that_was_deleted_stays_deleted(world: World) -> None:
    """By somebody's tombstone, below the snapshot and above it."""
    serve(world, 30)
    digest = digest_of(world)
    (place,) = {p for p, log in enumerate(logs(world)) for r in log if r.key == pack_key(b"a", digest)}
    world.broker.append(STATES, place, pack_key(b"a", digest), None)
    assert b"a" not in restored_from(world)[1][place]
    serve(world, 0)
    let_age(world, snapshots.MAX_AGE_S)
    serve(world, 0)
    found, states = restored_from(world)
    assert found["topic"] == 0
    assert b"a" not in states[place]


def logs(world: World) -> Any:
    return world.state_logs()


def digest_of(world: World) -> bytes:
    with SnapshotFile(files(world)[0]) as snapshot:
        return bytes.fromhex(snapshot.head.identity)


def let_age(world: World, seconds: float) -> None:
    world.now_s += seconds


# -- what is doubtful


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 40)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def flip(at: int) -> Callable[[Path], None]:
    def flip_there(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)

    return flip_there


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def forbid(path: Path) -> None:
    path.unlink()
    path.mkdir()  # as root, a file's mode would not hinder


DAMAGE = {
    "cut": (cut, "cut short"),
    "empty": (cut_to_nothing, "cut short"),
    "head": (flip(40), "head is damaged"),
    "magic": (flip(0), "not a snapshot"),
    "block": (flip(-100), "block 0 is damaged"),
    "end": (flip(-1), "its end is damaged"),
    "longer": (append, "its end is damaged"),
    "unreadable": (forbid, "directory"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_refused_and_the_topic_is_read(
    world: World, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    serve(world, 30)
    _, right = restored_from(world, state={})
    act, reason = DAMAGE[damage]
    for path in files(world):
        act(path)
    found, states = restored_from(world)
    assert found == {"snapshot": 0, "topic": PARTITIONS}
    assert states == right
    assert_refused(caplog, reason)
    serve(world, 10)
    world.check()


def assert_refused(caplog: pytest.LogCaptureFixture, reason: str, count: int = PARTITIONS) -> None:
    said = [r.getMessage() for r in caplog.records if "is not used" in r.getMessage()]
    assert len(said) >= count
    for line in said:
        assert reason in line


def test_every_flipped_byte_is_noticed(world: World) -> None:
    serve(world, 12)
    path = files(world)[0]
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(SnapshotRefused), SnapshotFile(path) as snapshot:
            list(snapshot.blocks())
    for size in range(0, len(content), 3):
        path.write_bytes(content[:size])
        with pytest.raises(SnapshotRefused):
            SnapshotFile(path)


def test_the_newest_sound_one_counts(world: World) -> None:
    daemon = world.start()
    for _ in range(2):
        produce(world, 12)
        world.settle()
        let_it_write(world, daemon, seconds=snapshots.MAX_AGE_S + 2 * snapshots.LOOK_INTERVAL_S)
    world.stop(daemon)
    by_partition: dict[str, list[Path]] = {}
    for path in files(world):
        by_partition.setdefault(path.name.split("-")[0], []).append(path)
    assert daemon._snapshots is not None
    for number, paths in by_partition.items():
        older, newer = sorted(paths, key=lambda path: int(path.name.split("-")[2]))
        found = daemon._snapshots.folder.open(int(number), 0, 1_000)
        assert found is not None
        with found:
            assert found.path == newer
        cut(newer)
        assert older.exists()
    sources, states = restored_from(world)
    assert sources == {"snapshot": PARTITIONS, "topic": 0}
    assert restored_from(world, state={})[1] == states


def rewrite(path: Path, change: Callable[[SnapshotHead], SnapshotHead]) -> None:
    """The same snapshot with another head; all checksums are right."""
    with SnapshotFile(path) as snapshot:
        writer = SnapshotWriter(path.with_name("new"), change(snapshot.head))
        for block in snapshot.blocks():
            writer.add(block)
        writer.finish()
    path.with_name("new").rename(path)


DOUBTS: dict[str, tuple[Callable[[SnapshotHead], SnapshotHead], str]] = {
    "model": (lambda head: head._replace(identity="0" * 32), "its identity is"),
    "state topic": (lambda head: head._replace(state_topic="other"), "its state topic is other"),
    "state topic made again": (lambda head: head._replace(state_topic_id="x"), "its id of the state topic is x"),
    "input made again": (lambda head: head._replace(input_topic_id="x"), "its id of the input topic is x"),
    "partitions": (lambda head: head._replace(partitions=2), "its number of partitions is 2"),
    "partition": (lambda head: head._replace(partition=head.partition + 1), "its partition is"),
    "newer than the topic": (lambda head: head._replace(offset=10_000), "newer than the state topic"),
    "of the future": (lambda head: head._replace(taken_ms=head.taken_ms + 3_600_000), "s in the future"),
    "few tombstones": (lambda head: head._replace(tombstones_ms=1000), "more than half of the state topic's"),
}


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubtful_one_is_refused_and_the_topic_is_read(
    world: World, doubt: str, caplog: pytest.LogCaptureFixture
) -> None:
    serve(world, 30)
    _, right = restored_from(world, state={})
    change, reason = DOUBTS[doubt]
    for path in files(world):
        rewrite(path, change)
    found, states = restored_from(world)
    assert (found, states) == ({"snapshot": 0, "topic": PARTITIONS}, right)
    assert_refused(caplog, reason)
    serve(world, 10)
    world.check()


def test_of_another_model_it_is_not_looked_at(world: World) -> None:
    serve(world, 30)
    daemon = world.start(FakeStep(card(fingerprint="e" * 32)), on_model_change="reset")
    world.settle()
    assert world.metric(daemon, "restores_total", source="snapshot") == 0
    let_it_write(world, daemon)
    world.kill(daemon)
    found, _ = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}


def folder(world: World) -> Path:
    return Path(world.settings["state"]["dir"]) / STATES


def test_where_records_after_it_were_deleted_it_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    serve(world, 30)
    for _ in range(2):
        daemon = world.start(state={"checkpoint_interval": "5s"})
        produce(world, 30)
        world.settle()
        world.stop(daemon)
    for number, log in enumerate(logs(world)):
        newest = {record.key: record.offset for record in log}
        world.broker.truncate(STATES, number, min(newest.values()))
    _, right = restored_from(world, state={})
    found, states = restored_from(world)
    assert (found, states) == ({"snapshot": 0, "topic": PARTITIONS}, right)
    assert_refused(caplog, "the state topic begins at")


def test_where_tombstones_may_be_gone_it_is_refused(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A key was deleted after it, and compaction has taken the tombstone away, as it may after a day."""
    serve(world, 30)
    record_key = pack_key(b"a", digest_of(world))
    (place,) = {p for p, log in enumerate(logs(world)) for r in log if r.key == record_key}
    world.broker.append(STATES, place, record_key, None)
    log = logs(world)[place]
    log[:] = [record for record in log if record.key != record_key]
    let_age(world, 12 * 3600)
    found, states = restored_from(world)
    assert found == {"snapshot": 0, "topic": PARTITIONS}
    assert b"a" not in states[place]
    assert_refused(caplog, "s old, more than half")


def test_where_the_age_of_tombstones_is_not_known_it_is_refused(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(world, 30)
    monkeypatch.setattr("lstmstream.transport.ports.TopicInfo.settings_denied", True)
    found, _ = restored_from(world)
    assert found == {"snapshot": 0, "topic": PARTITIONS}
    assert_refused(caplog, "DESCRIBE_CONFIGS")


def test_it_is_renewed_before_it_is_too_old(world: World, caplog: pytest.LogCaptureFixture) -> None:
    serve(world, 30)
    daemon = world.start()
    world.settle()
    let_it_write(world, daemon)
    for _ in range(5):
        let_age(world, 3600 * 4)
        let_it_write(world, daemon, seconds=50)
    world.kill(daemon)
    assert restored_from(world)[0]["topic"] == 0
    assert not [record for record in caplog.records if "is not used" in record.getMessage()]


# -- what cannot be written


@contextlib.contextmanager
def no_room(monkeypatch: pytest.MonkeyPatch, call: str, after: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        left = after
        original = getattr(os, call)

        def full(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(28, "No space left on device")
            return original(*args, **kwargs)

        patch.setattr(f"lstmstream.serve.snapshot_file.os.{call}", full)
        yield


@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_full_disk_is_a_warning(
    world: World, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with no_room(monkeypatch, call, 0):
        daemon = world.start()
        produce(world, 30)
        world.settle()
        let_it_write(world, daemon)
    assert [r for r in caplog.records if "no snapshot of the states could be written" in r.getMessage()]
    assert world.metric(daemon, "state_snapshots_total", outcome="failed") >= PARTITIONS
    assert not files(world)
    assert not list(folder(world).iterdir()) if folder(world).exists() else True
    let_it_write(world, daemon)
    assert len(files(world)) == PARTITIONS
    world.stop(daemon)
    world.check()


def test_a_folder_that_is_a_file_is_a_warning(world: World, caplog: pytest.LogCaptureFixture) -> None:
    Path(world.settings["state"]["dir"], STATES).write_text("")
    serve(world, 30)
    assert [r for r in caplog.records if "no snapshot of the states could be written" in r.getMessage()]
    serve(world, 3)
    world.check()


def test_a_record_that_is_not_sound_gives_no_snapshot(world: World, caplog: pytest.LogCaptureFixture) -> None:
    daemon = world.start()
    produce(world, 30)
    world.settle()
    let_it_write(world, daemon)
    before = files(world)
    for number, log in enumerate(logs(world)):
        at, record = [(at, r) for at, r in enumerate(log) if r.key[:1] == ENTITY_KEY][-1]
        value = bytearray(record.value or b"")
        value[-9] ^= 4
        world.broker.append(STATES, number, record.key, bytes(value))
        assert at >= 0
    let_it_write(world, daemon, seconds=snapshots.MAX_AGE_S + 3 * snapshots.LOOK_INTERVAL_S)
    assert files(world) == before
    assert [r for r in caplog.records if "a state record that is not sound" in r.getMessage()]


def test_a_floor_that_is_not_sound_gives_no_snapshot(world: World, caplog: pytest.LogCaptureFixture) -> None:
    daemon = world.start()
    produce(world, 30)
    world.settle()
    let_it_write(world, daemon, seconds=40)  # it has nothing left to write to the topic
    for number in range(PARTITIONS):
        world.broker.append(STATES, number, floor_key(daemon._checkpointer.identity.digest), b"{}")
    for path in files(world):
        path.unlink()
    let_it_write(world, daemon)
    assert not files(world)
    assert [r for r in caplog.records if "the floor record at offset" in r.getMessage()]


# -- crashes


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace", "unlink", "read"])
def test_a_crash_at_any_call_changes_nothing(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that write the third snapshot of each partition."""
    nth = 0
    while crash_at(tmp_path / str(nth), call, nth, monkeypatch):
        nth += 1
    assert nth > 0


def crash_at(path: Path, call: str, nth: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether there was such a call."""
    world = World(state={"dir": str(path), "checkpoint_interval": "5s"})
    daemon = world.start()
    for _ in range(2):
        produce(world, 12)
        world.settle()
        let_it_write(world, daemon)
        let_age(world, snapshots.MAX_AGE_S)
    produce(world, 12)
    world.settle()
    seen, crashed, unlink = 0, True, Path.unlink

    def unlink_alive(self: Path, *, missing_ok: bool = False) -> None:
        """Who is dead clears nothing away."""
        if seen <= nth:
            unlink(self, missing_ok=missing_ok)

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen > nth:
                raise _Killed
            return original(*args, **kwargs)

        return watching

    with monkeypatch.context() as patch, contextlib.suppress(_Killed):
        patch.setattr(Path, "unlink", unlink_alive)
        if call in ("open", "fsync"):
            patch.setattr(snapshot_merge.os, call, watched(getattr(os, call)))
        elif call == "write":
            patch.setattr(snapshot_merge.SnapshotWriter, "_write", watched(snapshot_merge.SnapshotWriter._write))
        elif call == "read":
            patch.setattr(snapshot_merge.SnapshotFile, "next", watched(snapshot_merge.SnapshotFile.next))
        else:
            patch.setattr(Path, call, watched(getattr(Path, call)))
        let_it_write(world, daemon)
        crashed = False
    world.kill(daemon)
    world.busy.clear()
    for file in files(world):  # what has the name of a snapshot is a whole one, at any moment
        with SnapshotFile(file) as snapshot:
            assert len(list(snapshot.blocks())) <= 1
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}
    assert restored_from(world, state={})[1] == states
    serve(world, 6)
    world.check()
    shutil.rmtree(path)
    return crashed and nth < 40


def test_what_does_not_fit_into_memory_is_written_on_the_way(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        world.produce(b"key%d" % number, b'{"amount": 1}')
    daemon = world.start(state={})
    world.settle()
    world.stop(daemon)
    monkeypatch.setattr(snapshots, "TAIL_BYTES", 600)
    world.broker.read_records = 1
    written = []
    original = snapshots.write_snapshot

    def note(job: Any, *more: Any) -> Any:
        written.append(job.base)
        return original(job, *more)

    monkeypatch.setattr(snapshots, "write_snapshot", note)
    daemon = world.start()
    world.settle()
    let_it_write(world, daemon, seconds=600)
    assert sum(base is not None for base in written) > PARTITIONS
    assert len(files(world)) >= PARTITIONS
    assert not list(folder(world).glob(".*"))
    world.stop(daemon)
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}
    assert restored_from(world, state={})[1] == states
    assert sum(map(len, states.values())) == 60


def test_a_partition_that_is_lost_meanwhile_is_given_up(world: World) -> None:
    world.broker.read_records = 1
    first = world.start()
    produce(world, 60)
    world.settle()
    making = first._snapshots
    assert making is not None
    while making._current is None:
        world.now_s += 1
        world.step(first)
    world.now_s += 5
    making.tick([], restoring=False, idle=False)
    assert making._current is None
    world.start()
    world.settle()
    let_it_write(world, first, seconds=30)
    for daemon in list(world.daemons):
        let_it_write(world, daemon)
    assert {int(path.name.split("-")[0]) for path in files(world)} == set(range(PARTITIONS))
    for daemon in list(world.daemons):
        world.stop(daemon)
    world.check()


@pytest.mark.parametrize("point", ["bounds", "describe", "read", "open_reader"])
def test_a_broker_that_fails_meanwhile_is_no_failure_of_the_stream(world: World, point: str) -> None:
    daemon = world.start()
    produce(world, 30)
    world.settle()
    rebalances = world.metric(daemon, "rebalances_total")
    world.faults += [point] * 2
    let_it_write(world, daemon, seconds=8 * snapshots.LOOK_INTERVAL_S)
    assert len(files(world)) >= PARTITIONS
    assert world.metric(daemon, "rebalances_total") == rebalances
    world.stop(daemon)
    world.check()


def test_incidents_are_in_it(tmp_path: Path) -> None:
    settings = {
        "alerts": {"cooldown": "1h"},
        "output": {"topic": "out", "alerts_topic": "alerts", "threshold": -1e9},
        "state": {"dir": str(tmp_path), "checkpoint_interval": "5s"},
    }
    world = World(**settings)
    serve(world, 30)
    daemon = world.start()
    world.settle()
    assert world.metric(daemon, "restores_total", source="snapshot") == PARTITIONS
    incidents = {n: dict(slab.incidents) for n, slab in daemon.states.slabs.items()}
    world.kill(daemon)
    other = world.start(state={})
    world.settle()
    assert {n: dict(slab.incidents) for n, slab in other.states.slabs.items()} == incidents
    assert sum(map(len, incidents.values())) == len(KEYS)


@pytest.mark.parametrize("idle", [False, True])
def test_a_slice_is_short_and_the_rest_of_the_time_is_the_streams(world: World, idle: bool) -> None:
    """By the clock of the world, in which a call to the broker takes time."""
    daemon = world.start()
    produce(world, 90)
    world.settle()
    let_it_write(world, daemon, seconds=30)
    world.broker.read_records = 1
    making, reads = daemon._snapshots, list[float]()
    assert making is not None
    world.watch = lambda point: reads.append(world.now_s) if point == "read" else None
    while not files(world):
        world.now_s += 0.001
        making.tick(daemon._partitions.running(), restoring=False, idle=idle)
    assert len(reads) > 4
    spent_s = len(reads) * world.call_s
    fraction = loop_share.IDLE_FRACTION if idle else loop_share.BUSY_FRACTION
    assert spent_s > loop_share.SLICE_S
    assert spent_s == pytest.approx((reads[-1] - reads[0]) * fraction, abs=2 * loop_share.SLICE_S)


def test_a_poll_waits_no_longer_than_the_rest_between_two_slices(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = world.start()
    produce(world, 90)
    world.settle()
    let_it_write(world, daemon, seconds=30)
    world.broker.read_records = 1
    making, waits_s, inner = daemon._snapshots, dict[bool, set[float]](), MemoryTransport.poll
    assert making is not None

    def poll(self: MemoryTransport, timeout_s: float, max_events: int) -> PollResult:
        waits_s.setdefault(making._reads, set()).add(timeout_s)
        return inner(self, timeout_s, max_events)

    monkeypatch.setattr(MemoryTransport, "poll", poll)
    while not files(world):
        world.now_s += 0.001
        world.step(daemon)
    assert waits_s[False] == {POLL_TIMEOUT_S}
    assert max(waits_s[True]) < 4 * loop_share.SLICE_S


def test_one_that_turns_out_to_be_damaged_late_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key of a block that was loaded already is not there any more: it was deleted meanwhile."""
    monkeypatch.setattr(snapshot_merge, "BLOCK_STATES", 1)
    for number in range(40):
        world.produce(b"key%d" % number, b'{"amount": 1}', 0)
    serve(world, 0)  # its end writes all states to the topic
    let_age(world, snapshots.MAX_AGE_S)
    serve(world, 0)
    old, path = sorted(path for path in files(world) if path.name.startswith("0-"))
    old.unlink()
    with SnapshotFile(path) as snapshot:
        keys = [key for block in snapshot.blocks() for key in block.keys]
    assert len(keys) == 40
    record_key = pack_key(keys[0], digest_of(world))
    log = logs(world)[0]
    log[:] = [record for record in log if record.key != record_key]
    flip(-100)(path)
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS - 1, "topic": 1}
    assert set(states[0]) == set(keys[1:])
    assert_refused(caplog, "block 39 is damaged", 1)


def test_a_block_of_another_file_or_place_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_merge, "BLOCK_STATES", 1)
    for number in range(3):
        world.produce(b"key%d" % number, b'{"amount": 1}', 0)
    serve(world, 0)  # its end writes all states to the topic
    let_age(world, snapshots.MAX_AGE_S)
    serve(world, 0)
    old, path = sorted(path for path in files(world) if path.name.startswith("0-"))
    old.unlink()
    content = path.read_bytes()
    other = path.with_name("other")
    shutil.copy(path, other)
    rewrite(other, lambda head: head._replace(taken_ms=head.taken_ms + 1))
    assert len(other.read_bytes()) == len(content)
    with SnapshotFile(path) as snapshot:
        start = snapshot._file.tell()
    size = (len(content) - start - 64) // 3
    first, second = content[start : start + size], content[start + size : start + 2 * size]
    for wrong in (
        content[:start] + other.read_bytes()[start : start + size] + content[start + size :],
        content[:start] + second + first + content[start + 2 * size :],
        content[:start] + first + first + content[start + 2 * size :],
    ):
        path.write_bytes(wrong)
        with pytest.raises(SnapshotRefused), SnapshotFile(path) as snapshot:
            list(snapshot.blocks())


def test_two_processes_share_a_folder(world: World) -> None:
    """The owner of before, which does not know yet that it has lost the partition, and the new one."""
    first = world.start()
    produce(world, 30)
    world.settle()
    writer = first._snapshots
    assert writer is not None
    second = world.start()
    world.settle()
    let_it_write(world, second, seconds=30)
    running = [partition for daemon in (first, second) for partition in daemon._partitions.running()]
    for _ in range(40):
        world.now_s += 5
        writer.tick(running, restoring=False, idle=False)
        second._snapshots.tick(running, restoring=False, idle=False)  # type: ignore[union-attr]
    assert {path.name.split("-")[0] for path in files(world)} == set(map(str, range(PARTITIONS)))
    assert not list(folder(world).glob(".*"))
    for daemon in list(world.daemons):
        world.kill(daemon)
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}
    assert restored_from(world, state={})[1] == states


def test_records_that_are_not_states_are_in_it_as_they_were(world: World) -> None:
    """The newest of each record key, in their order: here the floors of two models."""
    serve(world, 30)
    daemon = world.start(FakeStep(card(fingerprint="e" * 32)), on_model_change="reset")
    for _ in range(2):
        produce(world, 30)
        world.settle()
        let_it_write(world, daemon)
        let_age(world, snapshots.MAX_AGE_S)
    world.kill(daemon)
    newest: dict[int, SnapshotHead] = {}
    for path in sorted(files(world)):
        with SnapshotFile(path) as snapshot:
            if snapshot.head.identity == daemon._checkpointer.identity.digest.hex():
                newest[snapshot.head.partition] = snapshot.head
    assert len(newest) == PARTITIONS
    for number, head in newest.items():
        below = [record for record in logs(world)[number] if record.offset < head.offset]
        of_key = {record.key: record for record in below if record.key[:1] == FLOOR}
        expected = sorted((record.offset, record.key, record.value) for record in of_key.values())
        assert [(record.offset, record.key, record.value) for record in head.others] == expected
        assert len(expected) == 2
        assert other_records(head).offsets.tolist() == [offset for offset, _, _ in expected]


@pytest.mark.parametrize("place", ["file", "file/below", "new/below"])
def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    config = World(state={"dir": str(tmp_path / place)}).config()
    found = unwritable_snapshots(config)
    assert (found is None) == (place == "new/below")
    assert found is None or str(tmp_path / "file") in found
    assert config_warnings(config).count(found or "") == (found is not None)


def test_a_record_of_an_unknown_kind_gives_no_snapshot_while_it_is_there(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a later version perhaps: nobody knows what it says about the states."""
    daemon = world.start()
    produce(world, 30)
    world.settle()
    for number in range(PARTITIONS):
        world.broker.append(STATES, number, b"\x7f" + bytes(20), b"?")
    let_it_write(world, daemon)
    assert not files(world)
    assert [r for r in caplog.records if "that is not sound" in r.getMessage()]
    for number in range(PARTITIONS):
        world.broker.append(STATES, number, b"\x7f" + bytes(20), None)
    let_it_write(world, daemon)
    assert len(files(world)) == PARTITIONS


def test_blocks_stay_large_however_often_it_is_renewed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_merge, "BLOCK_STATES", 8)
    daemon = world.start()
    random = np.random.default_rng(1)
    for _ in range(12):
        for number in random.integers(40, size=9):
            world.produce(b"key%d" % number, b'{"amount": 1}', 0)
        world.settle()
        let_it_write(world, daemon, seconds=60)
        let_age(world, snapshots.MAX_AGE_S)
    newest = max((path for path in files(world) if path.name.startswith("0-")), key=lambda path: path.name)
    with SnapshotFile(newest) as snapshot:
        sizes = [len(block.keys) for block in snapshot.blocks()]
    assert sum(sizes) > 12
    assert all(4 <= size <= 12 for size in sizes[:-1])
    world.kill(daemon)
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}
    assert restored_from(world, state={})[1] == states


def failures(caplog: pytest.LogCaptureFixture, text: str) -> int:
    said = [record.getMessage() for record in caplog.records]
    return sum("no snapshot of the states could be written" in line and text in line for line in said)


def test_a_topic_that_gives_nothing_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as behind a transaction of somebody else that hangs."""
    daemon = world.start()
    produce(world, 30)
    world.settle()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryReader, "next", lambda *_: RecordBatch.empty(STATES))
        let_it_write(world, daemon, seconds=snapshots.LOOK_INTERVAL_S + snapshots.STUCK_S + 20)
    assert failures(caplog, "cannot be read beyond offset 0") == 1
    let_it_write(world, daemon)
    assert len(files(world)) == PARTITIONS


def test_reading_for_longer_than_tombstones_stay_is_given_up(world: World, caplog: pytest.LogCaptureFixture) -> None:
    daemon = world.start()
    produce(world, 30)
    world.settle()
    world.broker.read_records = 1
    world.broker.topics[STATES].settings["delete.retention.ms"] = "20"  # a read takes 10 ms
    let_it_write(world, daemon)
    assert failures(caplog, "takes longer than half of its delete.retention.ms")
    assert not files(world)


def test_a_base_that_is_damaged_is_left_out(world: World, caplog: pytest.LogCaptureFixture) -> None:
    daemon = world.start()
    produce(world, 30)
    world.settle()
    let_it_write(world, daemon)
    before = files(world)
    for path in before:
        flip(-100)(path)
    let_age(world, snapshots.MAX_AGE_S)
    produce(world, 6)
    world.settle()
    let_it_write(world, daemon, seconds=5 * snapshots.LOOK_INTERVAL_S)
    assert failures(caplog, "block 0 is damaged")
    assert_refused(caplog, "block 0 is damaged")
    assert len(set(files(world)) - set(before)) == PARTITIONS
    world.stop(daemon)
    found, states = restored_from(world)
    assert found == {"snapshot": PARTITIONS, "topic": 0}
    assert restored_from(world, state={})[1] == states


def test_the_figures_of_a_partition_that_went_meanwhile_stay_away(world: World) -> None:
    """Its snapshot is written to the end, since it is right; the new owner tells of it."""
    daemon = world.start()
    produce(world, 30)
    world.settle()
    making = daemon._snapshots
    assert making is not None
    while making._current is None or making._current.job is None:
        world.now_s += 1
        world.step(daemon)
    number = making._current.partition
    labels = {"topic": INPUT, "partition": str(number)}
    for _ in range(3):
        world.now_s += 5
        making.tick([], restoring=False, idle=False)
    assert [path for path in files(world) if path.name.startswith(f"{number}-")]
    assert world.metric(daemon, "state_snapshot_bytes", **labels) == 0
