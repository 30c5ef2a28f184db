"""The parent of `--workers N`: starts the workers, and again those that end; passes signals on; waits for all."""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.serve.config_warnings import config_warnings
from lstmstream.serve.http import Guard, HttpServer
from lstmstream.shutdown import ShutdownSignal
from lstmstream.workers.pages import Pages
from lstmstream.workers.process import WorkerProcess, worker_command

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before a worker is started again: the first time, the second, ...
STEADY_S = 60.0  # a worker that has run for so long begins with the first of them
GRACE_S = 5.0  # beyond shutdown_timeout, which each worker keeps by itself
CANNOT_SERVE = 2  # the exit code that starting again would not change

_SIGNALLED = b"s"  # no number of a signal

log = logging.getLogger(__name__)


def run(
    configs: Mapping[str | None, Config],
    path: Path,
    count: int,
    shutdown: ShutdownSignal,
    *,
    profile: Path | None = None,
) -> int:
    """Run `count` workers of each stage at `path` until a signal asks to stop. Exit codes are a daemon's.

    `configs`: by the name of the stage; of a single daemon, by None.
    """
    for text in dict.fromkeys(text for config in configs.values() for text in config_warnings(config)):
        log.warning("%s", text)
    config = next(iter(configs.values()))  # what the parent needs is the same for all
    workers = [
        WorkerProcess(place * count + number, worker_command(path, number, count, profile, stage=stage), stage)
        for place, stage in enumerate(configs)
        for number in range(count)
    ]
    token = config.secret("http.token")
    pages = Pages(
        lambda: [worker.status for worker in workers],
        stall_after_s=config.http.stall_after,
        token=token,
        show_keys=token is not None or config.http.loopback,
    )
    guard = Guard(token, local_only=config.http.loopback)
    try:
        http = HttpServer(
            config.http.host,
            config.http.port,
            pages.routes(),
            not_found=pages.not_found,
            state=pages.state,
            feed=pages.feed,
            guard=guard,
        )
    except CannotServe as error:
        for problem in error.problems:
            log.error("%s", problem)  # noqa: TRY400 - for a person, not for a debugger
        return CANNOT_SERVE
    with http:
        log.info("listening", extra={"host": config.http.host, "port": http.port, "workers": len(workers)})
        supervisor = Supervisor(workers, stop_within_s=config.shutdown_timeout + GRACE_S)
        try:
            return supervisor.run(shutdown)
        finally:
            shutdown.ignore()


class Backoff:
    """How long to wait before a worker is started again."""

    def __init__(self, waits_s: Sequence[float] = BACKOFF_S, steady_s: float = STEADY_S) -> None:
        self._waits_s = waits_s
        self._steady_s = steady_s
        self._ends = 0

    def after(self, ran_s: float) -> float:
        """Seconds to wait now that it has ended after `ran_s`."""
        if ran_s >= self._steady_s:
            self._ends = 0
        wait_s = self._waits_s[min(self._ends, len(self._waits_s) - 1)]
        self._ends += 1
        return wait_s


