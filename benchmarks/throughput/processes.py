"""Starts programs, measures their CPU time and memory by /proc, and ends them, come what may."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of a process and its descendants so far, and the sum of their peaks of resident memory."""

    cpu_s: float
    peak_rss_bytes: int


def usage_of(pid: int) -> Usage:
    """What the tree below and with `pid` used; a descendant that ended counts once its parent has waited for it."""
    cpu_s, peak = 0.0, 0
    for member in process_tree(pid):
        with contextlib.suppress(OSError, KeyError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            cpu_s += sum(int(ticks) for ticks in fields[11:15]) / TICKS_PER_S  # user, system, and those of the reaped
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
            found = dict(line.split(":", 1) for line in lines if line.startswith("VmHWM"))
            peak += int(found["VmHWM"].split()[0]) * 1024
    return Usage(cpu_s, peak)


def process_tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    found, waiting = [], [pid]
    while waiting:
        member = waiting.pop()
        found.append(member)
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                waiting += [int(child) for child in (thread / "children").read_text().split()]
    return found


def kill_tree(pid: int) -> None:
    """Kill the process, its process group, and its descendants in other groups; not those whose parent ended before."""
    members = process_tree(pid)  # the process itself is the first, so that it starts no children again
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def machine_busy_s() -> float:
    """CPU seconds that all programs of the machine used so far."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft_interrupts = fields[:7]
    return (user + nice + system + interrupts + soft_interrupts) / TICKS_PER_S


class Guard:
    """Ends what was started and still runs when the benchmark itself ends, even by SIGKILL."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", __name__]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, text=True, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe().close()
        self._process.wait(10)

    def add(self, pid: int) -> None:
        """Watch this process, which leads a process group."""
        self._tell(f"+{pid}")

    def remove(self, pid: int) -> None:
        """It has ended."""
        self._tell(f"-{pid}")

    def _tell(self, line: str) -> None:
        print(line, file=self._pipe(), flush=True)

    def _pipe(self) -> IO[str]:
        assert self._process.stdin is not None
        return self._process.stdin


class Program:
    """A program in a process group of its own, with its output in a file. On exit it is ended with all its children."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, guard: Guard) -> None:
        self.log = log
        self._guard = guard
        # A variable that overrides a setting of the daemon would change what is measured.
        own = {name: value for name, value in os.environ.items() if not name.startswith("LSTMSTREAM_")}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=own | dict(environment),
                start_new_session=True,
            )
        guard.add(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the program itself; also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def usage(self) -> Usage:
        """Of the program with all its children."""
        return usage_of(self.pid)

    def end(self) -> None:
        """Kill it with all its children: nothing that they would still save is needed."""
        kill_tree(self.pid)
        self._process.wait()
        self._guard.remove(self.pid)

    def last_words(self) -> str:
        """The end of its output, in one line."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-400:]


def guard(lines: Iterable[str]) -> None:
    """Kill what was added and not removed once there are no more lines: the benchmark has ended, perhaps by SIGKILL."""
    left: set[int] = set()
    for line in lines:
        (left.add if line.startswith("+") else left.discard)(int(line[1:]))
    for pid in left:
        kill_tree(pid)


if __name__ == "__main__":
    guard(sys.stdin)
