"""A stop with states that are many or large, or with a broker that does not answer: it ends in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lstmstream.errors import TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve import checkpoint
from lstmstream.serve.daemon import DRAIN_FRACTION, Daemon
from lstmstream.serve.partition import DirtyRows
from lstmstream.serve.scored import ChangedRows
from lstmstream.serve.state import Slab
from lstmstream.serve.state_records import state_record_bytes
from lstmstream.transport.ports import CALL_TIMEOUT_S
from tests.serve.memory_world import STATES, World

SHUTDOWN_S = 30.0  # the default of shutdown_timeout
KEYS = 300


def with_dirty_states() -> tuple[World, Daemon]:
    """A daemon that has written no state yet."""
    world = World(state={"checkpoint_interval": "1h"})
    daemon = world.start()
    for i in range(KEYS):
        world.produce(b"k%d" % i, b'{"amount": 1}', partition=0)
    world.settle()
    assert world.dirty_rows(daemon) == KEYS
    return world, daemon


def state_writes(world: World, fails: Callable[[int], bool]) -> list[int]:
    """How many records each transaction that went through has written to the state topic. `fails`: of so many."""
    seen: list[int] = []

    def on_write(batch: RecordBatch) -> None:
        if batch.topic != STATES:
            return
        if fails(len(batch)):
            world.now_s += 2
            raise TryAgain("the records were not acknowledged in time")
        seen.append(len(batch))

    world.broker.on_write = on_write
    return seen


def test_states_that_one_transaction_cannot_take_are_written_in_several() -> None:
    world, daemon = with_dirty_states()
    seen = state_writes(world, lambda count: count > 60)
    assert world.stop(daemon) == 0
    assert sum(seen) >= KEYS
    assert len(seen) >= KEYS / 60
    world.start()
    world.produce(b"k0", b'{"amount": 1}', partition=0)
    world.settle()
    world.check()


def test_a_transaction_of_a_stop_has_so_many_bytes_of_states_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand large ones would not arrive within the limits of a transaction, nor half as many."""
    monkeypatch.setattr(checkpoint, "STATE_BYTES_PER_TRANSACTION", 60 * state_record_bytes(2))
    world, daemon = with_dirty_states()
    seen = state_writes(world, lambda _: False)
    assert world.stop(daemon) == 0
    assert max(seen) == 60 + 1, "and the floor"
    assert sum(seen) >= KEYS
    world.check_states()


def test_a_state_larger_than_that_is_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "STATE_BYTES_PER_TRANSACTION", 1)
    world, daemon = with_dirty_states()
    assert world.stop(daemon) == 0
    assert not world.dirty_rows(daemon)


NEARLY_S = CALL_TIMEOUT_S - 0.5  # two such calls in a row leave no time for a third


@pytest.mark.parametrize("silent_from", [0, 1, 2, 3])
def test_a_stop_ends_in_time_where_calls_are_not_answered(silent_from: int) -> None:
    """Each is given up after its own limit, which is long, and at the latest with the time of the stop."""
    world, daemon = with_dirty_states()
    transport = world.transports[id(daemon)]
    calls, deadline_s = 0, np.inf

    def bound_calls(timeout_s: float) -> None:
        nonlocal deadline_s
        assert timeout_s == DRAIN_FRACTION * SHUTDOWN_S
        deadline_s = world.now_s + timeout_s

    def silent(_point: str) -> None:
        nonlocal calls
        calls += 1
        if calls > silent_from:
            world.now_s += min(NEARLY_S, max(0.0, deadline_s - world.now_s))
            raise TryAgain("no answer")

    setattr(transport, "bound_calls", bound_calls)  # noqa: B010 - a method, for the type checker
    world.watch = silent
    began_s = world.now_s
    assert world.stop(daemon) == 1
    assert world.now_s - began_s <= SHUTDOWN_S


def test_what_a_transaction_looks_at_does_not_grow_with_the_dirty_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten million of them would take half a minute, for each transaction."""
    looked_at = 0
    valid = DirtyRows._valid

    def counted(self: DirtyRows, chunk: Any) -> Any:
        nonlocal looked_at
        looked_at += len(chunk.rows)
        return valid(self, chunk)

    monkeypatch.setattr(DirtyRows, "_valid", counted)

    def cost(rows: int) -> int:
        nonlocal looked_at
        slab = Slab(1)
        dirty = DirtyRows(slab)
        changed = np.array([slab.add(b"%d" % i) for i in range(rows)])
        dirty.mark_only(ChangedRows(changed, np.arange(rows)))
        dirty.enqueue_marked(5.0, 1_000)
        looked_at = 0
        while dirty.oldest() is not None:
            taken, _ = dirty.take(1_000, before_s=np.inf)
            dirty.clean(taken)
            dirty.take(1_000, before_s=4.0)
        return looked_at

    assert cost(100_000) < 1.2 * 5 * cost(20_000)
