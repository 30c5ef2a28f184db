"""Whether the daemon lives and whether it is ready, for the probes. The daemon writes, the HTTP thread reads.

It knows neither Kafka nor HTTP: only when the loop last went round, what is in the way, and whether input that waits is
answered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

# What must be done before the daemon is ready, and what to say until then.
STARTUP_CONDITIONS: Mapping[str, str] = {
    "model": "the model is not loaded yet",
    "assignment": "the consumer group has not assigned partitions yet; after a crash it waits up to session.timeout.ms"
    " (45 s) for the member that is gone, unless group.instance.id is set",
    "restore": "the states are not restored yet",
}


MAX_ERROR_CHARS = 300
LOADING_S = 600.0  # to load the model: a large one, or CUDA, may take longer than a round of the loop ever does


class Health:
    """Thread-safe. Ready once nothing is in the way and input that waits is answered; alive while the loop moves."""

    def __init__(
        self,
        *,
        stall_after: float,
        clock: Callable[[], float] = time.monotonic,
        blocked: Mapping[str, str] = STARTUP_CONDITIONS,
    ) -> None:
        """`stall_after` in seconds, for the loop and for commits that input waits for.

        `blocked`: what is in the way at first, each with the reason to give.
        """
        self._stall_after = stall_after
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = "starting"
        self._blocked = dict(blocked)
        self._last_heartbeat_s = clock()
        self._waiting = 0  # records of the input, as last seen
        self._waiting_since_s: float | None = None  # since the last commit, or since when there are any
        self._last_error = ""

    @property
    def phase(self) -> str:
        """Where in its life the daemon is, in a word."""
        with self._lock:
            return self._phase

    def set_phase(self, phase: str) -> None:
        """Name the phase that begins now."""
        with self._lock:
            self._phase = phase

    def block(self, what: str, reason: str) -> None:
        """Not ready until `unblock(what)`. The reason is public: no key, value or error text in it."""
        with self._lock:
            self._blocked[what] = reason

    def unblock(self, what: str) -> None:
        """`what` is no longer in the way."""
        with self._lock:
            self._blocked.pop(what, None)
            if what == "model":
                self._last_heartbeat_s = self._clock()  # the loop comes next

    def heartbeat(self, now: float | None = None) -> None:
        """The loop went round. `now` is the clock's, for callers who have just read it."""
        now = self._clock() if now is None else now
        with self._lock:
            self._last_heartbeat_s = max(self._last_heartbeat_s, now)

    def waiting(self, records: int) -> None:
        """So many records of the input wait to be answered."""
        with self._lock:
            self._waiting = records
            if not records:
                self._waiting_since_s = None
            elif self._waiting_since_s is None:
                self._waiting_since_s = self._clock()

    def committed(self, records: int) -> None:
        """A batch of so many went through: what still waits has waited since now."""
        with self._lock:
            self._last_error = ""
            self._waiting = max(0, self._waiting - records)
            if self._waiting_since_s is not None:
                self._waiting_since_s = self._clock() if self._waiting else None

    def failed(self, error: str, waiting: int) -> None:
        """A batch of so many events did not go through. The broker's words hold no key and no value."""
        if waiting:
            self.waiting(max(waiting, self._waiting))
        with self._lock:
            self._last_error = error[:MAX_ERROR_CHARS]

    def livez(self) -> tuple[bool, str]:
        """Whether the loop has moved within `stall_after`, and a sentence that says so.

        Until the model is loaded there is no loop, and the limit is `LOADING_S`, if that is longer.
        """
        with self._lock:
            still_s = self._clock() - self._last_heartbeat_s
            phase, loading = self._phase, "model" in self._blocked
        if loading and still_s <= LOADING_S:
            return True, f"{phase}: the model is being loaded, for {still_s:.0f} s"
        if still_s > self._stall_after:
            return False, f"{phase}: the loop has made no progress for {still_s:.0f} s"
        return True, f"{phase}: the loop is making progress"

    def readyz(self) -> tuple[bool, list[str]]:
        """Whether the daemon is answering events, and what is in the way. One that stands still is not ready."""
        alive, text = self.livez()
        with self._lock:
            reasons = list(self._blocked.values())
            stalled = self._stalled()
        if stalled is not None:
            reasons.append(stalled)
        if not alive:
            reasons.append(text)
        return not reasons, reasons

    def _stalled(self) -> str | None:
        if self._waiting_since_s is None:
            return None
        still_s = self._clock() - self._waiting_since_s
        if still_s <= self._stall_after:
            return None
        text = f"{self._waiting} records are waiting, and no batch was committed for {still_s:.0f} s"
        return f"{text}; the last error: {self._last_error}" if self._last_error else text
