"""`--profile FILE`: the time per event and stage in the log, and the sampled stacks of all threads in FILE."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import orjson

from lstmstream.errors import CannotServe
from lstmstream.serve.stack_sampler import SCHEMA, StackSampler
from lstmstream.wording import counted

HEAD_BYTES = 200
MIN_THREAD_S = 0.05  # a thread with less CPU time is not in the table

log = logging.getLogger(__name__)


class Totals(NamedTuple):
    """What was done while the profile was taken."""

    events: int
    batches: int
    stage_s: Mapping[str, float]  # wall time by stage


class Profile:
    """Taken from `start` to `finish`."""

    def __init__(self, file: Path, title: str) -> None:
        """Raises CannotServe where `file` cannot be written, or is something other than a profile."""
        self._file = file
        self._title = title
        self._sampler = StackSampler()
        self._began_s: float | None = None
        self._cpu_s = 0.0
        try:
            with file.open("ab+") as opened:
                if file.is_file():  # not a terminal or a pipe
                    opened.seek(0)
                    head = opened.read(HEAD_BYTES)
                    if head and SCHEMA.encode() not in head:
                        raise CannotServe(f"--profile {file}: exists and is not a profile; name another file")
        except OSError as error:
            raise CannotServe(f"--profile {file}: cannot be written ({error.strerror}); name another file") from None

    def start(self) -> None:
        """Begin to sample."""
        self._began_s, self._cpu_s = time.monotonic(), time.process_time()
        self._sampler.start()

    def finish(self, totals: Totals, say: Callable[[str], None]) -> None:
        """Log the table and write the file; nothing if it never started. An error of the file is logged, not raised."""
        if self._began_s is None:
            return
        wall_s, cpu_s = time.monotonic() - self._began_s, time.process_time() - self._cpu_s
        self._sampler.stop()
        for line in table(totals, wall_s, cpu_s, self._sampler.cpu.by_name()):
            say(line)
        try:
            self._file.write_bytes(orjson.dumps(self._sampler.speedscope(self._title)))
        except OSError as error:
            say(f"the profile could not be written to {self._file}: {error.strerror}")
        else:
            say(f"the profile was written to {self._file}; open it at https://www.speedscope.app")


def table(totals: Totals, wall_s: float, cpu_s: float, threads: Mapping[str, float]) -> list[str]:
    """The lines of the table. `cpu_s`: of the whole process; `threads`: CPU seconds by name."""
    events, batches = totals.events, totals.batches
    lines = [
        f"{counted(events, 'event')} in {wall_s:.1f} s and {counted(batches, 'batch', 'batches')}",
        f"{_ratio(events, batches, 1)} events per batch",
        f"{_ratio(cpu_s * 1e6, events, 2)} CPU seconds per million events",
        f"{'stage':<10}{'us per event':>14}{'us per batch':>14}{'of the time':>13}",
    ]
    rows = [*totals.stage_s.items(), ("the rest", max(0.0, wall_s - sum(totals.stage_s.values())))]
    for stage, seconds in rows:
        per_event, per_batch = _ratio(seconds * 1e6, events, 2), _ratio(seconds * 1e6, batches, 0)
        lines.append(f"{stage:<10}{per_event:>14}{per_batch:>14}{_ratio(seconds * 100, wall_s, 1):>11} %")
    lines.append(f"{'CPU of thread':<44}{'s':>8}{'of a core':>13}")
    for name, seconds in threads.items():
        if seconds >= MIN_THREAD_S:
            lines.append(f"{name:<44}{seconds:>8.2f}{_ratio(seconds * 100, wall_s, 1):>11} %")
    return lines


def _ratio(part: float, whole: float, digits: int) -> str:
    return f"{part / whole:,.{digits}f}" if whole else "-"
