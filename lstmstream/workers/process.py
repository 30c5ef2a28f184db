"""One worker as its parent sees it: `lstmstream run CONFIG --worker i/N` as a process of its own, and the line to it.

An ordinary process, not a fork of this one and not made by multiprocessing: it starts as a single daemon starts, `ps`
shows what it is, and it has nothing of the parent but the configuration's path.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lstmstream.serve.worker import PORT, STARTED

END_S = 5.0  # from the end of its line to the end of the process


class WorkerStatus(NamedTuple):
    """What is known of a worker without asking it. A new one at each change, so that any thread may read it."""

    number: int
    run: int  # how often it was started
    running: bool
    since_s: float  # of the monotonic clock: when it was started, or when it ended
    port: int | None  # of its endpoints, once it has told
    ended: str  # how it ended the last time, in words
    stage: str | None = None  # whose process it is, where there are stages

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"worker {self.number}" if self.stage is None else f"stage {self.stage}, worker {self.number}"


def worker_command(
    config: Path, number: int, count: int, profile: Path | None = None, *, stage: str | None = None
) -> list[str]:
    """The command of one worker, with the Python and from the place that this process runs from.

    With `profile`, each worker has a file of its own: p-0.json, p-1.json and so on for p.json.
    """
    # As a script the working folder is not searched for modules, and a folder that is named like one must not matter.
    from_folder = sys.path[:1] == [str(Path.cwd())]
    safe_path = [] if from_folder else ["-P"]
    command = [sys.executable, *safe_path, "-m", "lstmstream", "run", str(config), "--worker", f"{number}/{count}"]
    if stage is not None:
        command += ["--stage", stage]
    if profile is not None:
        own = str(number) if stage is None else f"{stage}-{number}"
        command += ["--profile", str(profile.with_stem(f"{profile.stem}-{own}"))]
    return command


class WorkerProcess:
    """Starts again and again. Used by one thread; only `status` is for others."""

    def __init__(self, number: int, command: Sequence[str], stage: str | None = None) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._received = b""
        self._handles_signals = False
        self._asked_to_stop = False
        self.status = WorkerStatus(number, 0, running=False, since_s=0.0, port=None, ended="", stage=stage)

    @property
    def line(self) -> socket.socket | None:
        """The socket to wait for; None while the worker does not run."""
        return self._line

    @property
    def handles_signals(self) -> bool:
        """Whether it has told so; before, a signal would end it as it ends any Python."""
        return self._handles_signals

    @property
    def pid(self) -> int:
        """Of the process that runs now, or ran last; 0 before the first."""
        return 0 if self._process is None else self._process.pid

    def start(self, now_s: float) -> None:
        """Start it. Raises OSError where the system cannot."""
        ours, theirs = socket.socketpair()
        self._received, self._handles_signals, self._asked_to_stop = b"", False, False
        self.status = self.status._replace(run=self.status.run + 1, running=False, since_s=now_s, port=None)
        try:
            # A group of its own: Ctrl-C in a terminal goes to the parent alone, which passes it on.
            self._process = subprocess.Popen(self._command, stdin=theirs.fileno(), process_group=0)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.settimeout(0.0)
        self._line = ours
        self.status = self.status._replace(running=True)

    def read(self) -> bool:
        """Take what it has said; False at the end of its line, which is the end of the process."""
        assert self._line is not None
        try:
            received = self._line.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._received += received
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))
        return bool(received)

    def _take(self, line: str) -> None:
        if line == STARTED:
            self._handles_signals = True
            if self._asked_to_stop:
                self._signal(signal.SIGTERM)
        elif line.startswith(PORT):
            self.status = self.status._replace(port=int(line.removeprefix(PORT)))

    def terminate(self) -> None:
        """Ask it to stop, as soon as it handles signals."""
        self._asked_to_stop = True
        if self._handles_signals:
            self._signal(signal.SIGTERM)

    def leave(self) -> None:
        """End the line, if it is open: the worker stops as if this process had ended."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def kill(self) -> None:
        """End it now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def wait(self, now_s: float) -> int:
        """Its exit code, once its line has ended; negative is the signal that ended it."""
        assert self._process is not None
        self.leave()
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # it has closed its standard input, and nobody could stop it any more
            self._process.kill()
            code = self._process.wait()
        self.status = self.status._replace(running=False, since_s=now_s, port=None, ended=describe_exit(code))
        return code

    def failed_to_start(self, now_s: float, error: OSError) -> None:
        """Note why `start` did not work."""
        ended = f"cannot be started: {error.strerror}"
        self.status = self.status._replace(running=False, since_s=now_s, ended=ended)


def describe_exit(code: int) -> str:
    """An exit code of a process in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
