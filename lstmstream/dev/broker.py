"""A real Kafka on this machine's loopback, without Docker: for development, the demo and the tests.

The system's Java runs broker and controller in one process (KRaft), and everything that the broker keeps is in one
folder, its home. This module knows nothing about topics, models or the daemon. The broker is not for production: one
node, no encryption, no replicas.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from lstmstream.dev.kafka_jars import fetch_jars, find_java
from lstmstream.errors import CannotServe

_HOST = "127.0.0.1"
_MARKER = ".lstmstream-dev-broker"  # a folder without it was not made by `up`, so it is neither used nor removed
_JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-XX:+ExitOnOutOfMemoryError"]
_JVM_LOG = [
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
]
# Below the ports that Linux assigns to outgoing connections: a client that keeps trying to reach a stopped broker on
# one of those may end up connected to itself, and then the broker cannot get its port back.
_FREE_PORTS = range(15_000, 30_000)
_TERM_S = 20.0
_KILL_S = 10.0
_LOG_BYTES = 16 << 20

_children: set[int] = set()  # pids of brokers that this process started and has not yet reaped

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The status of the broker that belongs to `home`."""

    running: bool
    bootstrap_servers: str | None  # its address now, or when it last ran
    pid: int | None
    home: Path
    log: Path


@dataclass(frozen=True, slots=True)
class _Process:
    """The content of the pid file. `birth` distinguishes the process from a later one with the same pid."""

    pid: int
    birth: str
    port: int
    controller_port: int

    def is_alive(self) -> bool:
        if _birth(self.pid) == self.birth:
            return True
        if self.pid in _children:  # only its parent can reap it
            _children.discard(self.pid)
            with contextlib.suppress(ChildProcessError):  # a fork of the process that started it
                os.waitpid(self.pid, 0)
        return False

    def ends(self, by: signal.Signals, within_s: float) -> bool:
        """Send the signal, if this is still the same process; return whether it ended in time."""
        deadline = time.monotonic() + within_s
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, by)
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


