"""What tests and benchmarks against a real Kafka share: a daemon as a process, topics, bulk writing, committed reading.

Everything is bounded in time and fails with the end of the daemon's log. Knows no model and no event; see answers.py.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import orjson
import yaml
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
)
from kafka.protocol.consumer.offsets import IsolationLevel
from prometheus_client.parser import text_string_to_metric_families

from tests.models import random_model

READY_S = 180.0  # for what takes a second on a machine with nothing else to do
IN_FLIGHT = 50_000  # records that `produce` hands over before it waits for the broker
EXIT_S = 90.0  # after SIGTERM; the daemon's own limit is 30 s
KEEP_FOR_EVER = {"retention.ms": "-1"}  # events bear times of years ago
# A daemon that is killed is missed after the session timeout; 6 s is the least that a broker allows by default.
SHORT_SESSION = {"session.timeout.ms": 6000, "heartbeat.interval.ms": 1500}
NO_COORDINATOR_YET = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError)

CLIENT = "auto"  # of daemons whose config says nothing else; tests/broker/conftest.py sets it

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]


class RunningDaemon:
    """`lstmstream run CONFIG` as a process of its own, with its log in a file; the port in the config should be 0."""

    def __init__(
        self,
        config: Path,
        log: Path,
        *,
        command: Sequence[str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`variables`: of its environment, beside those of this process."""
        self.log_file = log
        self._port: int | None = None
        self.started = time.monotonic()
        # A variable that overrides a key would change the test under its feet.
        environment = {k: v for k, v in os.environ.items() if not (k.startswith("LSTMSTREAM_") and "__" in k)}
        environment["PYTHONFAULTHANDLER"] = "1"  # SIGABRT makes it say where it stands
        environment |= variables or {}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command or [sys.executable, "-m", "lstmstream", "run", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill9()

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._process.poll()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """The JSON lines of its log so far."""
        lines = []
        for line in self.log_file.read_bytes().splitlines():
            with contextlib.suppress(orjson.JSONDecodeError):
                lines.append(orjson.loads(line))
        return lines

    @property
    def port(self) -> int | None:
        """Where /metrics is, once its log has told."""
        if self._port is None:
            ports = [line["port"] for line in self.log_lines if line.get("message") == "listening"]
            self._port = ports[0] if ports else None
        return self._port

    def ready(self) -> bool:
        """Whether /readyz says so now."""
        return self.port is not None and self.get("/readyz")[0] == http.client.OK

    def hears_sigterm(self) -> bool:
        """Whether it has a handler for SIGTERM: while Python itself starts, it has none."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def wait_ready(self, timeout_s: float = READY_S) -> float:
        """Seconds from the start of the process until it was seen ready."""
        self.wait(self.ready, "ready", timeout_s)
        return time.monotonic() - self.started

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
        """Until `condition`; an AssertionError if the daemon ends or the time is up before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.exit_code is None, (
                f"not {what}: the daemon ended with code {self.exit_code}\n{self.last_words()}"
            )
            if time.monotonic() >= deadline:
                reasons = self.get("/readyz")[1].decode(errors="replace") if self.port is not None else ""
                raise AssertionError(f"not {what} within {timeout_s:g} s\n{reasons}{self.last_words()}")
            time.sleep(0.02)

    def metrics(self) -> Samples:
        """Every sample of /metrics by name and sorted labels."""
        _, text = self.get("/metrics")
        families = text_string_to_metric_families(text.decode())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    def count(self, name: str) -> float:
        """One of its metrics that has no label, 0 while it does not answer."""
        return self.metrics().get((f"lstmstream_{name}", ()), 0.0)

    def restores(self, source: str) -> float:
        """Partitions whose states came from there; 0 while it does not answer."""
        return self.metrics().get(("lstmstream_restores_total", (("source", source),)), 0.0)

    def partitions(self) -> set[int]:
        """The partitions of the input that it serves, as /metrics has them (renewed once a second)."""
        return {
            int(dict(labels)["partition"])
            for name, labels in self.metrics()
            if name == "lstmstream_state_floor_lag_records"
        }

    def sigterm(self, timeout_s: float = EXIT_S) -> int:
        """Ask it to stop and wait; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there {timeout_s:g} s after SIGTERM\n{self.last_words()}") from None

    def wait_end(self, timeout_s: float = READY_S) -> int:
        """Until it ends by itself; its exit code. If it does not, where each of its threads stands is in the error."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)
            self._process.wait(60)
            raise AssertionError(f"still there after {timeout_s:g} s\n{self.last_words(80)}") from None

    def freeze(self) -> None:
        """Stop it where it stands, as a long pause of its machine would."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def freeze_when(self, condition: Callable[[], bool]) -> None:
        """Stop it at a moment when `condition` holds: it gets no further while that is looked at."""
        while True:
            self.freeze()
            if condition():
                return
            self.thaw()
            time.sleep(0.02)
            assert self.exit_code is None, f"it has ended\n{self.last_words()}"

    def kill9(self) -> None:
        """End it at once, if it still runs."""
        self._process.kill()
        self._process.wait()

    def kill9_when(self, condition: Callable[[], bool], tries: int = 300) -> bool:
        """End it at a moment when `condition` holds, looked at while the process is frozen; whether one was found.

        Where none is found in so many tries it is ended all the same.
        """
        found = False
        for _ in range(tries):
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(0.02)  # what it sent last arrives
            if found := condition():
                break
            self._process.send_signal(signal.SIGCONT)
            time.sleep(random.uniform(0.005, 0.05))
        self.kill9()
        return found

    def cpu_s(self) -> float:
        """CPU time used so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[int, int]:
        """Resident bytes now, and at most so far."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
        return int(found["VmRSS"].split()[0]) * 1024, int(found["VmHWM"].split()[0]) * 1024

    def last_words(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def get(self, path: str, *, token: str = "") -> tuple[int, bytes]:
        """Status and body of one of its pages; 0 while it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port or 0, timeout=30)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


