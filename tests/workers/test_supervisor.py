"""The parent of several workers: who is started again and when, which signals are passed on, which exit code is left.

The workers are small Python programs that keep to the same line with their parent as a daemon does.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lstmstream.shutdown import SIGNALS, ShutdownSignal
from lstmstream.workers.process import WorkerProcess, describe_exit, worker_command
from lstmstream.workers.supervisor import BACKOFF_S, STEADY_S, Backoff, Supervisor

WAIT_S = 120.0
# It tells its parent that it handles SIGTERM, tells its port, and then does what the test says.
WORKER = """
import os, pathlib, signal, socket, sys, time

class Event:  # that of `threading` would wait for its own lock if the signal came while it is looked at
    come = False
    def set(self):
        self.come = True
    def wait(self, limit_s):
        until_s = time.monotonic() + limit_s
        while not self.come and time.monotonic() < until_s:
            time.sleep(0.01)

folder, number = pathlib.Path(sys.argv[1]), int(sys.argv[2])
stop = Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
runs = folder / f"runs-{number}"
with runs.open("a") as file:
    file.write(f"{os.getpid()}\\n")
run = len(runs.read_text().split())
parent = socket.socket(fileno=os.dup(0))
parent.sendall(f"started\\nport {4000 + number}\\n".encode())
"""
END = "signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.exit({code})\n"  # as a daemon does: its code is decided
SERVE = "stop.wait(600); " + END.format(code=0)


WAITS_S = (0.02, 0.05)


class Case:
    """A supervisor over worker programs; `run` on the main thread, as in the command."""

    def __init__(
        self,
        folder: Path,
        *programs: str,
        stop_within_s: float = WAIT_S,
        prologue: str = WORKER,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        """A program that is empty is one that cannot be started."""
        self.folder = folder
        self.workers = []
        for number, program in enumerate(programs):
            command = [sys.executable, "-c", prologue + program, str(folder), str(number)]
            self.workers.append(WorkerProcess(number, command if program else [str(folder / "missing")]))
        self._supervisor = Supervisor(
            self.workers, stop_within_s=stop_within_s, backoff=lambda: Backoff(waits_s, steady_s=60.0)
        )
        self._errors: list[BaseException] = []

    def pids(self, number: int) -> list[int]:
        """Of all processes that this worker has been, as they said."""
        file = self.folder / f"runs-{number}"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def run(self, then: Callable[[], None] = lambda: None) -> int:
        """Its exit code; meanwhile `then` runs beside it, and SIGTERM follows."""

        def beside() -> None:
            try:
                then()
            except BaseException as error:  # raised again below
                self._errors.append(error)
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # as the system may give it to any thread

        thread = threading.Thread(target=beside)
        shutdown = ShutdownSignal()
        thread.start()
        try:
            code = self._supervisor.run(shutdown)
        finally:
            thread.join()
        if self._errors:
            raise self._errors[0]
        for worker in self.workers:
            assert not any(alive(pid) for pid in self.pids(worker.status.number))
        return code


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# Each test sends SIGTERM in the end, and waits before for what it is about: a stop that comes first starts nobody.


def test_all_are_started_and_stop_with_the_parent(tmp_path: Path) -> None:
    case = Case(tmp_path, SERVE, SERVE, SERVE)
    ports = lambda: [worker.status.port for worker in case.workers]  # noqa: E731
    assert case.run(lambda: case.wait(lambda: ports() == [4000, 4001, 4002])) == 0
    assert [len(case.pids(number)) for number in range(3)] == [1, 1, 1]
    assert [worker.status.ended for worker in case.workers] == ["exit code 0"] * 3


def test_a_signal_from_a_terminal_comes_through_the_parent_only(tmp_path: Path) -> None:
    """Ctrl-C goes to a whole group of processes, and would end a Python that is still starting."""
    groups: list[int] = []

    def look() -> None:
        case.wait(lambda: case.workers[0].handles_signals)
        groups.append(os.getpgid(case.workers[0].pid))

    case = Case(tmp_path, SERVE)
    assert case.run(look) == 0
    assert groups[0] != os.getpgrp()


@pytest.mark.parametrize(("end", "said"), [("sys.exit(1)", "exit code 1"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_one_that_ends_is_started_again_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str, said: str
) -> None:
    caplog.set_level(logging.INFO)
    case = Case(tmp_path, SERVE, f"if run < 3: {end}\n" + SERVE)
    assert case.run(lambda: case.wait(lambda: len(case.pids(1)) == 3 and case.workers[1].handles_signals)) == 0
    assert len(case.pids(0)) == 1
    assert case.workers[1].status.run == 3
    again = [record for record in caplog.records if "starting it again" in record.getMessage()]
    assert [vars(record)["worker"] for record in again] == [1, 1]
    assert all(said in record.getMessage() for record in again)
    assert [record.getMessage().rpartition(" in ")[2] for record in again] == ["0.02 s", "0.05 s"]


def test_one_that_cannot_serve_ends_all_with_2(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(tmp_path, SERVE, "while not (folder / 'runs-0').exists(): time.sleep(0.01)\nsys.exit(2)")
    assert case.run(lambda: case.wait(lambda: bool(case.pids(1)) and not alive(case.pids(1)[0]))) == 2
    assert len(case.pids(1)) == 1
    assert case.workers[0].status.ended == "exit code 0", "the other one was not stopped cleanly"
    assert "worker 1 cannot serve" in caplog.text


@pytest.mark.parametrize(
    ("ends", "code"),
    [(("0", "0"), 0), (("0", "1"), 1), (("2", "1"), 2), (("7", "0"), 1)],
)
def test_the_worst_exit_code_is_left(tmp_path: Path, ends: tuple[str, ...], code: int) -> None:
    case = Case(tmp_path, *("stop.wait(600); " + END.format(code=end) for end in ends))
    started = lambda: all(worker.handles_signals for worker in case.workers)  # noqa: E731
    assert case.run(lambda: case.wait(started)) == code


def test_one_that_waits_to_be_started_again_is_a_failure_at_the_end(tmp_path: Path) -> None:
    case = Case(tmp_path, SERVE, "sys.exit(1)", waits_s=(600.0,))
    down = lambda: case.workers[1].status.ended == "exit code 1" and case.workers[0].handles_signals  # noqa: E731
    assert case.run(lambda: case.wait(down)) == 1
    assert len(case.pids(1)) == 1


def test_a_signal_before_a_worker_handles_signals_waits_for_it(tmp_path: Path) -> None:
    """SIGTERM would end a Python that is still starting as a failure."""
    late = "import pathlib, sys, time\n(pathlib.Path(sys.argv[1]) / 'begun').touch()\ntime.sleep(0.5)\n" + WORKER
    case = Case(tmp_path, SERVE, prologue=late)
    assert case.run(lambda: case.wait((tmp_path / "begun").exists)) == 0
    assert case.workers[0].status.ended == "exit code 0"


def test_a_signal_before_the_workers_are_started_starts_none(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [WorkerProcess(0, [sys.executable, "-c", WORKER, str(tmp_path), "0"])], stop_within_s=WAIT_S
    )
    shutdown = ShutdownSignal()
    os.kill(os.getpid(), signal.SIGTERM)
    assert supervisor.run(shutdown) == 0
    assert not (tmp_path / "runs-0").exists()


def test_a_second_signal_is_passed_on(tmp_path: Path) -> None:
    twice = """
