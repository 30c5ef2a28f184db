"""Bring one partition's states back: state topic, floor record, replay of the input up to the committed offset.

Works in slices, so that the member stays in its group and other partitions go on. What is found decides between three
ways on: continue (this owner's states are there), begin (nothing is there, or a reset was asked for), refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.serve.checkpoint import (
    FLOOR_KEY,
    Checkpointer,
    Damaged,
    Floor,
    StoredState,
    decode_floor,
    decode_state,
    entity_key,
)
from lstmstream.serve.engine import Changes, Engine
from lstmstream.serve.state import KeyState
from lstmstream.transport.base import Reader, Transport

COMMIT_LIMIT_S = 10.0

log = logging.getLogger(__name__)


class _Stage(Enum):
    OPEN = auto()
    STATES = auto()
    DECIDE = auto()
    REPLAY = auto()
    DONE = auto()


class _Serving(NamedTuple):
    """How a partition goes on."""

    position: int
    start: int
    floor: int


class Restore:
    """One partition on its way to be served."""

    def __init__(
        self,
        partition: int,
        transport: Transport,
        engine: Engine,
        checkpointer: Checkpointer,
        *,
        input_topic: str,
        input_id: str,
        partitions: int,
        state_topic: str,
        start: str,
        on_model_change: str,
        retention_ms: int | None,
        nonces: Iterator[str],
        clock: Callable[[], float],
    ) -> None:
        """`start` is earliest or latest, for a group that has no offset; `on_model_change` is fail or reset."""
        self.partition = partition
        self.position = 0  # where serving goes on, once done
        self._transport = transport
        self._engine = engine
        self._checkpointer = checkpointer
        self._input_topic = input_topic
        self._input_id = input_id
        self._partitions = partitions
        self._state_topic = state_topic
        self._start = start
        self._on_model_change = on_model_change
        self._retention_ms = retention_ms
        self._nonces = nonces
        self._clock = clock
        self._stage = _Stage.OPEN
        self._reader: Reader | None = None
        self._serving = _Serving(0, 0, 0)
        self._committed: int | None = None
        self._floor: Floor | None = None
        self._stored: dict[bytes | None, StoredState] = {}
        self._damaged = 0  # state records that cannot be trusted
        self._bad_offset: int | None = None  # of the first of them
        self._replayed: list[tuple[Changes, int]] = []  # with the oldest record timestamp of each

    @property
    def remaining(self) -> int:
        """Records still to be read in this stage."""
        return 0 if self._reader is None else max(0, self._reader.end - self._reader.position)

    def advance(self, member: object, slice_s: float) -> bool:
        """Work for at most about `slice_s`; True once the partition can be served from `position`.

        Raises TryAgain, OwnershipLost, and CannotServe where the states cannot be had.
        """
        deadline = self._clock() + slice_s
        while self._stage is not _Stage.DONE and self._clock() < deadline:
            if self._stage is _Stage.OPEN:
                committed = self._transport.committed(self.partition)
                self._committed = None if committed is None else committed.offset
                _, end = self._transport.bounds(self._state_topic, self.partition)
                self._reader = self._transport.reader(self._state_topic, self.partition, 0, end)
                self._stage = _Stage.STATES
            elif self._stage is _Stage.STATES:
                self._read_states(deadline)
            elif self._stage is _Stage.DECIDE:
                self._decide(member)
            elif self._stage is _Stage.REPLAY:
                self._replay(deadline)
        return self._stage is _Stage.DONE

    def _read_states(self, deadline: float) -> None:
        reader = self._reader
        assert reader is not None
        if reader.position >= reader.end:
            self._stage = _Stage.DECIDE
            return
        batch = reader.next(max(0.0, deadline - self._clock()))
        for offset, key, value in zip(batch.offsets.tolist(), batch.keys, batch.values, strict=True):
            try:
                self._take(key, value)
            except Damaged as damage:
                self._damaged += 1
                if self._bad_offset is None:
                    self._bad_offset = offset
                log.error(  # noqa: TRY400 - a damaged record is no bug of ours
                    "a state record cannot be used: %s",
                    damage,
                    extra={"topic": self._state_topic, "partition": self.partition, "offset": offset},
                )

    def _take(self, record_key: bytes | None, value: bytes | None) -> None:
        if record_key is None:
            raise Damaged("it has no key")
        if record_key == FLOOR_KEY:
            if value is not None:
                self._floor = decode_floor(value)
            return
        key = entity_key(record_key)
        if value is None:
            self._stored.pop(key, None)
        else:
            self._stored[key] = decode_state(record_key, value)

    def _decide(self, member: object) -> None:
        beginning, end = self._transport.bounds(self._input_topic, self.partition)
        floor, committed = self._floor, self._committed
        if floor is not None:
            self._same_input(floor)
        reset = self._on_model_change == "reset"
        if floor is None and committed is None:
            self._begin(member, beginning if self._start == "earliest" else end)
        elif committed is None:
            raise CannotServe(
                f"{self._where()}: its states are there but the group's offsets are gone (expired or deleted); going on"
                " would answer everything twice. Set the group's offsets to where it had come, or delete topic"
                f" {self._state_topic!r} to start anew"
            )
        elif floor is None:
            if not reset:
                raise CannotServe(
                    f"{self._where()}: the group has come to offset {committed}, but topic {self._state_topic!r}"
                    " holds no states. Bring the topic back, or set on_model_change: reset to go on with empty states"
                )
            self._begin(member, committed)
        elif floor.owner.digest != self._checkpointer.owner.digest:
            if not reset:
                raise CannotServe(
                    f"{self._where()}: its states belong to {floor.owner}, and this is {self._checkpointer.owner}."
                    " Serve the old one, or set on_model_change: reset to go on with empty states"
                )
            self._begin(member, committed)
        else:
            self._continue(floor, committed, beginning)

    def _same_input(self, floor: Floor) -> None:
        if floor.topic_id != self._input_id:
            raise CannotServe(
                f"topic {self._input_topic!r} was deleted and made again since the states in {self._state_topic!r} were"
                " written; they belong to the old one. Delete the state topic and the group's offsets, or use another"
                " name"
            )
        if floor.partitions != self._partitions:
            raise CannotServe(
                f"topic {self._input_topic!r} has {self._partitions} partitions, and had {floor.partitions} when the"
                f" states in {self._state_topic!r} were written: keys have moved. Start under another name, from the"
                " beginning"
            )

    def _begin(self, member: object, start: int) -> None:
        """No states: fix where they begin, and the group's offset, before the first answer."""
        floor = self._checkpointer.first_floor(self.partition, start)
        # Where its fate stays unknown, the partition is restored from the start: it asks what is committed then.
        self._transport.commit(
            [], [floor], {self.partition: start}, member, nonce=next(self._nonces), limit_s=COMMIT_LIMIT_S
        )
        self._engine.states.open(self.partition)
        self._serve(_Serving(start, start=start, floor=start))

    def _continue(self, floor: Floor, committed: int, beginning: int) -> None:
        stored = {
            key: stored.state
            for key, stored in self._stored.items()
            if (stored.owner, stored.start) == (floor.owner.digest, floor.start)
        }
        replay_from = floor.offset
        ahead = [key for key, state in stored.items() if state.last_offset >= committed]
        if ahead or self._bad_offset is not None or floor.offset > committed:
            reason = (
                f"{self._damaged} state records are damaged, the first at offset {self._bad_offset}"
                if self._bad_offset is not None
                else f"the group's offset was moved back to {committed}, before states that were written later"
            )
            log.warning("rebuilding states from the input: %s", reason, extra={"partition": self.partition})
            for key in ahead:
                del stored[key]
            replay_from = floor.start
            if floor.start > committed:
                raise CannotServe(
                    f"{self._where()}: {reason}, and this model's states begin at offset {floor.start} only"
                )
        if beginning > replay_from:
            raise CannotServe(
                f"{self._where()}: states must be rebuilt from offset {replay_from}, but the input begins at"
                f" {beginning}; its retention is too short. Set on_model_change: reset and delete the state topic to go"
                " on with empty states"
            )
        slab = self._engine.states.open(self.partition)
        for key, state in stored.items():
            self._put(slab.put, key, state)
        self._stored.clear()
        self._serving = _Serving(committed, start=floor.start, floor=replay_from)
        self._reader = self._transport.reader(self._input_topic, self.partition, replay_from, committed)
        self._stage = _Stage.REPLAY

    def _put(self, put: Callable[[bytes | None, KeyState], None], key: bytes | None, state: KeyState) -> None:
        if len(state.row) != len(self._engine.states.initial) or not np.isfinite(state.row).all():
            raise CannotServe(f"{self._where()}: a state record does not fit the model; delete the state topic")
        put(key, state)

    def _replay(self, deadline: float) -> None:
        """Only once all is replayed does the checkpointer hear of it: until then no floor may move."""
        reader = self._reader
        assert reader is not None
        if reader.position < reader.end:
            batch = reader.next(max(0.0, deadline - self._clock()))
            if len(batch):
                changes = self._engine.replay(batch)[self.partition]
                self._replayed.append((changes, batch.oldest_ms()[self.partition]))
            return
        self._serve(self._serving)
        for changes, oldest_ms in self._replayed:
            self._checkpointer.mark(self.partition, changes, oldest_ms)

    def _serve(self, serving: _Serving) -> None:
        self._checkpointer.open(
            self.partition,
            start=serving.start,
            position=serving.position,
            floor=serving.floor,
            retention_ms=self._retention_ms,
        )
        self.position = serving.position
        self._stage = _Stage.DONE

    def _where(self) -> str:
        return f"{self._input_topic}[{self.partition}]"
