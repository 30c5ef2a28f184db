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


def leave_behind(bound: CallBound, hanging: threading.Event) -> None:
    """The call that hangs is not waited for any longer, and all before it are, however long they take."""
    wait = bound.wait

    def wait_until_it_hangs(finished: threading.Event, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + LONG_S
        while not finished.is_set():
            if hanging.is_set():
                bound.wait = wait  # type: ignore[method-assign]
                return wait(finished, min(timeout_s, 0.1))
            assert time.monotonic() < deadline_s, "nothing hangs"
            finished.wait(0.01)
        return True

    bound.wait = wait_until_it_hangs  # type: ignore[method-assign]