stop.wait(600)
seen = Event()
signal.signal(signal.SIGTERM, lambda *_: seen.set())
(folder / "first").touch()
seen.wait(600)
"""
    case = Case(tmp_path, twice + END.format(code=0))

    def signals() -> None:
        case.wait(lambda: case.workers[0].handles_signals)
        os.kill(os.getpid(), signal.SIGINT)
        case.wait((tmp_path / "first").exists)

    assert case.run(signals) == 0


def test_one_that_does_not_stop_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = Case(tmp_path, SERVE, "while True: time.sleep(60)", stop_within_s=0.3)
    assert case.run(lambda: case.wait(lambda: case.workers[1].handles_signals)) == 1
    assert case.workers[1].status.ended == "signal SIGKILL"
    assert "worker 1 has not stopped within" in caplog.text


def test_a_parent_that_fails_leaves_workers_that_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until_it_ends = """
(folder / "told").touch()
try:
    parent.recv(1)
except ConnectionResetError:  # it did not read all that it was told
    pass
(folder / "left").touch()
"""
    case = Case(tmp_path, until_it_ends + END.format(code=0))

    def fail(_self: Supervisor) -> None:
        case.wait((tmp_path / "told").exists)
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Supervisor, "_run_once", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        case.run(lambda: case.wait((tmp_path / "told").exists))
    case.wait((tmp_path / "left").exists)
    process = case.workers[0]._process
    assert process is not None
    assert process.wait(WAIT_S) == 0


def test_a_command_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    case = Case(tmp_path, SERVE, "")
    worker = case.workers[1]
    assert case.run(lambda: case.wait(lambda: worker.status.run >= 3 and case.workers[0].handles_signals)) == 1
    assert worker.status.ended == "cannot be started: No such file or directory"
    assert len(case.pids(0)) == 1


def test_the_waits_grow_and_begin_again_after_a_steady_run() -> None:
    wait = Backoff()
    assert [wait.after(0.1) for _ in range(7)] == [1.0, 2.0, 5.0, 10.0, 30.0, 30.0, 30.0]
    assert wait.after(STEADY_S - 1) == BACKOFF_S[-1]
    assert [wait.after(ran_s) for ran_s in (STEADY_S, 0.1)] == [1.0, 2.0]


def test_the_end_of_a_process_in_words() -> None:
    assert [describe_exit(code) for code in (0, 2, -9, -200)] == [
        "exit code 0",
        "exit code 2",
        "signal SIGKILL",
        "signal 200",
    ]


def test_a_worker_is_the_same_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a module from a folder, it is found there; as a script, a folder of that name is none of its business."""
    monkeypatch.setattr(sys, "path", [str(Path.cwd()), *sys.path[1:]])
    config = tmp_path / "c.yaml"
    module = [sys.executable, "-m", "lstmstream", "run", str(config), "--worker", "1/2"]
    assert worker_command(config, 1, 2) == module
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path[1:]])
    assert worker_command(config, 1, 2) == [module[0], "-P", *module[1:]]


def test_each_worker_writes_a_profile_of_its_own(tmp_path: Path) -> None:
    command = worker_command(tmp_path / "c.yaml", 1, 2, tmp_path / "p.json")
    assert command[-2:] == ["--profile", str(tmp_path / "p-1.json")]


def test_a_worker_without_a_parent_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lstmstream", "run", str(tmp_path / "c.yaml"), "--worker", "0/2"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "use --workers" in done.stderr


def test_the_parent_loads_no_runtime_and_no_client() -> None:
    code = (
        "import sys, lstmstream.cli, lstmstream.config, lstmstream.workers.supervisor;"
        "print(*sorted({'onnxruntime', 'kafka', 'confluent_kafka', 'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.strip() == ""