def write_config(path: Path, *, name: str, model: Path, servers: str, **sections: Mapping[str, Any] | str) -> Path:
    """A daemon's YAML for the topics `<name>.in` and `<name>.out`; `sections` override and add keys, or are a value."""
    settings: dict[str, Any] = {
        "name": name,
        "model": str(model),
        "kafka": {"bootstrap_servers": servers, "client": CLIENT, "properties": SHORT_SESSION},
        "input": {"topic": f"{name}.in"},
        "output": {"topic": f"{name}.out"},
        "http": {"port": 0},
        "log": {"format": "json"},
    }
    for section, keys in sections.items():
        settings[section] = keys if isinstance(keys, str) else {**settings.get(section, {}), **keys}
    path.write_text(yaml.safe_dump(settings))
    return path


def two_models(servers: str, name: str, folder: Path, *, partitions: int, **state: str | int) -> list[Path]:
    """A configuration for each of two models, for the same group and topics; a new model's states are rebuilt."""
    create_topics(servers, [f"{name}.in", f"{name}.out"], partitions=partitions)
    configs = []
    for seed in range(2):
        own = folder / str(seed)
        own.mkdir()
        configs.append(
            write_config(
                own / "c.yaml",
                name=name,
                model=random_model(own, hidden=4, seed=seed),
                servers=servers,
                on_model_change="replay",
                state=state,
            )
        )
    return configs


def create_topics(servers: str, names: Sequence[str], *, partitions: int) -> None:
    """Topics that keep their records for ever."""
    with admin(servers) as client:
        client.create_topics(
            {name: {"num_partitions": partitions, "configs": KEEP_FOR_EVER} for name in names}, wait_for_metadata=True
        )


def wait_for_coordinators(servers: str) -> None:
    """Makes a new broker create its topics of offsets and transactions, which it does at the first question only."""
    deadline = time.monotonic() + 60
    with admin(servers) as client:
        while True:
            try:
                client.list_group_offsets("nobody")
                break
            except NO_COORDINATOR_YET:
                assert time.monotonic() < deadline, "the broker has no coordinator of groups"
                time.sleep(0.1)
    producer = KafkaProducer(bootstrap_servers=servers, transactional_id="nobody")
    try:
        producer.init_transactions()
    finally:
        producer.close()


