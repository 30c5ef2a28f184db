"""The loop's time that work beside the stream may take, such as snapshots and standbys: short slices, with rests."""

from __future__ import annotations

from collections.abc import Callable

SLICE_S = 0.02  # an event that comes meanwhile waits for its end
BUSY_FRACTION = 0.1  # of the loop's time, while events come,
IDLE_FRACTION = 0.5  # and while none do


class LoopShare:
    """When the next slice of one such work may begin."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next_s = 0.0  # clock time

    @property
    def rest_s(self) -> float:
        """Seconds until then; 0 if it may begin now."""
        return max(0.0, self._next_s - self._clock())

    def rest(self, began_s: float, *, idle: bool) -> None:
        """After a slice that began at that clock time. `idle`: no events came in this round of the loop."""
        now_s = self._clock()
        share_s = (now_s - began_s) / (IDLE_FRACTION if idle else BUSY_FRACTION)
        self._next_s = max(self._next_s, began_s + share_s, now_s + SLICE_S)  # one that finds nothing must not spin

    def pause(self, seconds: float) -> None:
        """No slice for so long."""
        self._next_s = self._clock() + seconds
