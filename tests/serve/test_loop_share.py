"""How long work beside the stream rests after a slice."""

from __future__ import annotations

import pytest

from lstmstream.serve.loop_share import SLICE_S, LoopShare


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def rest_after(took_s: float, *, idle: bool) -> float:
    clock = Clock()
    share = LoopShare(clock)
    assert share.rest_s == 0
    clock.now_s += took_s
    share.rest(clock.now_s - took_s, idle=idle)
    return share.rest_s


@pytest.mark.parametrize(("took_s", "busy_s", "idle_s"), [(0.02, 0.18, 0.02), (0.3, 2.7, 0.3), (0.01, 0.09, 0.02)])
def test_the_stream_has_the_rest_of_the_time(took_s: float, busy_s: float, idle_s: float) -> None:
    assert rest_after(took_s, idle=False) == pytest.approx(busy_s)
    assert rest_after(took_s, idle=True) == pytest.approx(idle_s)


@pytest.mark.parametrize("idle", [False, True])
def test_a_slice_that_finds_nothing_is_no_reason_to_try_at_once(idle: bool) -> None:
    """Such as while the records of an open transaction are waited for: the loop would spin."""
    assert rest_after(0.0, idle=idle) == pytest.approx(SLICE_S)


def test_a_pause_is_not_cut_short() -> None:
    clock = Clock()
    share = LoopShare(clock)
    share.pause(30.0)
    share.rest(clock.now_s, idle=True)
    assert share.rest_s == pytest.approx(30.0)
    clock.now_s += 31
    assert share.rest_s == 0