def delete_topics(servers: str, prefix: str, group: str) -> None:
    """Clears a broker that goes on without us of what a run left there."""
    with admin(servers) as client:
        names = sorted(name for name in client.list_topics() if name.startswith(prefix))
        client.delete_topics(names, raise_errors=False)
        with contextlib.suppress(KafkaError):  # there was none yet, or its last member has only just been killed
            client.delete_groups([group])


@contextlib.contextmanager
def foreign_member(servers: str, topic: str, group: str, **settings: Any) -> Iterator[KafkaConsumer]:
    """A consumer of another program, which has joined the group and owns partitions of the topic."""
    consumer = KafkaConsumer(topic, bootstrap_servers=servers, group_id=group, **settings)
    try:
        consumer.partitions_for_topic(topic)  # a leader that joins before it knows them may assign none, for ever
        deadline = time.monotonic() + 60
        while not consumer.assignment():
            assert time.monotonic() < deadline, "the consumer has been assigned no partition"
            consumer.poll(timeout_ms=100)
        yield consumer
    finally:
        consumer.close()


@contextlib.contextmanager
def admin(servers: str) -> Iterator[Any]:
    """An admin client, closed afterwards."""
    client = KafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=15_000)
    try:
        yield client
    finally:
        client.close()


def end_offsets(servers: str, topic: str, *, partitions: int) -> dict[int, int]:
    """The high watermark of each partition: behind committed, aborted and open transactions alike."""
    with admin(servers) as client:
        return _ends(client, topic, partitions, IsolationLevel.READ_UNCOMMITTED)


def written_states(servers: str, name: str, *, partitions: int) -> int:
    """Offsets of the state topic that are taken, by whatever transactions; 0 while there is no such topic."""
    with admin(servers) as client:
        if f"{name}.state" not in client.list_topics():
            return 0
    return sum(end_offsets(servers, f"{name}.state", partitions=partitions).values())


def in_transaction(client: Any, topic: str, *, partitions: int) -> bool:
    """Whether records of an open transaction stand in the topic now; `client` is an admin client."""
    stable = _ends(client, topic, partitions, IsolationLevel.READ_COMMITTED)
    return stable != _ends(client, topic, partitions, IsolationLevel.READ_UNCOMMITTED)


def _ends(client: Any, topic: str, partitions: int, isolation: Any) -> dict[int, int]:
    latest = {TopicPartition(topic, number): OffsetSpec.LATEST for number in range(partitions)}
    found = client.list_partition_offsets(latest, isolation_level=isolation, timeout_ms=15_000)
    return {number: int(found[TopicPartition(topic, number)].offset) for number in range(partitions)}


def committed_offsets(servers: str, group: str) -> dict[int, int]:
    """How far the group has come, by partition; empty if it never committed."""
    with admin(servers) as client:
        try:
            found = client.list_group_offsets(group)[group]
        except NO_COORDINATOR_YET:  # the broker makes its topic of offsets when the first group comes
            return {}
    return {at.partition: int(offset.offset) for at, offset in found.items() if offset.offset >= 0}


class Producing:
    """An idempotent producer that keeps the order: what is sent in order stands in the topic in order, once."""

    def __init__(self, servers: str, topic: str, *, linger_ms: int = 5) -> None:
        self._topic = topic
        self._errors: list[BaseException] = []
        self._producer = KafkaProducer(
            bootstrap_servers=servers,
            enable_idempotence=True,
            acks="all",
            linger_ms=linger_ms,
            batch_size=262_144,
            reconnect_backoff_max_ms=1000,  # after an outage
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close(timeout=120)

    def send(self, key: bytes | None, value: bytes | None, timestamp_ms: int | None, partition: int) -> None:
        """Hand one record over; whether it arrived, `flush` tells."""
        future = self._producer.send(self._topic, key=key, value=value, timestamp_ms=timestamp_ms, partition=partition)
        future.add_errback(self._errors.append)

    def flush(self) -> None:
        """Until all is written. Raises what went wrong first."""
        self._producer.flush(timeout=300)
        if self._errors:
            raise self._errors[0]


def produce(servers: str, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int | None, int]]) -> None:
    """Write many records (key, value, timestamp in ms, partition) quickly, in order, each once."""
    with Producing(servers, topic) as producer:
        for number, record in enumerate(records, start=1):
            producer.send(*record)
            if number % IN_FLIGHT == 0:  # the client has no bound of its own
                producer.flush()
        producer.flush()


