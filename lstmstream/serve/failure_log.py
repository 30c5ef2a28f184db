"""Failures that repeat, in a log that stays readable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lstmstream.logs import message_kind

LONGEST_PAUSE_S = 60.0
MAX_KINDS = 50


@dataclass(slots=True)
class _Kind:
    since_s: float
    last_s: float
    count: int = 0
    pause_s: float = 1.0
    next_s: float = 0.0


class FailureLog:
    """Logs a failure at once, and the same kind of failure again after 1, 2, 4 ... 60 s, with a count.

    Failures are of one kind if their texts differ in numbers only. After a minute without one the next is a new one.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float]) -> None:
        """`clock` is monotonic seconds."""
        self._log = logger
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}

    def note(self, what: str, error: BaseException | str) -> None:
        """It happened: log it, unless the same was logged a moment ago."""
        now_s = self._clock()
        text = f"{what}: {error}"
        name = message_kind(text)
        kind = self._kinds.get(name)
        if kind is None or now_s - kind.last_s > LONGEST_PAUSE_S:
            self._kinds.pop(name, None)
            if len(self._kinds) >= MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
            kind = self._kinds[name] = _Kind(now_s, now_s)
        kind.count += 1
        kind.last_s = now_s
        if kind.count == 1:
            self._log.warning("%s", text)
            kind.next_s = now_s + kind.pause_s
        elif now_s >= kind.next_s:
            self._log.warning("%s (%d times in %.0f s)", text, kind.count, now_s - kind.since_s)
            kind.pause_s = min(LONGEST_PAUSE_S, 2 * kind.pause_s)
            kind.next_s = now_s + kind.pause_s
