"""How much goes into one transaction: less after one that failed, more again after those that went through."""

from __future__ import annotations

CAREFUL_COMMITS = 8  # before each growth, after a transaction that was too slow


class BatchLimit:
    """A maximum that is halved by failures and doubled by successes, up to where it began.

    After a refused record it grows with each success: the record is known from then on. After any other failure it
    grows slowly, since the next larger batch would be too slow again.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._needed = 1
        self._successes = 0
        self.now = maximum

    def on_commit(self) -> None:
        """A transaction went through."""
        self._successes += 1
        if self.now < self._maximum and self._successes >= self._needed:
            self.now = min(self._maximum, 2 * self.now)
            self._successes = 0
        if self.now == self._maximum:
            self._needed = 1

    def on_refused(self, count: int) -> None:
        """One of `count` was refused for good."""
        if count:
            self.now = min(self.now, max(1, count // 2))
            self._successes = 0

    def on_failure(self, count: int) -> None:
        """A transaction of `count` failed: it may have been too large for the time limits."""
        if count:
            self.on_refused(count)
            self._needed = CAREFUL_COMMITS
