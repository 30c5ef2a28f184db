"""How far restores are, for the log and for /readyz: a line every few seconds, one per partition, one at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from lstmstream.logs import show_status
from lstmstream.serve.restore import Restore, Restored
from lstmstream.wording import counted

INTERVAL_S = 5.0
BAR_WIDTH = 30

log = logging.getLogger(__name__)


class RestoreProgress:
    """Told what the daemon restores; remembers what was done since nothing was left to restore."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock`: monotonic seconds."""
        self._clock = clock
        self._began_s: float | None = None
        self._most = 0  # records that were left at a time since then
        self._next_s = 0.0
        self._last: tuple[float, int] | None = None  # when, and how many records were left
        self._done: list[Restored] = []

    def text(self, restores: Sequence[Restore]) -> str:
        """What is left, in words for /readyz. Logs it every few seconds."""
        now_s = self._clock()
        if self._began_s is None:
            self._began_s, self._next_s, self._last, self._most = now_s, now_s + INTERVAL_S, None, 0
        left = sum(restore.remaining for restore in restores)
        count = len(restores)
        text = f"{count} partition{'s are' if count > 1 else ' is'} being restored"
        if left:
            text += f", {counted(left, 'record')} left to read"
        seconds_left = self._seconds_left(now_s, left)
        if seconds_left is not None:
            text += f", about {seconds_left:.0f} s"
        self._most = max(self._most, left)
        done = 1 - left / self._most if self._most else 0.0
        show_status(f"[{'#' * round(BAR_WIDTH * done):.<{BAR_WIDTH}}] {done:.0%}  {text}")
        if now_s >= self._next_s:
            self._next_s, self._last = now_s + INTERVAL_S, (now_s, left)
            log.info(
                "restoring",
                extra={
                    "partitions": [restore.partition.number for restore in restores],
                    "phases": [restore.phase.name.lower() for restore in restores],
                    "records_left": left,
                    "seconds_left": seconds_left if seconds_left is None else round(seconds_left),
                    "seconds": round(now_s - self._began_s, 1),
                },
            )
        return text

    def on_restored(self, restored: Restored) -> None:
        """A partition is running: where its states came from."""
        self._done.append(restored)
        log.info("partition restored", extra=restored._asdict())

    def on_all_restored(self) -> None:
        """Nothing is left to restore."""
        show_status("")
        if self._began_s is not None and len(self._done) > 1:
            log.info(
                "all partitions restored",
                extra={
                    "partitions": len(self._done),
                    "states": sum(restored.states for restored in self._done),
                    "replayed": sum(restored.replayed for restored in self._done),
                    "duration_s": round(self._clock() - self._began_s, 3),
                },
            )
        self._began_s, self._done = None, []

    def _seconds_left(self, now_s: float, left: int) -> float | None:
        """By the rate since the last line; None where it is not known, such as when another phase has begun."""
        if self._last is None or not left:
            return None
        then_s, before = self._last
        if left >= before or now_s <= then_s:
            return None
        return left * (now_s - then_s) / (before - left)
