"""CPU time by thread, also of threads that are not Python's: those of librdkafka and of ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

MAX_NAMES = 64
_OTHER = "(other threads)"
_TASKS = Path("/proc/self/task")  # Linux; elsewhere nothing is found


class ThreadCpu:
    """Sums by the threads' names from the first `look` on; threads that end between two looks lose their last part."""

    def __init__(self) -> None:
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self._seen_s: dict[int, float] = {}  # of threads that live, by the kernel's number
        self._spent_s: dict[str, float] = {}
        self._began = False

    def look(self) -> None:
        """Add what was spent since the last look."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        found: dict[int, float] = {}
        for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
            with contextlib.suppress(OSError):  # it has ended since
                before, _, after = (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
                fields = after.split()
                number = int(task.name)
                found[number] = (int(fields[11]) + int(fields[12])) * self._tick_s
                spent_s = found[number] - self._seen_s.get(number, 0.0 if self._began else found[number])
                if spent_s > 0:
                    self._add(names.get(number) or f"{before.partition('(')[2]} (native)", spent_s)
        self._seen_s, self._began = found, True

    def _add(self, name: str, spent_s: float) -> None:
        if name not in self._spent_s and len(self._spent_s) >= MAX_NAMES:
            name = _OTHER
        self._spent_s[name] = self._spent_s.get(name, 0.0) + spent_s

    def by_name(self) -> Mapping[str, float]:
        """Seconds by name, the largest first."""
        return dict(sorted(self._spent_s.items(), key=lambda item: -item[1]))
