"""Limits in time that a busy machine cannot reach too early."""

from __future__ import annotations

import threading
import time

from lstmstream.transport.calls import CallBound

LONG_S = 600.0


def count_from(bound: CallBound, hanging: threading.Event) -> CallBound:
    """Limits of calls count from the moment when one of them hangs: a thread that is not run soon has begun none."""
    wait = bound.wait

    def wait_longer(finished: threading.Event, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + LONG_S
        while not finished.is_set() and not hanging.is_set():
            assert time.monotonic() < deadline_s, "nothing hangs"
            finished.wait(0.01)
        return wait(finished, timeout_s)

    bound.wait = wait_longer  # type: ignore[method-assign]
    return bound
