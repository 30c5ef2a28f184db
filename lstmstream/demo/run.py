"""`lstmstream demo`: a broker, simulated events, the daemon and a live page, all on this machine.

The daemon is a process of its own with a configuration file, as in any other use. However the demo ends, it removes
what it started: the daemon, the broker, its topics on another broker, and its files.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Self

import yaml
from kafka.errors import KafkaError

from lstmstream.demo.display import Display
from lstmstream.demo.scenario import FRAUD, Scenario
from lstmstream.demo.stream import Reader, Sender, Topics
from lstmstream.demo.tally import Tally
from lstmstream.dev.broker import DevBroker
from lstmstream.errors import CannotServe, Fatal

METRICS_PORT = 9108  # the daemon's default, used if it is free

_READY_S = 120.0  # for the daemon to start, join its group and become ready
_STALL_S = 60.0  # without any prediction while events are in flight
_STOP_S = 40.0  # for the daemon after SIGTERM; its own limit is 30 s
_REFRESH_S = 0.25
_LOG_LINES = 20


def run_demo(
    scenario: Scenario = FRAUD,
    *,
    events: int | None = None,
    bootstrap_servers: str | None = None,
    rate: float | None = None,
    seed: int = 7,
    http_port: int | None = None,
) -> int:
    """Run the demo until `events` have predictions, or until SIGINT or SIGTERM. Returns the exit code.

    0: every event got exactly one prediction and the daemon stopped cleanly, or a signal stopped the demo. 1: neither.
    2: it could not start. `bootstrap_servers`: a broker to use instead of starting one; `rate` in events per second.
    """
    started = time.monotonic()
    port = http_port or _free_port(METRICS_PORT)
    display = Display(scenario, events=events, page=_page(port))
    rate = rate or (scenario.rate_endless if events is None else scenario.rate_with_end)
    with _StopSignals() as stop, ExitStack() as cleanup:
        demo = _Demo(scenario, display, stop, cleanup, started=started, events=events)
        try:
            display.note(f"live page, as soon as the daemon runs: {_page(port)}")
            servers, topics = demo.broker(bootstrap_servers)
            daemon = demo.daemon(servers, topics, port)
            code = demo.stream(daemon, servers, topics, seed, rate)
        except KeyboardInterrupt:
            display.note("stopped before the first event")
            code = 0
        except CannotServe as problem:
            display.problem(str(problem))
            code = 2
        except (Fatal, KafkaError) as problem:
            display.problem(f"the demo failed: {problem}")
            code = 1
        finally:
            stop.interrupts = False  # what follows only cleans up, in bounded time
    return code


class _StopSignals:
    """SIGINT, SIGTERM and SIGHUP set `requested`; while `interrupts`, the first one also raises KeyboardInterrupt.

    It is no `Event`: a handler that sets one while its own thread looks at it waits for its lock for ever.
    """

    def __init__(self) -> None:
        self.requested = False
        self.interrupts = True
        self._before: dict[int, signal.Handlers | int | Callable[..., object] | None] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # under nohup
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, *_: object) -> None:
        self.requested = True
        if self.interrupts:
            self.interrupts = False
            raise KeyboardInterrupt


class Daemon:
    """`lstmstream run CONFIG` as a process, with its log in a file."""

    def __init__(self, config: Path, log: Path, port: int) -> None:
        self._log, self._port = log, port
        # A variable that overrides an option would change the demo.
        environment = {
            name: value for name, value in os.environ.items() if not (name.startswith("LSTMSTREAM_") and "__" in name)
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lstmstream", "run", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the demo only, which then stops the daemon
            )

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while it is running."""
        return self._process.poll()

    def ready(self) -> bool:
        """Whether /readyz returns 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> int:
        """Stop it with SIGTERM, or with SIGKILL after a time limit. Returns the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def last_lines(self) -> str:
        """Return the end of its log."""
        return _tail(self._log)


