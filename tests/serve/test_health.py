"""Alive while the loop moves; ready once nothing is waited for."""

from __future__ import annotations

from lstmstream.serve.health import LOADING_S, STARTUP_CONDITIONS, Health


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_loop_that_stands_still_is_dead_and_one_that_moves_again_lives() -> None:
    clock = Clock()
    health = Health(stall_after=30.0, clock=clock)
    health.unblock("model")
    clock.now += 30.0
    assert health.livez()[0]
    clock.now += 0.001
    ok, text = health.livez()
    assert not ok
    assert text == "starting: the loop has made no progress for 30 s"
    health.heartbeat()
    assert health.livez() == (True, "starting: the loop is making progress")


def test_a_model_may_take_longer_to_load_than_a_round_of_the_loop() -> None:
    clock = Clock()
    health = Health(stall_after=30.0, clock=clock)
    clock.now += LOADING_S
    assert health.livez() == (True, "starting: the model is being loaded, for 600 s")
    clock.now += 0.001
    assert health.livez() == (False, "starting: the loop has made no progress for 600 s")
    health.unblock("model")
    clock.now += 30.0
    assert health.livez() == (True, "starting: the loop is making progress")
    clock.now += 0.001
    assert not health.livez()[0]


def test_an_old_time_does_not_take_progress_back() -> None:
    clock = Clock()
    health = Health(stall_after=30.0, clock=clock)
    health.unblock("model")
    clock.now += 20.0
    health.heartbeat()
    health.heartbeat(0.0)
    clock.now += 20.0
    assert health.livez()[0]


def test_ready_once_model_assignment_and_restore_are_done() -> None:
    health = Health(stall_after=30.0, clock=Clock())
    assert health.readyz() == (
        False,
        [
            "the model is not loaded yet",
            STARTUP_CONDITIONS["assignment"],
            "the states are not restored yet",
        ],
    )
    for what in ("model", "assignment", "restore"):
        assert not health.readyz()[0]
        health.unblock(what)
    assert health.readyz() == (True, [])
    health.unblock("restore")  # twice is fine


def test_a_rebalance_makes_it_wait_again() -> None:
    health = Health(stall_after=30.0, clock=Clock(), blocked={})
    assert health.readyz()[0]
    health.set_phase("restoring")
    health.block("restore", "2 partitions are being restored")
    health.block("restore", "1 partition is being restored")
    assert health.phase == "restoring"
    assert health.readyz() == (False, ["1 partition is being restored"])


def test_what_stands_still_is_not_ready() -> None:
    clock = Clock()
    health = Health(stall_after=1.0, clock=clock, blocked={})
    health.set_phase("running")
    clock.now += 5
    assert health.readyz() == (False, ["running: the loop has made no progress for 5 s"])
