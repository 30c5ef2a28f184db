"""Time, in the hands of whoever runs the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clock(NamedTuple):
    """The clocks that a daemon reads, and how it waits."""

    monotonic_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time  # since 1970 UTC
    sleep: Callable[[float], None] = time.sleep