class Supervisor:
    """One thread around all workers. It waits for their lines, which end with them, and for signals."""

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        *,
        stop_within_s: float,
        backoff: Callable[[], Backoff] = Backoff,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stop_within_s`: from the request to stop until those that still run are killed."""
        self._workers = workers
        self._stop_within_s = stop_within_s
        self._clock = clock
        self._backoffs = {worker: backoff() for worker in workers}
        self._due_s: dict[WorkerProcess, float] = {}  # those that are to be started again, and when
        self._stop_by_s: float | None = None
        self._exit_code = 0
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()

    def run(self, shutdown: ShutdownSignal) -> int:
        """Until a signal or a worker that cannot serve, then until all have ended; the worst of their exit codes."""
        for end in (self._woken, self._wake):
            end.settimeout(0.0)
        self._selector.register(self._woken, selectors.EVENT_READ)
        shutdown.on_request(self._on_signal)
        # The system may give a signal to another thread, which does not end a `select` of this one.
        before = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            for worker in self._workers:
                if not shutdown.requested:
                    self._start(worker)
            while self._stop_by_s is None or any(worker.status.running for worker in self._workers):
                self._run_once()
        finally:
            for worker in self._workers:  # none, unless something failed here: then they stop by themselves
                worker.leave()
            signal.set_wakeup_fd(before)
            self._selector.close()
            self._woken.close()
            self._wake.close()
        log.info("all workers have ended", extra={"exit_code": self._exit_code})
        return self._exit_code

    def _on_signal(self) -> None:
        """In the signal handler: each signal wakes the loop once."""
        with contextlib.suppress(OSError):
            self._wake.send(_SIGNALLED)

    def _run_once(self) -> None:
        for key, _ in self._selector.select(self._timeout_s()):
            if key.fileobj is self._woken:
                if _SIGNALLED in self._woken.recv(64):  # else it is a signal whose handler runs next
                    self._stop()
            elif not key.data.read():
                self._on_end(key.data)
        now_s = self._clock()
        if self._stop_by_s is not None:
            if now_s >= self._stop_by_s:
                self._kill()
            return
        for worker in [worker for worker, due_s in self._due_s.items() if due_s <= now_s]:
            del self._due_s[worker]
            self._start(worker)

    def _timeout_s(self) -> float | None:
        until_s = min(self._due_s.values(), default=None) if self._stop_by_s is None else self._stop_by_s
        return None if until_s is None else max(0.0, until_s - self._clock())

    def _start(self, worker: WorkerProcess) -> None:
        try:
            worker.start(self._clock())
        except OSError as error:
            worker.failed_to_start(self._clock(), error)
            self._start_later(worker, ran_s=0.0)
            return
        assert worker.line is not None
        self._selector.register(worker.line, selectors.EVENT_READ, worker)
        log.info("worker started", extra={**_fields(worker), "pid": worker.pid, "restarts": worker.status.run - 1})
        if self._stop_by_s is not None:
            worker.terminate()

    def _on_end(self, worker: WorkerProcess) -> None:
        assert worker.line is not None
        self._selector.unregister(worker.line)
        now_s = self._clock()
        ran_s = now_s - worker.status.since_s
        code = worker.wait(now_s)
        stopping = self._stop_by_s is not None
        if stopping and not worker.handles_signals and code in {-signal.SIGTERM, -signal.SIGINT}:
            code = 0  # somebody signalled all processes at once, and it had not begun
        if stopping:
            self._note(code)
            log.info("worker ended", extra={**_fields(worker), "exit_code": code})
        elif code == CANNOT_SERVE:
            log.error("%s cannot serve (exit code 2; its log says why): stopping all", worker.status.label)
            self._note(code)
            self._stop()
        else:
            self._start_later(worker, ran_s)

    def _start_later(self, worker: WorkerProcess, ran_s: float) -> None:
        wait_s = self._backoffs[worker].after(ran_s)
        self._due_s[worker] = self._clock() + wait_s
        ended = worker.status.ended
        log.error(
            "%s has ended (%s); starting it again in %g s",
            worker.status.label,
            ended,
            wait_s,
            extra={**_fields(worker), "ran_s": round(ran_s, 1)},
        )

    def _stop(self) -> None:
        """Ask all to stop; again at each further signal, as a single daemon would see it."""
        if self._stop_by_s is None:
            self._stop_by_s = self._clock() + self._stop_within_s
            log.info("stopping the workers")
            for worker in self._due_s:  # it failed, and was not there to be stopped cleanly
                log.warning("%s does not run: %s", worker.status.label, worker.status.ended)
                self._exit_code = max(self._exit_code, 1)
        for worker in self._workers:
            if worker.status.running:
                worker.terminate()

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.status.running:
                log.error(
                    "%s has not stopped within shutdown_timeout and %g s more; ending it",
                    worker.status.label,
                    GRACE_S,
                )
                worker.kill()
        self._stop_by_s = self._clock() + GRACE_S

    def _note(self, code: int) -> None:
        """Keep the worst: 2 needs a person, 1 for the supervisor of this process; a signal is a failure."""
        self._exit_code = max(self._exit_code, code if code in {0, 1, CANNOT_SERVE} else 1)


def _fields(worker: WorkerProcess) -> dict[str, object]:
    """What a log line says of it."""
    status = worker.status
    return {"worker": status.number} | ({} if status.stage is None else {"stage_name": status.stage})
