"""SIGTERM and SIGINT as a wish that is kept until somebody can grant it. Loads nothing, so that it can come first."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether a stop was asked for, from the moment this is made; `then` says whom to tell."""

    def __init__(self) -> None:
        self._asked = False
        self._tell: Callable[[], None] | None = None
        for number in SIGNALS:
            signal.signal(number, self._ask)

    def then(self, tell: Callable[[], None]) -> None:
        """Call `tell` at each such signal, and now, if one has come already."""
        self._tell = tell
        if self._asked:
            tell()

    @property
    def asked(self) -> bool:
        """Whether somebody has asked."""
        return self._asked

    @staticmethod
    def no_more() -> None:
        """What comes from here on is too late: the process is on its way out, and its exit code is settled."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._tell is not None:
            self._tell()
