"""A world without a broker: daemons on the memory transport, a model in plain numpy, and the right answers.

Tests reach into a daemon only through `World`: its loop, its phases and its stores may change under them.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from lstmstream.config import Config
from lstmstream.errors import TryAgain
from lstmstream.model.card import Card, Feature, StatePart, StateSpec
from lstmstream.serve.clock import Clock
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.health import Health
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.phase import Phase
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.startup import make_observers, start_daemon
from lstmstream.serve.state import CLEAN
from lstmstream.serve.state_records import (
    ENTITY_KEY,
    FLOOR,
    NULL_KEY,
    Floor,
    key_kind,
    unpack_floor,
    unpack_key,
    unpack_state,
)
from lstmstream.serve.step_model import StepInput, StepOutput
from lstmstream.transport.memory import LogRecord, MemoryBroker, MemoryTransport

PARTITIONS = 3
INPUT, OUTPUT, LETTERS, STATES = "in", "out", "t.dead-letter", "t.state"
MAGIC = 1e30  # the amount at which the model's output is not finite


def card(*, name: str = "fake", fingerprint: str = "f" * 32) -> Card:
    """Of the model below."""
    return Card(
        name=name,
        version="1",
        task="anomaly",
        features=(Feature("amount", "number", None, None),),
        state=StateSpec(2, (0.5, 0.0), (StatePart("mean", 0, (1,)), StatePart("count", 1, (1,)))),
        outputs=("state_out", "score"),
        threshold=None,
        fingerprint=fingerprint,
    )


class FakeStep:
    """A step in numpy: every event changes the state, so a lost or doubled one shows in all later answers.

    At an amount of MAGIC it returns infinity.
    """

    device = "cpu"

    def __init__(self, card: Card) -> None:
        self.card = card

    def step(self, given: StepInput) -> StepOutput:
        amount = np.nan_to_num(given.x[:, 0])
        mean, count = fold(given.state[:, 0], given.state[:, 1], amount)
        score = np.where(amount == np.float32(MAGIC), np.float32(np.inf), mean - count)
        return StepOutput(np.stack([mean, count], axis=1), score, None)


def amount_of(value: bytes | None) -> Any:
    """Of an event that is answered; None of one that becomes a dead letter."""
    try:
        amount = np.float32(json.loads(value or b"")["amount"])
    except (ValueError, TypeError, KeyError):
        return None
    return None if amount == np.float32(MAGIC) else amount


def fold(mean: Any, count: Any, amount: Any) -> tuple[Any, Any]:
    """float32 arithmetic, elementwise."""
    return np.float32(0.75) * mean + np.float32(0.25) * amount, count + np.float32(1)


class Late(Future[Any]):
    """A call that is made when its result is asked for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call

    def result(self, timeout: float | None = None) -> Any:
        return self._call()


