"""A real Kafka on this machine's loopback, without Docker: for development, the demo and the tests.

The system's Java runs broker and controller in one process (KRaft), and everything that the broker keeps lies in one
folder, its home. It knows nothing of topics, models or the daemon, and it is no broker for production: one node, no
encryption, no replica.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from lstmstream.dev.kafka_jars import fetch_jars, find_java
from lstmstream.errors import CannotServe

_HOST = "127.0.0.1"
_MARKER = ".lstmstream-dev-broker"  # a folder without it is not ours to use or to remove
_JVM = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-XX:+ExitOnOutOfMemoryError"]
_JVM_LOG = [
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
]
# Below the ports that Linux gives to outgoing connections: a client that keeps trying to reach a stopped broker on one
# of those may end up connected to itself, and then the broker cannot have its port back.
_FREE_PORTS = range(15_000, 30_000)
_TERM_S = 20.0
_KILL_S = 10.0
_LOG_BYTES = 16 << 20

_children: set[int] = set()  # brokers that this very process started and has not yet seen end

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """What is known of the broker that belongs to `home`."""

    running: bool
    bootstrap_servers: str | None  # where it is, or was when it last ran
    pid: int | None
    home: Path
    log: Path


@dataclass(frozen=True, slots=True)
class _Process:
    """What the pid file holds. `birth` tells our process from a later one that was given the same number."""

    pid: int
    birth: str
    port: int
    controller_port: int

    def is_alive(self) -> bool:
        if _birth(self.pid) == self.birth:
            return True
        if self.pid in _children:  # nobody else can take note of its end
            _children.discard(self.pid)
            with contextlib.suppress(ChildProcessError):  # a fork of the process that started it
                os.waitpid(self.pid, 0)
        return False

    def ends(self, by: signal.Signals, within_s: float) -> bool:
        """Send the signal, if the process is still the one we started; whether it then ended in time."""
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
    """The broker whose data, settings, log and pid file lie in `home`. Any process of the same user may control it."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().absolute()
        self.log = self.home / "broker.log"
        self._marker = self.home / _MARKER
        self._pid_file = self.home / "broker.json"
        self._settings = self.home / "server.properties"
        self._data = self.home / "data"

    def up(self, port: int = 9092, timeout_s: float = 90) -> str:
        """Start the broker unless it runs, and wait until it answers; its bootstrap servers, "127.0.0.1:PORT".

        `port` 0 takes the port it had last time if that is free, or any free one. A broker that runs stays on its port.
        `timeout_s` does not count the download of Kafka's jars, which the first start on a machine needs.

        Raises:
            CannotServe: no Java or Maven, a port in use, a home that is not ours, or a broker that does not start.
        """
        java, jars = find_java(), fetch_jars()
        self._claim_home()
        with self._lock():
            process = self._running()
            if process is None:
                process = self._start([java, *_JVM, *_JVM_LOG, "-cp", f"{jars}/*"], port)
            self._await_answer(process, timeout_s)
        return _address(process.port)

    def down(self, *, wipe: bool = False) -> bool:
        """Stop the broker, with force if SIGTERM has not ended it after 20 s; whether it was running.

        `wipe` also removes the home with all its data.

        Raises:
            CannotServe: asked to wipe a folder that `up` did not make.
        """
        if not self._marker.is_file():
            if wipe and self.home.exists():
                raise CannotServe(f"{self.home} is no development broker's folder, so it stays: remove it by hand")
            return False
        with self._lock():
            process = self._running()
            if process is not None and not process.ends(signal.SIGTERM, _TERM_S):
                log.warning("the development broker did not stop within %g s and is killed", _TERM_S)
                self._kill(process)
            if wipe:
                shutil.rmtree(self.home)
        return process is not None

    def kill(self) -> bool:
        """End the broker with SIGKILL, for fault tests: no hand-over, no flush; whether it was running."""
        if not self._marker.is_file():
            return False
        with self._lock():
            process = self._running()
            if process is not None:
                self._kill(process)
        return process is not None

    def restart(self, timeout_s: float = 90) -> str:
        """Stop the broker if it runs, and start it on the port that it last had, with its data."""
        self.down()
        last = self._last()
        return self.up(port=0 if last is None else last.port, timeout_s=timeout_s)

    def status(self) -> BrokerStatus:
        """What the pid file and the process table say; asks nothing of the broker itself."""
        last, running = self._last(), self._running()
        return BrokerStatus(
            running=running is not None,
            bootstrap_servers=None if last is None else _address(last.port),
            pid=None if running is None else running.pid,
            home=self.home,
            log=self.log,
        )

    # -- the home -------------------------------------------------------------------------------------------------

    def _claim_home(self) -> None:
        if "," in str(self.home):
            raise CannotServe(
                f"{self.home}: Kafka cannot keep data in a folder with a comma in its path: pass another --home"
            )
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._marker.exists():
                if any(self.home.iterdir()):
                    raise CannotServe(
                        f"{self.home} is not empty and no development broker's folder: pass another --home"
                    )
                self._marker.touch()
        except OSError as error:
            raise CannotServe(f"{self.home}: {error.strerror}: pass another --home") from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time start or stop this broker. The home is ours already."""
        removed = CannotServe(f"{self.home} was removed by another `lstmstream dev down --wipe`: try again")
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
        """The process that was started last, dead or alive."""
        try:
            return _Process(**json.loads(self._pid_file.read_text()))
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
            return None

    def _running(self) -> _Process | None:
        last = self._last()
        return last if last is not None and last.is_alive() else None

    # -- its life -------------------------------------------------------------------------------------------------

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
        # A session of its own: neither Ctrl-C nor the end of the terminal reaches the broker, only `down` does.
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
        # Not Java's UUID text but its 16 bytes in base64; the tool takes an id that begins with "-" for an option.
        cluster = base64.urlsafe_b64encode(b"\x00" + secrets.token_bytes(15)).decode().rstrip("=")
        command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(self._settings)]
        with self.log.open("ab") as output:
            answer = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=60, check=False
            )
        if answer.returncode != 0:
            raise CannotServe(f"Kafka could not format {self._data}: {self._last_words()}")

    def _await_answer(self, process: _Process, timeout_s: float) -> None:
        """Wait until the broker answers a client's request; an open port alone would be too early."""
        deadline = time.monotonic() + timeout_s
        while not _answers(process.port):
            if not process.is_alive():
                raise CannotServe(f"the development broker ended while it started: {self._last_words()}")
            if time.monotonic() > deadline:
                raise CannotServe(
                    f"the development broker (pid {process.pid}) has not answered on {_address(process.port)} "
                    f"after {timeout_s:g} s: {self._last_words()}"
                )
            time.sleep(0.1)

    def _kill(self, process: _Process) -> None:
        if not process.ends(signal.SIGKILL, _KILL_S):
            raise CannotServe(
                f"the development broker (pid {process.pid}) cannot be killed: look at its disk {self.home}"
            )

    def _last_words(self) -> str:
        """Where the log is, and its end without Java's stack traces."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        telling = [line for line in lines[-200:] if line.strip() and not line.startswith(("\t", "    "))]
        return "\n  ".join([f"the log {self.log} ends with", *telling[-6:]])


def default_home() -> Path:
    """Where the broker of `lstmstream dev` lives."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "lstmstream" / "dev-broker"


