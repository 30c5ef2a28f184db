"""SIGTERM at any moment, with the broker there, away, or away for a while: states are handed over, or it is said."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import pytest

from lstmstream.serve.committer import COMMIT_TIMEOUT_S
from tests.serve.memory_world import World

SHUTDOWN_S = 30.0  # the default of shutdown_timeout
PHASES = ("starting", "joining", "restoring", "running", "recovering", "draining")
# How long the broker stays away after the stop; 0: it is there, None: for good.
OUTAGES = (0.0, 8.0, None)
LONG = 100  # calls to the broker, after which a life has seen all phases but the last


class Life(NamedTuple):
    """How a daemon's life ended."""

    world: World
    daemon: Any
    code: int
    took_s: float  # from the stop to the end
    served: set[int]  # the partitions that it served at the stop
    calls: list[str]  # the phase at each call to the broker, in order


def fill(world: World, events: int) -> None:
    for i in range(events):
        world.produce(b"k%d" % (i % 7), b'{"amount": %d}' % (i * 37 % 101))


def live(stop_at: int, outage_s: float | None, away_at: int | None = None, *, failing: str = "commit") -> Life:
    """A daemon that takes over from one that was killed, answers, has to recover, and is asked to stop.

    `stop_at`, `away_at`: at which call to the broker, counted from 0; `away_at` is `stop_at` if not given. `failing`:
    the call from which it has to recover.
    """
    world = World()
    fill(world, 40)
    before = world.start()
    world.settle()
    world.kill(before)
    fill(world, 10)
    daemon = world.make()
    calls: list[str] = []
    asked_s, served = 0.0, set[int]()

    def watch(_: str) -> None:
        nonlocal asked_s, served
        number = len(calls)
        calls.append(world.phase(daemon))
        if number in (40, 60, 85) and number <= stop_at:  # an event takes a second
            fill(world, 6)
        if number == 60:
            world.faults += [failing, "recover", "recover"]
        if number == stop_at:
            asked_s, served = world.now_s, world.serving(daemon)
            world.ask_to_stop(daemon)
        if outage_s != 0.0 and number == (stop_at if away_at is None else away_at):
            world.away = True
            if outage_s:
                world.expire(daemon)  # it is longer than a session
        if world.away and asked_s and outage_s is not None and world.now_s > asked_s + outage_s:
            world.away = False
        assert number < 5_000, "it does not end"

    world.watch = watch
    code = world.run(daemon)
    world.watch = lambda _: None
    world.faults.clear()
    return Life(world, daemon, code, world.now_s - asked_s, served, calls)


def judge(life: Life, caplog: pytest.LogCaptureFixture, *, back: bool) -> None:
    """It ended in time and rightly, and its successor goes on as if nothing had happened."""
    world = life.world
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert life.took_s <= SHUTDOWN_S
    assert not any(record.exc_info for record in caplog.records)
    if life.code:
        assert not back, "the states could have been handed over"
        assert life.code == 1
        assert len(errors) == 1
        assert "shutdown_timeout" in errors[0].getMessage()
        assert "the broker is away" in errors[0].getMessage()
    else:
        assert errors == []
        assert not world.dirty_rows(life.daemon), "it said nothing of states that are lost"
        left = {p: world.broker.offsets[p] - floor for p, floor in world.floors().items() if p in life.served}
        assert not any(left.values()), f"it said nothing of what its successor must replay: {left}"
    assert sum(record.levelno == logging.WARNING for record in caplog.records) < 30, "one line a try, not a flood"
    world.check_states()
    world.away = False
    world.start()
    fill(world, 10)
    world.settle()
    world.check()


@pytest.mark.parametrize("outage_s", OUTAGES)
@pytest.mark.parametrize(("phase", "failing"), [*((phase, "commit") for phase in PHASES), ("recovering", "poll")])
def test_a_stop_in_any_phase(
    phase: str, failing: str, outage_s: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    calls = live(LONG, 0.0, failing=failing).calls
    away_at = calls.index(phase) + (1 if phase == "running" else 0)
    life = live(LONG if phase == "draining" else away_at, outage_s, away_at, failing=failing)
    assert life.calls[away_at] == phase
    judge(life, caplog, back=outage_s is not None)
    at_stake = phase in ("running", "recovering", "draining")
    assert life.code == (1 if outage_s is None and at_stake else 0)


@pytest.mark.parametrize("outage_s", OUTAGES)
def test_a_stop_at_any_call_to_the_broker(outage_s: float | None, caplog: pytest.LogCaptureFixture) -> None:
    """And the broker goes away a little before it, just then, or a little after it."""
    assert set(live(LONG, 0.0).calls) == set(PHASES)
    codes = set()
    for stop_at in range(LONG):
        for away_at in (stop_at - 4, stop_at + 2) if outage_s != 0.0 else (stop_at,):
            caplog.clear()
            life = live(stop_at, outage_s, away_at)
            judge(life, caplog, back=outage_s is not None)
            codes.add(life.code)
    assert codes == ({0, 1} if outage_s is None else {0})


def test_one_commit_that_hangs_does_not_take_all_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker ends a transaction after ten seconds: what has no answer then is better tried again."""
    world = World(shutdown_timeout="10m", state={"checkpoint_interval": "1h"})
    daemon = world.start()
    fill(world, 40)
    world.settle()
    limits: list[float] = []
    commit = daemon._transport.commit

    def noted(*given: Any, timeout_s: float, **more: Any) -> None:
        limits.append(timeout_s)
        commit(*given, timeout_s=timeout_s, **more)

    monkeypatch.setattr(daemon._transport, "commit", noted)
    assert world.stop(daemon) == 0
    assert limits
    assert max(limits) <= COMMIT_TIMEOUT_S
