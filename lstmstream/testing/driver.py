"""`TestDriver`: the daemon, its model and a broker in one process, for a user's own tests.

The model is Kafka's TopologyTestDriver: pipe records in, read what comes out, move the time, break things. The daemon
is the real one, with the real model; only the broker is `lstmstream.transport.memory`. Nothing waits: time passes only
by `advance`, and a little with each call to the broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from lstmstream.config import Config, load_config
from lstmstream.config.diagnostics import validate
from lstmstream.errors import CannotServe, TryAgain
from lstmstream.scorer import KeyState, view_state
from lstmstream.serve.clock import Clock
from lstmstream.serve.daemon import Daemon
from lstmstream.serve.factory import load_step_model
from lstmstream.serve.health import Health
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.phase import Phase
from lstmstream.serve.startup import make_observers, start_daemon
from lstmstream.testing import arguments
from lstmstream.transport.memory import FAULT_POINTS, LogRecord, MemoryBroker, MemoryTransport
from lstmstream.transport.partitioner import partition_of

CALL_S = 0.001  # of a call to the broker, on the driver's clock
KILLED = -9  # as Python names the exit of a process by SIGKILL
MAX_ROUNDS = 100_000  # of the daemon's loop, until everything that was piped in is answered


class Output(NamedTuple):
    """A prediction or an alert as it stands in its topic."""

    key: str | None  # the record key; bytes that are not UTF-8 are in `value["key_base64"]`
    value: dict[str, Any]  # the JSON object (docs/reference.md, "Records")
    timestamp_ms: int  # of the record, since 1970 UTC
    partition: int
    headers: dict[str, bytes | None]  # of a name that occurs twice, the last


class DeadLetter(NamedTuple):
    """A record of the dead-letter topic."""

    key: bytes | None
    value: bytes | None  # the input record's bytes
    stage: str  # decode, validate, late, step, publish
    message: str  # why there is no prediction
    partition: int  # of the input record
    offset: int  # of the input record
    headers: dict[str, bytes | None]


class _Crash(BaseException):
    """Ends the daemon where it stands. Nothing in the program catches it."""


class TestDriver:
    """Runs the daemon of one configuration on a broker in memory.

        with TestDriver({"name": "t", "model": "card-fraud.onnx",
                         "input": {"topic": "transactions", "key": "customer"},
                         "output": {"topic": "predictions"}}) as driver:
            driver.pipe({"customer": "c1", "amount": 12.5})
            (prediction,) = driver.read_predictions()
            assert prediction.value["steps"] == 1

    Not for several threads.
    """

    __test__ = False  # pytest would take the name for a class of tests

    def __init__(
        self,
        config: Config | Mapping[str, Any] | str | Path,
        *,
        partitions: int = 1,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        stage: str | None = None,
    ) -> None:
        """`config`: a YAML file, or its content; the `kafka` section may be left out. `start`: the clock's first time.

        `partitions` of the input topic. `stage`: the one to run of a file with `stages`. A time without a zone is in
        UTC. Raises CannotServe where the daemon could not start.
        """
        self._config = _load(config, stage)
        if partitions < 1:
            raise ValueError(f"partitions is {partitions}; a topic has 1 or more")
        self._now_s = (start if start.tzinfo is not None else start.replace(tzinfo=UTC)).timestamp()
        self._faults: list[str] = []
        self._crash_at: str | None = None
        self._broker = MemoryBroker(clock=lambda: self._now_s)
        self._broker.create(self._config.input.topic, partitions, {"retention.ms": "-1"})
        self._broker.fault = self._at_point
        self._read: dict[str, list[int]] = {}  # by topic and partition, how many records were handed out
        _, self._step = load_step_model(self._config)
        self._metrics = Metrics()
        self._daemon: Daemon | None = None
        self._transport: MemoryTransport | None = None
        self.restart()

    # -- records in

    def pipe(
        self,
        value: Mapping[str, Any] | bytes | None,
        key: str | bytes | None = None,
        *,
        timestamp: datetime | int | None = None,
        partition: int | None = None,
        headers: Mapping[str, bytes | None] | None = None,
    ) -> None:
        """Write one record to the input topic and let the daemon process it.

        `value`: an event, or the bytes of a record's value. `timestamp`: of the record, in milliseconds if a number,
        in UTC if a time without a zone; the clock's time if None. Without `partition` the record goes where a Kafka
        producer would send it: by murmur2 of the key, or to partition 0 without a key. Raises TypeError and ValueError
        for what is none of these.
        """
        self._append(value, key, timestamp, partition, headers)
        self.run()

    def pipe_all(self, values: Iterable[Mapping[str, Any] | bytes | None], key: str | bytes | None = None) -> None:
        """Write many records first, so that they are processed in batches."""
        if isinstance(values, Mapping | bytes | str):
            raise TypeError("pipe_all takes several values; give one to pipe, or put it into a list")
        for value in values:
            self._append(value, key, None, None, None)
        self.run()

    def _append(
        self,
        value: Mapping[str, Any] | bytes | None,
        key: str | bytes | None,
        timestamp: datetime | int | None,
        partition: int | None,
        headers: Mapping[str, bytes | None] | None,
    ) -> None:
        topic = self._config.input.topic
        count = len(self._broker.topics[topic].logs)
        raw_key = arguments.record_key(key)
        if partition is None:
            partition = 0 if raw_key is None else partition_of(raw_key, count)
        self._broker.append(
            topic,
            arguments.checked_partition(partition, count, topic),
            raw_key,
            arguments.record_value(value),
            arguments.record_time(timestamp),
            arguments.record_headers(headers),
        )

    # -- records out

    def read_predictions(self) -> list[Output]:
        """The predictions since the last call, by partition, in order within each."""
        return [_output(partition, record) for partition, record in self._fresh(self._config.output.topic)]

    def read_alerts(self) -> list[Output]:
        """The alerts since the last call, with end records and summaries; none without `output.alerts_topic`."""
        topic = self._config.output.alerts_topic
        return [] if topic is None else [_output(partition, record) for partition, record in self._fresh(topic)]

    def read_events(self) -> list[Output]:
        """The events of `output.events` since the last call, each with its JSON object as `value`."""
        topic = self._config.output.events.topic
        return [] if topic is None else [_output(partition, record) for partition, record in self._fresh(topic)]

    def read_dead_letters(self) -> list[DeadLetter]:
        """The dead letters since the last call."""
        return [_dead_letter(record) for _, record in self._fresh(self._config.dead_letter.topic)]

    def _fresh(self, topic: str) -> list[tuple[int, LogRecord]]:
        logs = self._broker.topics[topic].logs if topic in self._broker.topics else []
        seen = self._read.setdefault(topic, [0] * len(logs))
        found = [(partition, record) for partition, log in enumerate(logs) for record in log[seen[partition] :]]
        self._read[topic] = [len(log) for log in logs]
        return found

    # -- time

    @property
    def now(self) -> datetime:
        """The time on the driver's clock."""
        return datetime.fromtimestamp(self._now_s, UTC)

    def advance(self, seconds: float) -> None:
        """Let time pass; then the daemon does what is due, such as writing states after `state.checkpoint_interval`."""
        self._now_s += arguments.checked_seconds(seconds)
        if self._daemon is not None:
            self._round()
        self.run()

    # -- what is remembered and measured

    def state(self, key: str | bytes | None, partition: int | None = None) -> KeyState | None:
        """The state that the daemon has for a key; None for one that it does not know.

        Without `partition`, the first one that knows the key.
        """
        daemon = self._running()
        wanted = key.encode() if isinstance(key, str) else key
        for number, slab in sorted(daemon.states.slabs.items()):
            row = slab.index.get(wanted)
            if row is not None and slab.steps[row] and partition in (None, number):
                return view_state(self._step.card, slab.get(row))
        return None

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric of the daemon, 0 if it was never counted. Counters continue over a restart.

        Raises ValueError for a metric, or labels, that the daemon does not have.
        """
        return arguments.metric_value(self._metrics.registry, name, labels)

    @property
    def running(self) -> bool:
        """Whether there is a daemon: not after `crash` or `stop`."""
        return self._daemon is not None

    # -- faults

    def fail_next(self, point: str, times: int = 1) -> None:
        """Let the next `times` calls at a point fail as with a broker that cannot be reached.

        The points: connect, describe, poll, begin, commit, committed (the transaction went through, and the answer was
        lost), recover, committed_offset, read, and others: `lstmstream.transport.memory.FAULT_POINTS`.
        """
        if times < 0:
            raise ValueError(f"times is {times}; give how many calls are to fail")
        self._faults += [_known(point)] * times

    def crash_at(self, point: str) -> None:
        """Kill the daemon, as kill -9 does, at the next call at a point (see `fail_next`)."""
        self._crash_at = _known(point)

    def crash(self) -> None:
        """Kill the daemon: no state is written, and it does not leave the group. Records piped in meanwhile wait."""
        transport, self._daemon = self._transport, None
        if transport is not None:
            self._broker.transactions.abort(transport.author)
            self._broker.leave(transport.member_id)

    def stop(self) -> int:
        """Stop the daemon as SIGTERM does; its exit code, which is -9 if a `crash_at` kills it meanwhile."""
        daemon = self._running()
        self._daemon = None
        try:
            code = daemon.drain()
        except _Crash:
            self.crash()
            return KILLED
        daemon.close()
        return code

    def restart(self) -> None:
        """Start the daemon again, with the same configuration, and let it restore and process what waits."""
        if self._daemon is not None:
            self.stop()
        exactly_once = self._config.delivery == "exactly_once"
        self._transport = MemoryTransport(self._broker, self._config.input.topic, exactly_once=exactly_once)
        clock = Clock(monotonic_s=lambda: self._now_s, wall_s=lambda: self._now_s, sleep=self._sleep)
        timer = StageTimer(clock.monotonic_s)
        health = Health(stall_after=self._config.http.stall_after, clock=clock.monotonic_s)
        try:
            self._daemon = start_daemon(
                self._config,
                self._step,
                self._transport,
                make_observers(self._config, self._step.card, self._metrics, health, timer, clock),
                timer,
                clock=clock,
                stopping=lambda: False,
            )
        except _Crash:
            self.crash()
        self.run()

    # -- the loop

    def run(self) -> None:
        """Let the daemon work until everything is processed and restored; nothing happens while there is none."""
        for _ in range(MAX_ROUNDS):
            if self._daemon is None or (self._daemon.phase is Phase.RUNNING and not self._waiting()):
                return
            self._round()
        raise RuntimeError(f"{self._waiting()} records are still unanswered after {MAX_ROUNDS} rounds")

    def _round(self) -> None:
        try:
            self._running().run_once()
        except _Crash:
            self.crash()

    def _waiting(self) -> int:
        topic = self._broker.topics[self._config.input.topic]
        committed = self._broker.offsets
        return sum(topic.end(p) - committed.get(p, topic.beginnings[p]) for p in range(len(topic.logs)))

    def _at_point(self, point: str) -> None:
        self._now_s += CALL_S
        if point == self._crash_at:
            self._crash_at = None
            raise _Crash
        if point in self._faults:
            self._faults.remove(point)
            raise TryAgain(f"the test driver lets {point} fail")

    def _sleep(self, seconds: float) -> None:
        self._now_s += seconds

    def _running(self) -> Daemon:
        if self._daemon is None:
            raise RuntimeError("the daemon is not running; call restart() first")
        return self._daemon

    def __enter__(self) -> Self:
        """Nothing to do: the daemon runs already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the daemon, if it still runs."""
        if self._daemon is not None:
            self.stop()


def _load(config: Config | Mapping[str, Any] | str | Path, stage: str | None) -> Config:
    if isinstance(config, str | Path):
        try:
            return load_config(Path(config), stage=stage)
        except CannotServe as error:
            advice = "choose one of them with --stage NAME (dead-letter: --stage-name)"
            raise CannotServe(
                *(problem.replace(advice, "choose one with stage=") for problem in error.problems)
            ) from None
    if stage is not None or (isinstance(config, Mapping) and "stages" in config):
        raise CannotServe("stages: can only be taken from a YAML file; give its path, and one of the stages as stage=")
    if isinstance(config, Config):
        return config
    if not isinstance(config, Mapping):
        raise TypeError(f"a configuration is the path of a YAML file, or its content, not a {type(config).__name__}")
    return validate(Config, {"kafka": {"bootstrap_servers": "memory:9092"}, **config}, Path())


def _known(point: str) -> str:
    if point not in FAULT_POINTS:
        raise ValueError(f"there is no point {point!r}; there are {', '.join(FAULT_POINTS)}")
    return point


def _output(partition: int, record: LogRecord) -> Output:
    key = None if record.key is None else record.key.decode(errors="replace")
    return Output(key, orjson.loads(record.value or b"{}"), record.timestamp_ms, partition, dict(record.headers))


def _dead_letter(record: LogRecord) -> DeadLetter:
    headers = dict(record.headers)
    texts = {name: (text or b"").decode() for name, text in headers.items() if name.startswith(("__", "lstmstream."))}
    return DeadLetter(
        record.key,
        record.value,
        texts["lstmstream.stage"],
        texts["__streams.errors.message"],
        int(texts["__streams.errors.partition"]),
        int(texts["__streams.errors.offset"]),
        headers,
    )