def _address(port: int) -> str:
    return f"{_HOST}:{port}"


def _birth(pid: int) -> str | None:
    """Which start of which boot this process is; None where there is none, or a dead one nobody has reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    state, start_ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{boot}/{start_ticks}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java does: what only lingers is no hindrance
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def _choose_port(wanted: int, last: int | None, other_than: int | None = None) -> int:
    if wanted:
        if not _is_free(wanted):
            raise CannotServe(
                f"port {wanted} of {_HOST} is in use or not allowed: end what uses it, or pass another --port"
            )
        return wanted
    if last is not None and last != other_than and _is_free(last):
        return last
    for _ in range(100):
        port = secrets.choice(_FREE_PORTS)
        if port != other_than and _is_free(port):
            return port
    raise CannotServe(f"no free port of {_HOST} found between {_FREE_PORTS.start} and {_FREE_PORTS.stop}")


def _answers(port: int) -> bool:
    """Whether a client learns of a broker there. kafka-python's own attempts are left out while the port is closed."""
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
    """The settings of one node that serves fault tests too; a line's comment says why it is not Kafka's default."""
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

# One node: with the defaults of three replicas the internal topics are never made, and transactions hang.
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# A missing topic is an error to be seen, not one to be made with the wrong settings.
auto.create.topics.enable=false
num.partitions=4
# Events stamped years ago would be deleted within minutes.
log.retention.ms=-1

# Fast starts, rebalances and ends of abandoned transactions.
offsets.topic.num.partitions=5
transaction.state.log.num.partitions=5
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# After a kill the node may register again only when its former session has ended.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# A small heap: the cleaner's default buffer alone would take half of it.
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.backoff.ms=1000
num.network.threads=2
num.io.threads=4
"""


def _escaped(text: str) -> str:
    """As Java's property files want it: ASCII, and all else as escaped UTF-16 units."""
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    return "".join(chr(code) if 0x20 < code < 0x7F and code != 0x5C else f"\\u{code:04x}" for code in codes)