class DevBroker:
    """The broker whose data, settings, log and pid file are in `home`. Any process of the same user may control it."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().absolute()
        self.log = self.home / "broker.log"
        self._marker = self.home / _MARKER
        self._pid_file = self.home / "broker.json"
        self._settings = self.home / "server.properties"
        self._data = self.home / "data"

    def up(self, port: int = 9092, timeout_s: float = 90) -> str:
        """Start the broker if it is not running, wait until it responds, and return its address "127.0.0.1:PORT".

        `port` 0 takes the port of last time if that is free, else any free one. A running broker keeps its port.
        `timeout_s` excludes the download of Kafka's jars, which the first start on a machine needs.

        Raises:
            CannotServe: no Java or Maven, the port is in use, the home is another folder, or the broker does not start.
        """
        java, jars = find_java(), fetch_jars()
        self._claim_home()
        with self._lock():
            process = self._running()
            if process is None:
                process = self._start([java, *_JVM, *_JVM_LOG, "-cp", f"{jars}/*"], port)
            self._await_response(process, timeout_s)
        return _address(process.port)

    def down(self, *, wipe: bool = False) -> bool:
        """Stop the broker, with SIGKILL if SIGTERM has not ended it after 20 s; return whether it was running.

        `wipe` also removes the home with all its data.

        Raises:
            CannotServe: asked to wipe a folder that `up` did not create.
        """
        if not self._marker.is_file():
            if wipe and self.home.exists():
                raise CannotServe(
                    f"{self.home}: is not the folder of a development broker and is not removed; remove it by hand"
                )
            return False
        with self._lock():
            process = self._running()
            if process is not None and not process.ends(signal.SIGTERM, _TERM_S):
                log.warning("the development broker did not stop within %g s; killing it", _TERM_S)
                self._kill(process)
            if wipe:
                shutil.rmtree(self.home)
        return process is not None

    def kill(self) -> bool:
        """Kill the broker with SIGKILL, for fault tests: no flush, no clean shutdown; return whether it was running."""
        if not self._marker.is_file():
            return False
        with self._lock():
            process = self._running()
            if process is not None:
                self._kill(process)
        return process is not None

    def restart(self, timeout_s: float = 90) -> str:
        """Stop the broker if it is running, and start it again on its last port, with its data."""
        self.down()
        last = self._last()
        return self.up(port=0 if last is None else last.port, timeout_s=timeout_s)

    def status(self) -> BrokerStatus:
        """Return the status by the pid file and the process table, without a request to the broker."""
        last, running = self._last(), self._running()
        return BrokerStatus(
            running=running is not None,
            bootstrap_servers=None if last is None else _address(last.port),
            pid=None if running is None else running.pid,
            home=self.home,
            log=self.log,
        )

    def create_topics(self, names: Sequence[str], partitions: int) -> dict[str, int]:
        """Create those that do not exist; the partitions of each. Raises CannotServe."""
        now = self.status()
        if not now.running:
            raise CannotServe(f"the broker in {self.home} is not running: start it with `lstmstream dev up`")
        try:
            with contextlib.closing(KafkaAdminClient(bootstrap_servers=now.bootstrap_servers)) as admin:
                existing = set(admin.list_topics())
                new = {name: {"num_partitions": partitions} for name in names if name not in existing}
                created = admin.create_topics(new, raise_errors=False)["topics"] if new else []
                refused = [topic["error_message"] for topic in created if topic["error_code"]]
                if refused:
                    raise CannotServe("; ".join(refused))
                admin.wait_for_topics(list(names))
                return {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(names))}
        except KafkaError as error:
            raise CannotServe(f"topics {', '.join(names)}: {error}") from error

    # -- the home -------------------------------------------------------------------------------------------------

    def _claim_home(self) -> None:
        if "," in str(self.home):
            raise CannotServe(f"{self.home}: Kafka cannot use a folder with a comma in its path; pass another --home")
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._marker.exists():
                # The marker once more: another process may claim the home at this very moment.
                if any(self.home.iterdir()) and not self._marker.exists():
                    raise CannotServe(
                        f"{self.home}: is not empty and not the folder of a development broker; pass another --home"
                    )
                self._marker.touch()
        except OSError as error:
            raise CannotServe(f"{self.home}: {error.strerror}; pass another --home") from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time start or stop this broker. The home has been claimed."""
        removed = CannotServe(f"{self.home}: was removed by another `lstmstream dev down --wipe`; try again")
        try:
            marker = self._marker.open()
        except FileNotFoundError:
            raise removed from None
        with marker:
            fcntl.flock(marker, fcntl.LOCK_EX)
            if not self._marker.exists():  # while this process waited
                raise removed
            yield

    def _last(self) -> _Process | None:
        """The process that was started last, running or not."""
        try:
            return _Process(**json.loads(self._pid_file.read_text()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None

    def _running(self) -> _Process | None:
        last = self._last()
        return last if last is not None and last.is_alive() else None

    # -- the process -------------------------------------------------------------------------------------------------

    def _start(self, java: list[str], port: int) -> _Process:
        last = self._last()
        port = _choose_port(port, last.port if last else None)
        controller_port = _choose_port(0, last.controller_port if last else None, other_than=port)
        self._settings.write_text(_server_properties(self._data, port, controller_port), encoding="ascii")
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        if not (self._data / "meta.properties").exists():
            self._format(java)
        command = [*java, "kafka.Kafka", str(self._settings)]
        # A session of its own: neither Ctrl-C nor closing the terminal reaches the broker, only `down` does.
        pid = os.posix_spawn(
            command[0],
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        )
        _children.add(pid)
        process = _Process(pid, _birth(pid) or "", port, controller_port)
        self._pid_file.write_text(json.dumps(asdict(process)))
        return process

    def _format(self, java: list[str]) -> None:
        # Not Java's UUID text but its 16 bytes in base64; the tool mistakes an id that begins with "-" for an option.
        cluster = base64.urlsafe_b64encode(b"\x00" + secrets.token_bytes(15)).decode().rstrip("=")
        command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(self._settings)]
        with self.log.open("ab") as output:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=60, check=False
            )
        if result.returncode != 0:
            raise CannotServe(f"Kafka could not format {self._data}; {self._end_of_log()}")

    def _await_response(self, process: _Process, timeout_s: float) -> None:
        """Wait until the broker responds to a client's request; an open port alone would be too early."""
        deadline = time.monotonic() + timeout_s
        while not _responds(process.port):
            if not process.is_alive():
                raise CannotServe(f"the development broker exited during its start; {self._end_of_log()}")
            if time.monotonic() > deadline:
                raise CannotServe(
                    f"the development broker (pid {process.pid}) has not responded on {_address(process.port)} "
                    f"after {timeout_s:g} s; {self._end_of_log()}"
                )
            time.sleep(0.1)

    def _kill(self, process: _Process) -> None:
        if not process.ends(signal.SIGKILL, _KILL_S):
            raise CannotServe(
                f"the development broker (pid {process.pid}) cannot be killed; check the disk of {self.home}"
            )

    def _end_of_log(self) -> str:
        """The path of the log and its last lines, without Java's stack traces."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        relevant = [line for line in lines[-200:] if line.strip() and not line.startswith(("\t", "    "))]
        return "\n  ".join([f"its log, {self.log}, ends with", *relevant[-6:]])


def default_home() -> Path:
    """Return the home of the broker of `lstmstream dev`."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "lstmstream" / "dev-broker"


