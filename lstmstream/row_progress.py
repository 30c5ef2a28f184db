"""The progress of reading and scoring on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from lstmstream.wording import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_INTERVAL_S = 5.0  # between lines; shorter runs say nothing
_BAR_AFTER_S = 0.5
_BAR_INTERVAL_S = 0.1


class RowProgress:
    """Rows, rate and, where the size is known, the time that is left. Never writes to standard output."""

    def __init__(self, name: str, *, terminal: bool | None = None) -> None:
        """`terminal`: whether to draw a bar; None looks whether standard error is one."""
        self._name = name
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._started = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def update(self, rows: int, done: float | None) -> None:
        """`rows` so far; `done` is the fraction of the file from 0 to 1, None where its size is not known."""
        now = time.monotonic()
        rate = rows / max(now - self._started, 1e-9)
        if self._terminal:
            if now - self._started >= _BAR_AFTER_S and now - self._last >= _BAR_INTERVAL_S:
                self._last = now
                self._draw(rows, rate, done)
        elif now - self._last >= LINE_INTERVAL_S:
            self._last = now
            left = ""
            if done:
                left = f", {done:.0%}, about {_duration((now - self._started) * (1 - done) / done)} left"
            print(
                f"lstmstream: {self._name}: {counted(rows, 'row')}, {rate:,.0f} rows/s{left}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Takes the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, rows: int, rate: float, done: float | None) -> None:
        from rich.console import Console  # noqa: PLC0415 -- a long run on a terminal needs it, others start faster
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

        if self._bar is None or self._task is None:
            self._bar = Progress(
                TextColumn("{task.fields[text]}"),
                BarColumn(),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr, force_terminal=True),
                transient=True,
                redirect_stdout=False,  # the predictions may go there
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=None, text="")
        self._bar.update(
            self._task,
            total=None if done is None else 1.0,
            completed=done or 0.0,
            text=f"{counted(rows, 'row')}, {rate:,.0f} rows/s",
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