class CommittedReader:
    """Reads a whole topic, from its beginning, as a read_committed reader does; client records as they come."""

    def __init__(self, servers: str, topic: str, *, partitions: int, isolation: str = "read_committed") -> None:
        self.topic = topic
        self._at = [TopicPartition(topic, number) for number in range(partitions)]
        self._consumer = KafkaConsumer(
            bootstrap_servers=servers,
            isolation_level=isolation,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=20,
            reconnect_backoff_max_ms=1000,  # after an outage
            max_partition_fetch_bytes=4 << 20,
        )
        self._consumer.assign(self._at)

    def poll(self, timeout_s: float = 0.1) -> list[Any]:
        """What there is, up to a few thousand records."""
        polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000), max_records=5000)
        return [record for records in polled.values() for record in records]

    def until(self, ends: Mapping[int, int], timeout_s: float = 120) -> Iterator[Any]:
        """Records up to these offsets; an open transaction is waited for. AssertionError when the time is up."""
        deadline = time.monotonic() + timeout_s
        while not all(self._consumer.position(at) >= ends[at.partition] for at in self._at):
            assert time.monotonic() < deadline, f"{self.topic} could not be read to its end within {timeout_s:g} s"
            yield from self.poll()

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def read_all(
    servers: str, topic: str, *, partitions: int, isolation: str = "read_committed", timeout_s: float = 120
) -> Iterator[Any]:
    """The topic as it stands now."""
    reader = CommittedReader(servers, topic, partitions=partitions, isolation=isolation)
    try:
        yield from reader.until(end_offsets(servers, topic, partitions=partitions), timeout_s)
    finally:
        reader.close()


class Follower(Thread):
    """A reader that runs all the while and hands on what it sees, so that nothing seen can be taken back unnoticed."""

    def __init__(self, servers: str, topic: str, *, partitions: int, take: Callable[[list[Any]], None]) -> None:
        super().__init__(name=f"follower-{topic}", daemon=True)
        self.count = 0
        self.error: BaseException | None = None
        self._reader = CommittedReader(servers, topic, partitions=partitions)
        self._take = take
        self._ending = Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def run(self) -> None:
        """The thread: after `finish` it reads on until nothing more comes; a late duplicate must not go unseen."""
        quiet = 0
        try:
            while quiet < 5:
                records = self._reader.poll()
                if records:
                    self._take(records)
                    self.count += len(records)
                quiet = quiet + 1 if self._ending.is_set() and not records else 0
        except (KafkaError, ValueError, KeyError, OSError) as error:
            self.error = error
        finally:
            self._reader.close()

    def finish(self) -> None:
        """End the thread. Raises what ended it before."""
        self._ending.set()
        self.join(120)
        if self.error is not None:
            raise self.error

    def wait_for(self, count: int, *, stall_s: float = 180, alive: Callable[[], None] = lambda: None) -> None:
        """Until so many records were seen. AssertionError if none comes for `stall_s`; `alive` may raise too."""
        seen, deadline = self.count, time.monotonic() + stall_s
        while self.count < count:
            alive()
            assert self.error is None, f"the reader failed: {self.error}"
            if self.count > seen:
                seen, deadline = self.count, time.monotonic() + stall_s
            assert time.monotonic() < deadline, f"{seen} of {count} records, and no more for {stall_s:g} s"
            time.sleep(0.005)


def check_lines(config: Path, name: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit code of `lstmstream check`, and its lines of this name: status and text."""
    command = [sys.executable, "-m", "lstmstream", "check", str(config), "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    lines = orjson.loads(done.stdout)["checks"]
    return done.returncode, [(one["status"], one["text"]) for one in lines if one["check"] == name]