def _address(port: int) -> str:
    return f"{_HOST}:{port}"


def _birth(pid: int) -> str | None:
    """Identify a process by boot and start time; None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the process name before it may contain anything
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{start_ticks}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Java does: sockets that only linger do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def _choose_port(wanted: int, last: int | None, other_than: int | None = None) -> int:
    if wanted:
        if not _is_free(wanted):
            raise CannotServe(
                f"port {wanted} of {_HOST} is in use or not permitted; stop what uses it, or pass another --port"
            )
        return wanted
    if last is not None and last != other_than and _is_free(last):
        return last
    for _ in range(100):
        port = secrets.choice(_FREE_PORTS)
        if port != other_than and _is_free(port):
            return port
    raise CannotServe(f"found no free port of {_HOST} between {_FREE_PORTS.start} and {_FREE_PORTS.stop}; pass --port")


def _responds(port: int) -> bool:
    """Whether a client finds a broker there. While the port is closed, kafka-python's own attempts are skipped."""
    try:
        socket.create_connection((_HOST, port), timeout=1).close()
    except OSError:
        return False
    try:
        with KafkaAdminClient(
            bootstrap_servers=_address(port), bootstrap_timeout_ms=3_000, request_timeout_ms=3_000
        ) as client:
            return bool(client.describe_cluster()["brokers"])
    except KafkaError:
        return False


def _server_properties(data: Path, port: int, controller_port: int) -> str:
    """The settings of a single node, fit for fault tests too; comments say why they are not Kafka's defaults."""
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{_HOST}:{controller_port}
listeners=PLAINTEXT://{_HOST}:{port},CONTROLLER://{_HOST}:{controller_port}
advertised.listeners=PLAINTEXT://{_HOST}:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={_escaped(str(data))}

# One node: with the default of three replicas the internal topics are never created, and transactions hang.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# A missing topic is an error to be seen, not to be created with the wrong settings.
auto.create.topics.enable=false
num.partitions=4
# Events with timestamps years ago would be deleted within minutes.
log.retention.ms=-1

# Fast starts, fast rebalances, fast aborts of abandoned transactions.
offsets.topic.num.partitions=5
transaction.state.log.num.partitions=5
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# After a kill the node can register again only once its former session has ended.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# A small heap: the cleaner's default buffer alone would take half of it.
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.backoff.ms=1000
num.network.threads=2
num.io.threads=4
"""


def _escaped(text: str) -> str:
    """Escape text for a Java properties file: ASCII, everything else as UTF-16 escapes."""
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if 0x20 < code < 0x7F and code != 0x5C else f"\\u{code:04x}" for code in codes)
