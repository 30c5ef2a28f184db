"""Whether the daemon lives and whether it is ready, for the probes. The daemon writes, the HTTP thread reads.

It knows neither Kafka nor HTTP: only when the loop last moved, and what is still being waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

# What must be done before the daemon is ready, and what to say until then.
AT_START: Mapping[str, str] = {
    "model": "the model is not loaded yet",
    "assignment": "the consumer group has not assigned partitions yet",
    "restore": "the states are not restored yet",
}


class Health:
    """Thread-safe. Ready once nothing is waited for; alive while the loop moves."""

    def __init__(
        self,
        *,
        stall_after: float,
        clock: Callable[[], float] = time.monotonic,
        waiting: Mapping[str, str] = AT_START,
    ) -> None:
        """`stall_after` in seconds. `waiting`: what is to be done before it is ready, each with the reason to give."""
        self._stall_after = stall_after
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = "starting"
        self._waiting = dict(waiting)
        self._moved = clock()

    @property
    def phase(self) -> str:
        """Where in its life the daemon is, in a word."""
        with self._lock:
            return self._phase

    def enter(self, phase: str) -> None:
        """Name the phase that begins now."""
        with self._lock:
            self._phase = phase

    def wait(self, what: str, reason: str) -> None:
        """Not ready until `done(what)`. The reason is public: no key, value or error text in it."""
        with self._lock:
            self._waiting[what] = reason

    def done(self, what: str) -> None:
        """`what` is waited for no longer."""
        with self._lock:
            self._waiting.pop(what, None)

    def moved(self, now: float | None = None) -> None:
        """The loop went round. `now` is the clock's, for callers who have just read it."""
        now = self._clock() if now is None else now
        with self._lock:
            self._moved = max(self._moved, now)

    def livez(self) -> tuple[bool, str]:
        """Whether the loop has moved within `stall_after`, and a sentence that says so."""
        with self._lock:
            still_s = self._clock() - self._moved
            phase = self._phase
        if still_s > self._stall_after:
            return False, f"{phase}: the loop has not moved for {still_s:.0f} s"
        return True, f"{phase}: the loop moves"

    def readyz(self) -> tuple[bool, list[str]]:
        """Whether the daemon is answering events, and what is in the way. One that stands still is not ready."""
        alive, text = self.livez()
        with self._lock:
            reasons = list(self._waiting.values())
        if not alive:
            reasons.append(text)
        return not reasons, reasons
