"""Bugs of daemons, each planted into a sound one while faults strike: `verify` finds every one of them.

One more, states that outlive a change of the model, is in test_findings.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.records import RecordBatch
from lstmstream.serve.committer import PendingTransaction
from lstmstream.serve.encode import Encoder, Outputs
from lstmstream.serve.engine import Engine
from lstmstream.serve.scorer import Scorer
from lstmstream.transport.memory import MemoryBroker, MemoryTransport
from lstmstream.verify.run import Verification
from tests.serve.memory_world import INPUT, OUTPUT
from tests.verify.test_findings import fields, kinds, made
from tests.verify.world import VerifyWorld, events, fill

COUNT = 120

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: dict[str, tuple[Plant, set[str]]] = {}  # what verify must find of each, of these kinds


def plants(*found: str) -> Callable[[Plant], Plant]:
    def note(plant: Plant) -> Plant:
        PLANTS[plant.__name__.strip("_")] = (plant, set(found))
        return plant

    return note


def outputs_altered(patch: pytest.MonkeyPatch, name: str, alter: Callable[[RecordBatch], RecordBatch]) -> None:
    """Every batch of predictions or of alerts that the encoder makes, altered."""
    encode = Encoder.encode

    def altered(self: Encoder, *args: Any, **kwargs: Any) -> Outputs:
        outputs = encode(self, *args, **kwargs)
        return outputs._replace(**{name: alter(getattr(outputs, name))})

    patch.setattr(Encoder, "encode", altered)


@plants("duplicate")
def duplicate_window(patch: pytest.MonkeyPatch) -> None:
    """Predictions are written outside of the transaction that commits the offsets."""
    write = MemoryBroker.write_in_transaction

    def outside(self: MemoryBroker, author: int, epoch: int, batch: RecordBatch) -> None:
        if batch.topic == OUTPUT:
            self.append_batch(batch)
        else:
            write(self, author, epoch, batch)

    patch.setattr(MemoryBroker, "write_in_transaction", outside)


@plants("missing")
def offsets_first(patch: pytest.MonkeyPatch) -> None:
    """Offsets are committed before the predictions are written."""
    commit = MemoryTransport.commit

    def early(self: MemoryTransport, *args: Any, nonce: str, **kwargs: Any) -> None:
        self._broker.transactions.write_offsets(args[2], nonce)
        commit(self, *args, nonce=nonce, **kwargs)

    patch.setattr(MemoryTransport, "commit", early)


@plants("wrong")
def state_kept_after_abort(patch: pytest.MonkeyPatch) -> None:
    """A batch whose transaction was aborted leaves its states behind."""
    patch.setattr(Scorer, "rollback", lambda self: self.commit())


@plants("duplicate")
def zombie_commit(patch: pytest.MonkeyPatch) -> None:
    """A member that the group has dropped commits all the same."""
    patch.setattr(MemoryTransport, "_check_fence", lambda _self, _membership: None)


@plants("wrong")
def late_policy(patch: pytest.MonkeyPatch) -> None:
    """Late events change no state, though the configuration says that they do."""
    make = Scorer.__init__

    def other(self: Scorer, step: Any, meaning: Any, **kwargs: Any) -> None:
        make(self, step, meaning._replace(late="score"), **kwargs)

    patch.setattr(Scorer, "__init__", other)


@plants("wrong")
def headers(patch: pytest.MonkeyPatch) -> None:
    """A prediction does not carry the headers of its event."""
    outputs_altered(patch, "predictions", lambda batch: replace(batch, headers=[[] for _ in batch.headers]))


@plants("wrong")
def wrong_steps(patch: pytest.MonkeyPatch) -> None:
    """`steps` counts from 0."""

    def less(batch: RecordBatch) -> RecordBatch:
        values = [(value or b"").replace(b'"steps":1,', b'"steps":0,') for value in batch.values]
        return replace(batch, values=values)

    outputs_altered(patch, "predictions", less)


@plants("wrong")
def idle_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """An aborted transaction of states alone is taken for committed: the group's offset is where it would be."""
    was_committed = PendingTransaction.was_committed

    def by_offset(self: PendingTransaction, committed: Any) -> bool:
        if self.result is not None and not len(self.result.records):
            return all(committed[p].offset == offset for p, offset in self.plan.offsets.items() if p in committed)
        return was_committed(self, committed)

    patch.setattr(PendingTransaction, "was_committed", by_offset)


@plants("missing")
def skipped_record(patch: pytest.MonkeyPatch) -> None:
    """The last record of a poll is left out now and then."""
    process, calls = Engine.process, 0

    def without(self: Engine, records: RecordBatch, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        return process(self, records.slice(0, len(records) - 1) if calls % 5 == 0 else records, *args)

    patch.setattr(Engine, "process", without)


@plants("out_of_order")
def reordered_key(patch: pytest.MonkeyPatch) -> None:
    """The predictions of a batch are written from the last to the first."""
    outputs_altered(patch, "predictions", lambda batch: batch.take(np.arange(len(batch))[::-1]))


@plants("missing")
def alert_missing(patch: pytest.MonkeyPatch) -> None:
    """The first alert of a batch is not written."""
    outputs_altered(patch, "alerts", lambda batch: batch.slice(1, len(batch)))


def live(world: VerifyWorld) -> None:
    """Two daemons work, checkpoint when idle, fail, are dropped and killed; then all is answered."""
    step = world.onnx_step()
    first, second = world.start(step), world.start(step)
    for _ in range(4):
        for daemon in (first, second):
            world.step(daemon)
    world.faults += ["commit", "sent"]
    for _ in range(6):
        for daemon in (first, second):
            world.step(daemon)
    world.settle()
    world.now_s += 60  # states are due
    world.faults.append("commit")
    for _ in range(6):
        world.step(first)
    world.now_s += 2  # a floor is due
    fill(world, events(9, seed=8, keys=3))  # one key for each partition, whose floor moves on past all others
    world.settle()
    world.kill(first)
    world.kill(second)
    fill(world, events(COUNT, seed=9))
    third = world.start(step)
    world.settle()
    _stall_within_a_commit(world, third)
    world.settle()


def _stall_within_a_commit(world: VerifyWorld, daemon: Any) -> None:
    """The group drops it there, another takes its partitions over and answers; then it goes on."""

    def act() -> None:
        world.expire(daemon)
        other = world.start(world.onnx_step())
        for _ in range(12):
            world.step(other)

    fill(world, events(COUNT, seed=10))
    world.actions.append(("sent", act))
    for _ in range(3):
        world.step(daemon)


def lived(folder: Path) -> tuple[VerifyWorld, Verification]:
    world = made(folder, input={"topic": INPUT, "late": "apply"}, state={"checkpoint_interval": "5s"})
    live(world)
    return world, world.verify()


def test_the_sound_daemon_passes(tmp_path: Path) -> None:
    _, done = lived(tmp_path)
    assert kinds(done) == {}
    assert done.exit_code == 0


@pytest.mark.parametrize("bug", PLANTS)
def test_a_bug_is_found(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, expected = PLANTS[bug]
    plant(monkeypatch)
    _, done = lived(tmp_path)
    assert done.exit_code == 1
    assert expected <= set(kinds(done)), (kinds(done), fields(done))