class LateExecutor(Executor):
    """Makes its calls as late as can be: a commit in the background comes after the next batch was stepped."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        return Late(lambda: call(*args, **kwargs))


class World:
    """One memory broker, a clock, and any number of daemons."""

    def __init__(self, **settings: Any) -> None:
        self.now_s = 1_000.0
        self.broker = MemoryBroker(clock=lambda: self.now_s)
        self.broker.create(INPUT, PARTITIONS, {"retention.ms": "-1"})
        self.settings = settings
        self.daemons: list[Daemon] = []
        self.transports: dict[int, MemoryTransport] = {}
        self.metrics: dict[int, Metrics] = {}
        self.health: dict[int, Health] = {}
        self.faults: list[str] = []  # points at which to fail next, once each
        self.actions: list[tuple[str, Callable[[], None]]] = []  # what to do at a point next, once each
        self.busy: list[Daemon] = []  # those within a call: an action must not call them
        self.watch: Callable[[str], None] = lambda _point: None  # told of every call to the broker, before it
        self.call_s = 0.01  # a call to the broker takes a little time
        self.away = False  # whether the broker is: every call to it fails
        self.background = LateExecutor()
        self.broker.fault = self._fault

    def _fault(self, point: str) -> None:
        self.watch(point)
        self.now_s += self.call_s
        for number, (at, act) in enumerate(self.actions):
            if at == point:
                del self.actions[number]
                act()
                break
        if self.away:
            raise TryAgain("the broker is away")
        if point in self.faults:
            self.faults.remove(point)
            raise TryAgain(f"a fault at {point}")

    def produce(self, key: bytes | None, value: bytes, partition: int | None = None) -> None:
        """One event, a second later than the one before."""
        self.now_s += 1
        place = (sum(key) if key else 0) % PARTITIONS if partition is None else partition
        self.broker.append(INPUT, place, key, value, int(self.now_s * 1000), [("n", b"1")])

    def config(self, **changes: Any) -> Config:
        base: dict[str, Any] = {
            "name": "t",
            "model": "fake.onnx",
            "kafka": {"bootstrap_servers": "nowhere:1"},
            "input": {"topic": INPUT},
            "output": {"topic": OUTPUT},
            "state": {"checkpoint_interval": "5s"},
        }
        return Config.model_validate({**base, **self.settings, **changes})

    def start(self, step: Any = None, **changes: Any) -> Daemon:
        """A daemon that has joined the group and been given nothing yet."""
        life = self.make(step, **changes)
        daemon = life.begin()
        assert daemon is not None
        self.daemons.append(daemon)
        self.transports[id(daemon)] = life.transport
        self.metrics[id(daemon)] = life.metrics
        self.health[id(daemon)] = life.health
        return daemon

    def make(self, step: Any = None, **changes: Any) -> Life:
        """A daemon that has not begun."""
        life = Life(self, self.config(**changes), step or FakeStep(card()))
        self.transports[id(life)] = life.transport
        self.metrics[id(life)] = life.metrics
        return life

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def run(self, life: Life) -> int:
        """Its whole life, from the start until `watch` has it stop; the exit code."""
        daemon = life.begin()
        if daemon is None:
            life.transport.close(1.0)
            return 0
        if life.asked:
            daemon.stop()
        return daemon.run()

    def ask_to_stop(self, life: Life) -> None:
        """As the handler of SIGTERM, while it does something else."""
        life.asked = True
        if life.daemon is not None:
            life.daemon.stop()

    def step(self, daemon: Daemon) -> None:
        """One round of its loop. What doubts the group's offset is asked again at once: nobody waits here."""
        with self._busy(daemon):
            daemon.run_once()
        doubtful = [restore for restore in daemon._partitions.restoring() if restore.doubtful]
        self.now_s = max([self.now_s, *(restore.retry_at_s for restore in doubtful)])

    @contextmanager
    def _busy(self, daemon: Daemon) -> Iterator[None]:
        self.busy.append(daemon)
        try:
            yield
        finally:
            self.busy.remove(daemon)

    def phase(self, daemon: Daemon | Life) -> str:
        """Where in its life it is, as /readyz names it."""
        if isinstance(daemon, Life):
            return "starting" if daemon.daemon is None else daemon.daemon.phase.value
        return daemon.phase.value

    def metric(self, daemon: Daemon, name: str, **labels: str) -> float:
        """One of its metrics, without the prefix; 0 where it has none of that name and labels."""
        found = self.metrics[id(daemon)].registry.get_sample_value(f"lstmstream_{name}", labels)
        return 0.0 if found is None else found

    def assigned(self, daemon: Daemon) -> set[int]:
        """The partitions that the group has given it."""
        return set(self.broker.assignment(self.transports[id(daemon)].member_id) or ())

    def serving(self, daemon: Daemon | Life) -> set[int]:
        """The partitions whose states it has and whose events it answers."""
        found = daemon.daemon if isinstance(daemon, Life) else daemon
        return set() if found is None else found._partitions.running_numbers()

    def dirty_rows(self, daemon: Daemon | Life) -> int:
        """How many states in memory have changed since they were written, or by a batch whose outcome is not known."""
        found = daemon.daemon if isinstance(daemon, Life) else daemon
        if found is None:
            return 0
        return found._checkpointer.dirty_count() + sum(len(change.rows) for change in _pending_changes(found).values())

    def abort_transactions(self) -> None:
        """As the coordinator does with those that are open for too long."""
        self.broker.transactions.abort_all()

    def clean_rows(self, daemon: Daemon) -> Iterator[tuple[int, bytes | None, int]]:
        """(partition, key, last_offset) of each state in memory that the daemon takes for written.

        Those that a batch in flight has changed are not among them.
        """
        changes = _pending_changes(daemon)
        for partition in daemon._partitions.running():
            slab = partition.slab
            pending = set(changes[partition.number].rows.tolist()) if partition.number in changes else set()
            for key, row in slab.index.items():
                if slab.steps[row] and slab.first_unwritten[row] == CLEAN and row not in pending:
                    yield partition.number, key, int(slab.last_offset[row])

    def keys_in_memory(self, daemon: Daemon) -> int:
        """How many keys have a place in its tables, whether they have a state or not."""
        return sum(len(partition.slab) for partition in daemon._partitions)

    def make_again(self, topic: str) -> None:
        """Delete a topic and create it: the same name and settings, another id, and empty."""
        old = self.broker.topics.pop(topic)
        self.broker.create(topic, len(old.logs), old.settings)

    def damage_floor(self, partition: int) -> int:
        """Flip a bit of its newest floor record; the record's offset."""
        log = self.broker.topics[STATES].logs[partition]
        at, record = [(at, record) for at, record in enumerate(log) if key_kind(record.key)[0] == FLOOR][-1]
        value = bytearray(record.value or b"")
        value[len(value) // 2] ^= 1
        log[at] = record._replace(value=bytes(value))
        return record.offset

    @contextmanager
    def time_per_call(self, seconds: float) -> Iterator[None]:
        """Every call of a function within takes so long, so that the clock tells work from waiting, on any machine."""

        def count(_frame: Any, event: str, _arg: Any) -> None:
            if event in ("call", "c_call"):
                self.now_s += seconds

        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(None)

    def state_records(self) -> dict[tuple[int, bytes | None], int]:
        """Committed states, as a restore takes them: (partition, key) to the offset of the last event included."""
        found: dict[tuple[int, bytes | None], int] = {}
        for partition, floor in self._floors().items():
            for record in self.state_logs()[partition]:
                if record.key is None or key_kind(record.key)[0] not in (ENTITY_KEY, NULL_KEY):
                    continue
                if record.value is None:
                    found.pop((partition, unpack_key(record.key)), None)
                    continue
                stored = unpack_state(record.key, record.value)
                origins = {floor.origin, floor.seed or floor.origin}
                if stored.digest == floor.identity.digest and stored.origin in origins:
                    found[partition, unpack_key(record.key)] = stored.state.last_offset
        return found

    def floors(self) -> dict[int, int]:
        """The committed floor of each partition that has one."""
        return {partition: floor.offset for partition, floor in self._floors().items()}

    def _floors(self) -> dict[int, Floor]:
        logs = enumerate(self.state_logs())
        return {p: unpack_floor(r.value) for p, log in logs for r in log if r.value and key_kind(r.key)[0] == FLOOR}

    def state_logs(self) -> Sequence[Sequence[LogRecord]]:
        """The state topic: what is committed, and will be seen by whoever waits for it."""
        return self.broker.topics[STATES].logs if STATES in self.broker.topics else []

    def check_states(self) -> None:
        """What is not in a state record can be replayed: holds at any moment, whatever has happened.

        1. each state that a daemon takes for written has a record that is at least as new;
        2. each key's last event before the floor is in its record.
        """
        records = self.state_records()
        for daemon in self.daemons:
            for partition, key, offset in self.clean_rows(daemon):
                written = records.get((partition, key), -1)
                assert written >= offset, (
                    f"the state of {key!r} in partition {partition} counts as written up to offset {offset},"
                    f" but its record in the state topic is {'missing' if written < 0 else f'of {written}'}"
                )
        floors = self.floors()
        for partition, offset, key in self._counted():
            if offset < floors.get(partition, 0):
                written = records.get((partition, key), -1)
                assert written >= offset, (
                    f"the floor of partition {partition} is {floors[partition]},"
                    f" but the event of {key!r} at {offset} is in no state record"
                )

    def kill(self, daemon: Daemon) -> None:
        """As kill -9: no more steps; the group drops the member."""
        self.daemons.remove(daemon)
        self.broker.leave(self.transports[id(daemon)].member_id)

    def expire(self, daemon: Daemon) -> None:
        """The group drops a member that goes on: a zombie."""
        self.broker.leave(self.transports[id(daemon)].member_id)

    def rejoin(self, daemon: Daemon) -> None:
        """Its next poll comes between two generations: it has its partitions and their records, and no generation."""
        self.broker.rejoining.add(self.transports[id(daemon)].member_id)

    def lose_seek(self, daemon: Daemon, partition: int, *, back: int) -> None:
        """Its client goes on so many offsets before where it should, as libraries do at times."""
        positions = self.transports[id(daemon)]._positions
        epoch, offset = positions[partition]
        positions[partition] = (epoch, max(0, offset - back))

    def stop(self, daemon: Daemon) -> int:
        """As SIGTERM."""
        self.daemons.remove(daemon)
        with self._busy(daemon):
            code = daemon.drain()
        self.transports[id(daemon)].close(1.0)
        return code

    def settle(self, rounds: int = 200) -> None:
        """Step all daemons until everything is answered and restored."""
        for _ in range(rounds + self.unanswered()):  # a batch may be a single event
            if not (self.daemons and self.unanswered()) and all(
                daemon.phase is Phase.RUNNING for daemon in self.daemons
            ):
                return
            for daemon in list(self.daemons):
                self.step(daemon)
        raise AssertionError(f"{self.unanswered()} events are still unanswered")

    def unanswered(self) -> int:
        return sum(
            1
            for partition, log in enumerate(self.broker.topics[INPUT].logs)
            for record in log
            if record.offset >= self.broker.offsets.get(partition, 0)
        )

    def answers(self) -> list[Mapping[str, Any]]:
        """What a reader of the output topic sees, by partition in order."""
        logs = self.broker.topics[OUTPUT].logs
        return [json.loads(record.value or b"") for log in logs for record in log]

    def steps(self, key: bytes) -> list[int]:
        """The `steps` of a key's answers, in the order of the output."""
        return [answer["steps"] for answer in self.answers() if answer.get("key") == key.decode()]

    def _counted(self) -> Iterator[tuple[int, int, bytes | None]]:
        """(partition, offset, key) of each event that a state must contain once it is answered."""
        for partition, log in enumerate(self.broker.topics[INPUT].logs):
            erased = {key: at for at, key in self.erased_at(partition)}
            for record in log:
                if amount_of(record.value) is not None and record.offset >= erased.get(record.key, 0):
                    yield partition, record.offset, record.key

    def erased_at(self, partition: int) -> list[tuple[int, bytes | None]]:
        """(input offset, key) of each erasure that the state topic tells of, ascending."""
        if STATES not in self.broker.topics:
            return []
        keys = {record.key for record in self.broker.topics[INPUT].logs[partition]}
        salt = self.broker.topics[INPUT].topic_id.encode()
        names = {blake2b((b"\x02" if k is None else b"\x01" + k), digest_size=16, key=salt).digest(): k for k in keys}
        told = [one.key for one in self.state_logs()[partition] if one.key and one.key[:1] == b"\x04" and one.value]
        return sorted(
            ((int.from_bytes(key[17:], "big"), names[key[1:17]]) for key in told if key[1:17] in names),
            key=lambda one: one[0],
        )

    def expected(self) -> list[tuple[int, int, float, int]]:
        """Each key's events folded one at a time, in the order of the input."""
        found = []
        for partition, log in enumerate(self.broker.topics[INPUT].logs):
            states: dict[bytes | None, tuple[Any, Any, int]] = defaultdict(lambda: (np.float32(0.5), np.float32(0), 0))
            erased = self.erased_at(partition)
            for record in log:
                while erased and erased[0][0] <= record.offset:
                    states.pop(erased.pop(0)[1], None)
                mean, count, steps = states[record.key]
                amount = amount_of(record.value)
                if amount is None:
                    continue
                mean, count = fold(mean, count, amount)
                states[record.key] = mean, count, steps + 1
                found.append((partition, record.offset, float(str(mean - count)), steps + 1))
        return found

    def check(self) -> None:
        """Every event answered once, rightly, in order; with at_least_once perhaps more often, each time the same."""
        seen = [(a["source"]["partition"], a["source"]["offset"], a["score"], a["steps"]) for a in self.answers()]
        if self.config().delivery == "at_least_once":
            seen = sorted(set(seen))
        assert seen == self.expected()


def _pending_changes(daemon: Daemon) -> Mapping[int, ChangedRows]:
    """The states that a transaction whose outcome is not known has changed, by partition."""
    pending = daemon._committer.pending
    return {} if pending is None or pending.result is None else pending.result.changed


class Life:
    """A daemon from before its start: its clients, its metrics, and itself once it has begun."""

    def __init__(self, world: World, config: Config, step: Any) -> None:
        self.transport = MemoryTransport(world.broker, INPUT, exactly_once=config.delivery == "exactly_once")
        self.metrics = Metrics()
        self.health = Health(stall_after=config.http.stall_after, clock=lambda: world.now_s, blocked={})
        self.daemon: Daemon | None = None
        self.asked = False  # to stop
        self._world, self._config, self._step = world, config, step

    def begin(self) -> Daemon | None:
        """Connect and join; None if asked to stop meanwhile."""
        world, config = self._world, self._config
        clock = Clock(monotonic_s=lambda: world.now_s, wall_s=lambda: world.now_s, sleep=world._sleep)
        timer = StageTimer(clock.monotonic_s)
        observer = make_observers(config, self._step.card, self.metrics, self.health, timer, clock)
        self.daemon = start_daemon(
            config,
            self._step,
            self.transport,
            observer,
            timer,
            clock=clock,
            stopping=lambda: self.asked,
            background=world.background,
        )
        return self.daemon


class _Killed(BaseException):
    """A daemon is killed: nothing of it may catch this."""


@dataclass
class Crash:
    """Whether it came to the call at which it was to be killed."""

    happened: bool = False


@contextmanager
def crash_at_call(world: World, point: str, nth: int) -> Iterator[Crash]:
    """What is within ends before call number `nth` of this kind, counted from 0. The caller takes the daemon away."""
    crash, seen = Crash(), 0

    def watch(at: str) -> None:
        nonlocal seen
        seen += at == point
        if seen > nth:
            raise _Killed

    world.watch = watch
    try:
        yield crash
    except _Killed:
        crash.happened = True
    finally:
        world.watch = lambda _point: None
