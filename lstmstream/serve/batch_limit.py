"""How many events go into one transaction: less after one that failed or took long, more again afterwards."""

from __future__ import annotations

import math

CAREFUL_COMMITS = 8  # before each growth, after a transaction that was too slow
PROMPT_S = 3.0  # what fails sooner, and for the first time, fails for another reason than its size
FIRST_EVENTS = 100  # while it is not known how long the model takes


class BatchLimit:
    """A maximum that is halved by failures and doubled by successes, up to where it began.

    After a refused record it grows with each success: the record is known from then on. After any other failure it
    grows slowly, since the next larger batch would be too slow again. A single prompt failure does not count: where one
    transaction in eight fails, the batches would become smaller and smaller.

    A second limit, `of_time`, is for models that take long: between two batches the group and the probes must hear of
    the daemon. What is fetched in vain, as by a member that was dropped from its group meanwhile, never ends.
    """

    def __init__(self, maximum: int, *, longest_s: float | None = None) -> None:
        """`longest_s`: what the engine may take for a batch; None: as long as it likes."""
        self._maximum = maximum
        self._needed = 1
        self._successes = 0
        self._failed_promptly = False
        self.of_failures = maximum
        self._longest_s = math.inf if longest_s is None else longest_s
        self.of_time = maximum if longest_s is None else min(maximum, FIRST_EVENTS)

    @property
    def now(self) -> int:
        """Both limits."""
        return min(self.of_failures, self.of_time)

    def on_processed(self, count: int, seconds: float) -> None:
        """The engine took so long for `count` events."""
        if seconds > self._longest_s:
            self.of_time = max(1, int(count * self._longest_s / seconds))
        elif count >= self.of_time and seconds < self._longest_s / 2:
            self.of_time = min(self._maximum, 2 * self.of_time)

    def on_commit(self) -> None:
        """A transaction went through."""
        self._successes += 1
        self._failed_promptly = False
        if self.of_failures < self._maximum and self._successes >= self._needed:
            self.of_failures = min(self._maximum, 2 * self.of_failures)
            self._successes = 0
        if self.of_failures == self._maximum:
            self._needed = 1

    def on_refused(self, count: int) -> None:
        """One of `count` was refused for good."""
        if count:
            self.of_failures = min(self.of_failures, max(1, count // 2))
            self._successes = 0

    def on_failure(self, count: int, seconds: float) -> None:
        """A transaction of `count` failed, so long after its begin: it may have been too large for the time limits."""
        if count and seconds < PROMPT_S and not self._failed_promptly:
            self._failed_promptly = True
        elif count:
            self.on_refused(count)
            self._needed = CAREFUL_COMMITS