class _Demo:
    """The steps of one demo. Each registers what it starts with `cleanup`, which ends it in reverse order."""

    def __init__(
        self,
        scenario: Scenario,
        display: Display,
        stop: _StopSignals,
        cleanup: ExitStack,
        *,
        started: float,
        events: int | None,
    ) -> None:
        self._scenario = scenario
        self._display, self._stop, self._cleanup = display, stop, cleanup
        self._started, self._events = started, events
        self._broker: DevBroker | None = None  # of its own
        self._folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="lstmstream-demo-")))

    def broker(self, bootstrap_servers: str | None) -> tuple[str, Topics]:
        """Return a broker's address, and the demo's topics, created on it."""
        topics = Topics(f"demo-{uuid.uuid4().hex[:8]}")
        if bootstrap_servers is None:
            self._display.note("starting Kafka (the first start on a machine downloads it with Maven) ...")
            broker = self._broker = DevBroker(self._folder / "kafka")
            self._cleanup.callback(broker.down, wipe=True)
            bootstrap_servers = broker.up(0)
            topics.create(bootstrap_servers)
        else:
            self._cleanup.callback(_quietly, topics.delete, bootstrap_servers)
            topics.create(bootstrap_servers)
        self._display.note(f"Kafka: {bootstrap_servers}, topics {topics.name}.*")
        return bootstrap_servers, topics

    def daemon(self, bootstrap_servers: str, topics: Topics, port: int) -> Daemon:
        """Start the daemon and wait until it is ready. Raises Fatal with the end of its log."""
        config = self._folder / "demo.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "name": topics.name,
                    "model": self._scenario.model,
                    "kafka": {"bootstrap_servers": bootstrap_servers},
                    "input": {"topic": topics.events, "timestamp": "time", "max_future": "36500d"},
                    "output": {
                        "topic": topics.predictions,
                        "alerts_topic": topics.alerts,
                        "include": list(self._scenario.include),
                        **self._scenario.output,
                    },
                    "http": {"port": port},
                    "log": {"format": "json"},
                },
                sort_keys=False,
            )
        )
        daemon = Daemon(config, self._folder / "daemon.log", port)
        self._cleanup.callback(daemon.stop)
        deadline = time.monotonic() + _READY_S
        while not daemon.ready():
            if daemon.exit_code is not None:
                raise Fatal(
                    f"the daemon exited with code {daemon.exit_code}; the end of its log:\n{daemon.last_lines()}"
                )
            if time.monotonic() > deadline:
                raise Fatal(
                    f"the daemon is not ready after {_READY_S:.0f} s; the end of its log:\n{daemon.last_lines()}"
                )
            time.sleep(0.1)
        self._display.note(f"daemon: ready; live page: {_page(port)} (also /metrics and /readyz)")
        return daemon

    def stream(self, daemon: Daemon, servers: str, topics: Topics, seed: int, rate: float) -> int:
        """Send, read and show until the end or a signal. Returns the exit code."""
        tally, sending, reading = Tally(self._scenario), Event(), Event()
        sender = Sender(
            servers, topics, self._scenario.stream(seed), tally, rate=rate, limit=self._events, stop=sending
        )
        reader = Reader(servers, topics, self._scenario, tally, stop=reading)
        self._stop.interrupts = False
        failure: str | None = None
        with _running(sender, sending), _running(reader, reading):
            try:
                with self._display:
                    self._watch(daemon, tally, sender, reader)
            except Fatal as problem:
                failure = str(problem)
            stopped = self._stop.requested
            sending.set()  # its end
            sender.join(10)
            code = daemon.stop()
        failure = failure or (None if stopped else self._check(tally, code, daemon))
        first = None if tally.first_prediction is None else tally.first_prediction - self._started
        self._display.summary(tally, first_prediction=first, dead_letter_reason=reader.last_reason)
        if failure:
            self._display.problem(f"the demo failed: {failure}")
            return 1
        if not stopped:
            self._display.note("every event has exactly one prediction; the daemon stopped cleanly")
        elif code:
            self._display.note(f"the daemon did not stop cleanly: it exited with code {code}")
        elif not tally.duplicates:
            waiting = tally.in_flight
            rest = f"; {waiting:,} were still in flight" if waiting else ""
            self._display.note(
                f"every event that was processed has exactly one prediction{rest}; the daemon stopped cleanly"
            )
        return 0

    def _watch(self, daemon: Daemon, tally: Tally, sender: Sender, reader: Reader) -> None:
        """Return at the last prediction or at a signal. Raises Fatal."""
        seen, moved = 0, time.monotonic()
        while True:
            time.sleep(_REFRESH_S)
            if self._stop.requested:
                return
            if seen == 0 and tally.first_prediction is not None:
                self._display.note(f"first prediction {tally.first_prediction - self._started:.1f} s after the start")
            done = tally.predictions + tally.dead_letters
            if done > seen or not tally.in_flight:
                seen, moved = done, time.monotonic()
            self._display.show(tally.snapshot(self._started))
            if done == self._events:
                return
            for what, error in (("sending", sender.error), ("reading", reader.error)):
                if error is not None:
                    raise Fatal(f"{what}: {type(error).__name__}: {error}")
            if daemon.exit_code is not None:
                raise Fatal(
                    f"the daemon exited with code {daemon.exit_code}; the end of its log:\n{daemon.last_lines()}"
                )
            if self._broker and not self._broker.status().running:
                raise Fatal(f"Kafka exited; the end of its log:\n{_tail(self._broker.log)}")
            if time.monotonic() - moved > _STALL_S:
                raise Fatal(
                    f"no prediction for {_STALL_S:.0f} s, {tally.in_flight:,} events are in flight; "
                    f"the end of the daemon's log:\n{daemon.last_lines()}"
                )

    def _check(self, tally: Tally, code: int, daemon: Daemon) -> str | None:
        """Return what is wrong after everything was read and the daemon stopped, or None."""
        faults = tally.faults()
        if code:
            faults.append(f"the daemon exited with code {code}; the end of its log:\n{daemon.last_lines()}")
        return "; ".join(faults) or None


@contextmanager
def _running(thread: Sender | Reader, stop: Event) -> Iterator[None]:
    """Start the thread; at the end, stop it and wait for it."""
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(15)


def _quietly(action: Callable[[str], None], bootstrap_servers: str) -> None:
    """Clean up on a broker that may be gone, without hiding how the demo ended."""
    with suppress(KafkaError, OSError):
        action(bootstrap_servers)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])


def _page(port: int) -> str:
    return f"http://127.0.0.1:{port}/"


def _free_port(preferred: int) -> int:
    """Return `preferred` if nobody listens there, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    return preferred  # the daemon reports what is wrong with it
