"""SIGTERM and SIGINT as a request to shut down. Imports almost nothing, so that the handlers can be installed first."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ShutdownSignal:
    """Installs the signal handlers and remembers a request that comes before anybody is ready to act on it."""

    def __init__(self) -> None:
        self._requested = False
        self._callback: Callable[[], None] | None = None
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def on_request(self, callback: Callable[[], None]) -> None:
        """Call `callback` at every signal, and at once if one has come already."""
        self._callback = callback
        if self._requested:
            callback()

    def interrupt(self) -> None:
        """Let a signal raise KeyboardInterrupt, until `on_request` names what else it does. For the main thread."""
        self.on_request(_raise_interrupt)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._requested

    @staticmethod
    def ignore() -> None:
        """Ignore further signals: the process is about to exit, and its exit code is decided."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self._requested = True
        if self._callback is not None:
            self._callback()


def _raise_interrupt() -> None:
    raise KeyboardInterrupt
