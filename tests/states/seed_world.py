"""Seeding on the broker in memory: events of a past that is in no topic, the states that they give, and the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lstmstream.serve.clock import Clock
from lstmstream.serve.factory import make_engine
from lstmstream.serve.identity import state_identity
from lstmstream.states.import_states import run_import
from lstmstream.states.joining import JoinAt, find_joins
from lstmstream.states.seeding import Seeding
from lstmstream.states.state_file import open_state_file
from lstmstream.transport.partitioner import partition_of
from lstmstream.transport.ports import MemberInfo
from tests.serve.memory_world import INPUT, PARTITIONS, FakeStep, World, card, fold
from tests.verify.world import VerifyTransport

KEYS = [b"k%d" % number for number in range(10)]
PAST_MS = 1_000  # of the events before
ROWS = 3  # in a transaction: few, so that there are several


class SeedTransport(VerifyTransport):
    def group_members(self) -> list[MemberInfo]:
        found = self._broker._assignments
        return [MemberInfo(str(number), "lstmstream-t", "here", list(mine)) for number, mine in found.items()]

    def last_stable_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, int]:
        return {number: self.offset_range(topic, number)[1] for number in partitions}


class Past:
    """Events of each key that no topic has, folded one at a time."""

    def __init__(self, keys: Sequence[bytes] = KEYS, seed: int = 1) -> None:
        source = np.random.default_rng(seed)
        self.amounts = {key: source.integers(1, 90, size=1 + i % 4).tolist() for i, key in enumerate(keys)}
        self.states = {}
        for key, amounts in self.amounts.items():
            state = np.float32(0.5), np.float32(0)
            for amount in amounts:
                state = fold(*state, np.float32(amount))
            self.states[key] = (*state, len(amounts))

    def write(self, path: Path, world: World, **changes: Any) -> Path:
        """As `state export` does; `changes` of each row."""
        identity = state_identity(world.config(), card()).digest.hex()
        lines = []
        for key, (mean, count, steps) in self.states.items():
            row = {
                "key": key.decode(),
                "partition": partition_of(key, PARTITIONS),
                "timestamp": PAST_MS,
                "steps": steps,
            }
            row |= {"identity": identity, "parts": {"mean": [float(mean)], "count": [float(count)]}, **changes}
            lines.append(json.dumps(row) + "\n")
        path.write_text("".join(lines))
        return path

    def expected(self, world: World) -> list[tuple[int, int, float, int]]:
        """Partition, offset, score and steps of each answer."""
        found, states = [], dict(self.states)
        for partition, log in enumerate(world.broker.topics[INPUT].logs):
            for record in log:
                assert record.key is not None
                assert record.value is not None
                mean, count, steps = states.get(record.key, (np.float32(0.5), np.float32(0), 0))
                mean, count = fold(mean, count, np.float32(json.loads(record.value)["amount"]))
                states[record.key] = mean, count, steps + 1
                found.append((partition, record.offset, float(str(mean - count)), steps + 1))
        return found


def produce(world: World, count: int, keys: Sequence[bytes] = (*KEYS, b"new")) -> None:
    for number in range(count):
        key = keys[number % len(keys)]
        world.produce(key, b'{"amount": %d}' % (number % 50), partition_of(key, PARTITIONS))


def answered(world: World) -> list[tuple[int, int, float, int]]:
    return [(a["source"]["partition"], a["source"]["offset"], a["score"], a["steps"]) for a in world.answers()]


def at_the_beginning() -> JoinAt:
    """The states join the input before its first event."""
    return JoinAt.parse([f"{partition}:0" for partition in range(PARTITIONS)], None)


def seed(
    world: World,
    path: Path,
    at: JoinAt | None = None,
    *,
    said: Callable[[str], None] = lambda _text: None,
    before_begin: Callable[[], None] = lambda: None,
) -> None:
    """Import a file, as the command does; what is raised leaves open what a kill leaves open."""
    transport = SeedTransport(world.broker, INPUT)
    clock = Clock(lambda: world.now_s, lambda: world.now_s, world._sleep)
    config = world.config()
    seeding = Seeding(config, card(), transport, clock=clock, say=said)
    seeding.rows_at_once = ROWS
    try:
        seeding.prepare()
        engine = make_engine(config, FakeStep(card()))
        joins = find_joins(seeding.broker, INPUT, seeding.partitions, at or JoinAt({}), engine)
        before_begin()
        run_import(seeding, open_state_file(path, card()), path, joins)
    except BaseException:
        seeding._background.shutdown()
        world.broker.leave(transport.member_id)  # its session is over
        raise
    seeding.close()
