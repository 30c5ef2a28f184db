"""`lstmstream state repartition`: the states go where their keys are, after the input has got more partitions.

As the only member of the group, so that each transaction is fenced by the membership. Each old partition is restored
as a daemon with the old count would do it, up to the group's offset, which has to be the end. States of keys that have
moved are written to their new partition; they name a number that no floor record knows yet, so they do not count. One
transaction then makes them count: the floor records and the group's offsets of all partitions. Before it the old states
are as they were, and whatever an earlier run has left is written again; after it, the records that the keys have left
behind are cleared away (docs/repartition.md).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe, Fatal, OwnershipLost, TryAgain
from lstmstream.records import Ints, RecordBatch
from lstmstream.serve.alert_memory import PartitionMemory, RulesFrom
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import Checkpointer, CheckpointPlan, StateTopic
from lstmstream.serve.clock import Clock
from lstmstream.serve.committer import COMMIT_TIMEOUT_S, NONCE_PREFIX, SEEDING_PREFIX, is_unfinished_seed
from lstmstream.serve.engine import Engine
from lstmstream.serve.factory import load_step_model, make_engine, open_reader
from lstmstream.serve.identity import state_identity
from lstmstream.serve.key_table import Key
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.restore import Restore
from lstmstream.serve.restore_context import RestoreContext, start_of
from lstmstream.serve.state import CLEAN
from lstmstream.serve.state_records import (
    ENTITY_KEY,
    FLOOR,
    IDENTITY_BYTES,
    CorruptStateRecord,
    Floor,
    StateColumns,
    floor_key,
    key_kind,
    pack_columns,
    pack_floor,
    pack_states,
    state_record_bytes,
    unpack_floor,
    unpack_key,
)
from lstmstream.states.arrivals import Arrivals
from lstmstream.states.command import say
from lstmstream.states.sole_member import LIMIT_S, RETRY_S, MemberTransport, SoleMember
from lstmstream.transport.kafka import open_kafka_transport
from lstmstream.transport.partitioner import partitions_of_keys
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.transport.ports import CommittedOffset, Membership, TopicInfo
from lstmstream.wording import counted

BYTES_PER_TRANSACTION = 4 << 20
SLICE_S = 1.0
NOT_IN_INPUT = -1  # in place of the last event's offset: it is in another partition


def repartition_states(config: Path, partitions: int, *, stage: str | None) -> int:
    """Move the states. Raises CannotServe."""
    loaded = load_config(config, stage=stage)
    _, step = load_step_model(loaded)
    engine = make_engine(loaded, step, reader=open_reader(loaded))
    with closing(Repartition(loaded, engine, open_kafka_transport(loaded), partitions, say=say)) as run:
        try:
            run.run()
        except (Fatal, OwnershipLost) as error:
            raise CannotServe(f"the states cannot be moved: {error}") from error
    return 0


class Repartition:
    """One run. `run`, then, whatever has happened, `close`."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        transport: MemberTransport,
        partitions: int,
        *,
        clock: Clock = Clock(),  # noqa: B008 - immutable
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """`partitions`: that the input has now."""
        self._config, self._engine, self._transport = config, engine, transport
        self._partitions = partitions
        self._clock, self._say = clock, say
        self._member = SoleMember(config.name, transport, clock)
        self._broker = PatientBroker(transport, say=say)
        self._identity = state_identity(config, engine.scorer.card)
        self._state_topic = config.state.topic
        self._rows_at_once = max(1, BYTES_PER_TRANSACTION // state_record_bytes(engine.scorer.card.state.size))
        self._seed = -2 - secrets.randbits(62)  # what states that have moved name in place of an origin
        self._before = 0  # partitions that the states are in
        self._offsets: dict[int, int] = {}  # the group's, of all partitions, from which the daemon goes on
        self.moved = 0  # states
        max_keys = config.state.max_keys
        self._arrivals = None if max_keys is None else Arrivals(partitions, max_keys)

    def run(self) -> None:
        """Raises CannotServe where it cannot be done, and then nothing has changed that counts."""
        self._member.patiently("the broker cannot be used", self._transport.connect)
        found = self._check_topics()
        floor = self._floor_of(0)
        if floor is None:
            raise CannotServe(
                f"state.topic: partition 0 of {self._state_topic!r} has no floor record of this model and its settings"
            )
        self._before = floor.partitions
        if self._before == self._partitions:
            self._say(f"the states are those of {counted(self._partitions, 'partition')} already")
            self._clear_after(floor)
            return
        if self._before > self._partitions:
            raise CannotServe(
                f"--partitions {self._partitions}: the states are those of {counted(self._before, 'partition')}"
            )
        self._seed = floor.seed or self._seed
        self._member.check_nobody_there()
        self._offsets = self._drained_offsets()
        if found[self._state_topic].partitions < self._partitions:
            self._grow()
        self._member.join(self._partitions)
        left_out = self._order_arrivals()
        floors = [self._move(number) for number in range(self._before)]
        again = self._drained_offsets()
        if any(again[number] != self._offsets[number] for number in range(self._before)):
            raise self._not_drained("somebody has written to it meanwhile")
        self._switch(floors)
        self._say(
            f"{counted(self.moved, 'state has', 'states have')} moved: the daemon goes on with"
            f" {counted(self._partitions, 'partition')} where it stood"
        )
        if left_out:
            self._say(f"{left_out:,} left out: state.max_keys is {self._config.state.max_keys:,} for each partition")
        self._clear()

    def close(self) -> None:
        """Leave the group. Never raises."""
        self._transport.close(2.0)

    # -- what can be checked

    def _check_topics(self) -> Mapping[str, TopicInfo]:
        source = self._config.input.topic
        found = self._broker.describe([source, self._state_topic])
        for option, name in (("input.topic", source), ("state.topic", self._state_topic)):
            if name not in found:
                raise CannotServe(f"{option}: there is no topic {name!r}")
        have = found[source].partitions
        if have != self._partitions:
            raise CannotServe(
                f"--partitions {self._partitions}: topic {source!r} has {counted(have, 'partition')}. First"
                " give the topic the"
                " number that it is to have (kafka-topics --alter --partitions), then run this with it"
            )
        if found[self._state_topic].partitions > self._partitions:
            raise CannotServe(f"state.topic: topic {self._state_topic!r} has more partitions than the input")
        return found

    def _floor_of(self, number: int) -> Floor | None:
        newest: bytes | None = None
        for records in self._read_states(number):
            for key, value in zip(records.keys, records.values, strict=True):
                if key == floor_key(self._identity.digest):
                    newest = value
        try:
            floor = None if newest is None else unpack_floor(newest)
        except CorruptStateRecord as error:
            raise CannotServe(
                f"state.topic: the floor record in {self._state_topic!r}, partition {number}, is damaged ({error})"
            ) from error
        return None if floor is None or floor.dropped is not None else floor

    def _drained_offsets(self) -> dict[int, int]:
        """Where the daemon goes on, of all partitions, once it is seen that nothing waits in the old ones."""
        source, committed = self._config.input.topic, self._group_offsets()
        offsets = {}
        for number in range(self._partitions):
            beginning, end = self._broker.offset_range(source, number)
            found = committed.get(number)
            if number >= self._before:
                if found is not None and not is_unfinished_seed(found.metadata):
                    raise CannotServe(f"the group has an offset of {source}[{number}] already, which is new")
                offsets[number] = beginning
                continue
            if found is None:
                raise CannotServe(f"the group has no offset of {source}[{number}], which had states")
            offsets[number] = found.offset
            if any(map(len, self._broker.read(source, number, offsets[number], end))):
                raise self._not_drained(f"{source}[{number}] has events from offset {offsets[number]} on")
        return offsets

    def _not_drained(self, problem: str) -> CannotServe:
        return CannotServe(
            f"input.topic: the input has events that are not answered ({problem}). Their keys may have moved. Pause the"
            " producers and let the daemon answer all before the topic gets more partitions; this cannot be done"
            " afterwards. Start under another name, from the beginning"
        )

    def _group_offsets(self) -> Mapping[int, CommittedOffset]:
        return self._broker.group_offsets(self._config.input.topic, range(self._partitions))

    # -- the only member of the group

    def _grow(self) -> None:
        if not self._config.create_topics:
            raise CannotServe(
                f"state.topic: give topic {self._state_topic!r} {counted(self._partitions, 'partition')}"
                " (kafka-topics --alter):"
                " create_topics is false"
            )
        self._member.patiently(
            "the state topic cannot get more partitions",
            lambda: self._transport.grow(self._state_topic, self._partitions),
        )
        self._member.patiently("the state topic has no more partitions yet", self._see_growth)

    def _see_growth(self) -> None:
        found = self._transport.describe([self._state_topic])
        if self._state_topic not in found or found[self._state_topic].partitions < self._partitions:
            raise TryAgain(f"topic {self._state_topic!r} still has too few partitions")
        for number in range(self._partitions):
            self._transport.offset_range(self._state_topic, number)

    # -- one old partition

    def _order_arrivals(self) -> int:
        """With `state.max_keys`, which keys have a place where they come: needs the keys of all. How many have none."""
        if self._arrivals is None:
            return 0
        for number in range(self._before):
            partition = self._restored(number)
            slab = partition.slab
            for rows in self._chunks(partition):
                keys, homes, staying, moving = self._divide(partition, rows)
                stay = rows[staying]
                stay = stay[slab.steps[stay] > 0]
                self._arrivals.stay(number, len(stay), int(slab.last_offset[stay].min(initial=0)))
                chosen = rows[moving]
                self._arrivals.come([keys[i] for i in moving.tolist()], homes[moving], slab.last_timestamp[chosen])
            partition.close()
        return self._arrivals.settle()

    def _chunks(self, partition: Partition) -> Iterator[Ints]:
        """Rows of the keys that are there, but for those whose erasure was asked for: the owner does the rest."""
        partition.erase(partition.erasures.requested())
        rows = partition.slab.index.rows()
        for start in range(0, len(rows), self._rows_at_once):
            yield rows[start : start + self._rows_at_once]

    def _move(self, number: int) -> Floor:
        """Write its states that have moved, and those that are newer than their records. Its new floor record."""
        partition = self._restored(number)
        for rows in self._chunks(partition):
            self._move_rows(partition, rows)
        floor = Floor(
            self._identity,
            origin=partition.origin,
            offset=self._offsets[number],
            input_topic_id=self._topics.input_topic_id,
            partitions=self._partitions,
            state_topic_id=self._topics.topic_id,
            position=self._offsets[number],
            answers_from=partition.answers_from,
            alerts=partition.alerts,
            seed=self._seed,
            moved_from=self._before,
            earlier=partition.earlier,
            stream_time_ms=partition.slab.stream_time.now_ms,
            outside_times=partition.outside_times,
            moves=(*partition.moves, (self._offsets[number], self._before, self._partitions)),
        )
        partition.close()
        return floor

    def _divide(self, partition: Partition, rows: Ints) -> tuple[list[Key], Ints, Ints, Ints]:
        """The keys [N], their partitions among the new ones [N], and which of them stay and which move."""
        slab, number = partition.slab, partition.number
        keys = slab.index.keys_at(rows)
        has_key = np.array([key is not None for key in keys], np.bool_)  # those without one share a state per partition
        new_homes = np.where(has_key, partitions_of_keys(keys, self._partitions), number)
        elsewhere = has_key & (partitions_of_keys(keys, self._before) != number)
        left = elsewhere & (new_homes == number) & (slab.last_offset[rows] < 0)  # by a run that was cut
        if (elsewhere & ~left).any():
            raise self._wrong_partition(number, slab.last_offset[rows[elsewhere & ~left]])
        staying = np.flatnonzero((new_homes == number) & ~elsewhere)
        moving = np.flatnonzero((new_homes != number) & ~elsewhere & (slab.steps[rows] > 0))  # not those that have gone
        return keys, new_homes, staying, moving

    def _move_rows(self, partition: Partition, rows: Ints) -> None:
        slab, number, digest = partition.slab, partition.number, self._identity.digest
        keys, new_homes, staying, moving = self._divide(partition, rows)
        stay = rows[staying]
        newer = stay[slab.first_unwritten[stay] != CLEAN]
        if len(newer):
            self._write(np.full(len(newer), number), *pack_states(slab, newer, digest, partition.origin))
        last_offsets = np.full(len(moving), NOT_IN_INPUT)
        if self._arrivals is not None:
            last_offsets = self._arrivals.last_offsets([keys[i] for i in moving.tolist()])
            moving, last_offsets = moving[last_offsets < 0], last_offsets[last_offsets < 0]
        if not len(moving):
            return
        chosen = rows[moving]
        columns = StateColumns(
            np.full(len(moving), self._seed),
            last_offsets,
            slab.steps[chosen],
            slab.last_timestamp[chosen],
            slab.failures[chosen],
            slab.rows.read(chosen),
        )
        entities = [keys[i] for i in moving.tolist()]
        self._write(new_homes[moving], *pack_columns(entities, columns, digest, slab.incidents))
        self.moved += len(moving)

    def _wrong_partition(self, number: int, last_offsets: Ints) -> CannotServe:
        return CannotServe(
            f"{self._config.input.topic}[{number}]: {counted(len(last_offsets), 'key has', 'keys have')}"
            " states there, and murmur2 of the key"
            f" puts none of them there among {counted(self._before, 'partition')} (one has its last event at offset"
            f" {last_offsets[0]}). The input is partitioned by something else, or producers went on after it had got"
            " more partitions. Start under another name, from the beginning"
        )

    def _restored(self, number: int) -> Partition:
        """With the states of the group's offset, as a daemon with the old number of partitions has them."""
        partition = Partition(number, 0, self._engine.scorer.states)
        partitions = Partitions()
        partitions.add(partition)
        checkpointer = Checkpointer(
            self._topics,
            self._identity,
            partitions,
            interval_s=self._config.state.checkpoint_interval,
            clock=self._clock.monotonic_s,
            wall_s=self._clock.wall_s,
            alert_rules=self._engine.scorer.alert_rules,
        )
        config = self._config
        context = RestoreContext(
            self._transport,
            self._engine,
            checkpointer,
            self._commit_plan,
            config.input.topic,
            config.name,
            start_of(config, self._clock.wall_s()),
            "fail",
            config.state.replay,
            config.input.on_foreign_commit,
            self._clock.monotonic_s,
            BatchLimit(config.batch.max_events),
            set(),
        )
        partition.restore = restore = Restore(partition, context)
        give_up_s = self._clock.monotonic_s() + LIMIT_S
        while True:
            try:
                restored = restore.advance(self._member.membership(self._partitions), SLICE_S)
                give_up_s = self._clock.monotonic_s() + LIMIT_S
            except TryAgain as error:
                if self._clock.monotonic_s() > give_up_s:
                    raise CannotServe(f"the states cannot be read, for {LIMIT_S:g} s: {error}") from error
                self._clock.sleep(RETRY_S)
                self._transport.recover()
                restore.check_again()
                continue
            if restored is not None:
                return partition

    @property
    def _topics(self) -> StateTopic:
        """As a daemon with the old number of partitions would have it."""
        source = self._config.input.topic
        found = self._broker.describe([source, self._state_topic])
        return StateTopic(self._state_topic, found[self._state_topic].topic_id, found[source].topic_id, self._before)

    # -- writing

    def _write(self, partitions: Ints, keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> None:
        """State records of some partitions. Of new ones the offset says that states are missing still."""
        new = partitions >= self._before
        name = f"{-self._seed:x}"
        for chosen, nonce in (
            (np.flatnonzero(~new), f"{NONCE_PREFIX}repartition-{name}:of{self._before}"),
            (np.flatnonzero(new), f"{SEEDING_PREFIX}{name}:of{self._partitions}"),
        ):
            if len(chosen):
                picked = chosen.tolist()
                self._commit(partitions[chosen], [keys[i] for i in picked], [values[i] for i in picked], nonce)

    def _commit(
        self, partitions: Ints, keys: Sequence[bytes | None], values: Sequence[bytes | None], nonce: str
    ) -> None:
        now_ms = np.full(len(keys), int(self._clock.wall_s() * 1000), np.int64)
        batch = RecordBatch.to_write(self._state_topic, partitions, now_ms, list(keys), list(values))
        offsets = {number: self._offsets[number] for number in np.unique(partitions).tolist()}
        self._member.commit([batch], offsets, nonce, partitions=self._partitions)

    def _commit_plan(self, plan: CheckpointPlan, membership: Membership) -> None:
        """Of a restore, where the group's offset was set by somebody else and that is accepted."""
        nonce = f"{NONCE_PREFIX}repartition-{-self._seed:x}:of{self._before}"
        self._transport.commit(
            [], plan.records, plan.offsets, nonce=nonce, membership=membership, timeout_s=COMMIT_TIMEOUT_S
        )

    def _switch(self, floors: Sequence[Floor]) -> None:
        """The transaction from which on the daemon goes on with all partitions."""
        topics, rules = self._topics, self._engine.scorer.alert_rules
        fresh = [
            Floor(
                self._identity,
                origin=self._offsets[number],
                offset=self._offsets[number],
                input_topic_id=topics.input_topic_id,
                partitions=self._partitions,
                state_topic_id=topics.topic_id,
                position=self._offsets[number],
                alerts=None if rules is None else PartitionMemory((RulesFrom(NOT_IN_INPUT, rules),), ()),
                seed=self._seed,
                moved_from=self._before,
                moves=((self._offsets[number], self._before, self._partitions),),
            )
            for number in range(self._before, self._partitions)
        ]
        ours = floor_key(self._identity.digest)
        numbers = list(range(self._partitions))
        keys: list[bytes | None] = [ours] * len(numbers)
        values: list[bytes | None] = [pack_floor(floor) for floor in self._with_times([*floors, *fresh])]
        for number in range(self._before):  # those of other models would be those of keys that have left
            others = self._other_floors(number)
            numbers += [number] * len(others)
            keys += others
            values += [None] * len(others)
        nonce = f"{NONCE_PREFIX}repartition-{-self._seed:x}:of{self._partitions}"
        self._commit(np.array(numbers, np.int64), keys, values, nonce)

    def _with_times(self, floors: Sequence[Floor]) -> list[Floor]:
        """Those of all partitions, with the greatest stream time of the old ones whose keys can be there now.

        Whether they have a state still or not: one that has expired for good is removed, since what comes of it is too
        late (docs/semantics.md, line 37), and has to be so in the new partition as well.
        """
        common = math.gcd(self._before, self._partitions)  # a key stays in its class modulo any divisor of both
        found = []
        for number, floor in enumerate(floors):
            time_ms = max(old.stream_time_ms for old in floors[number % common : self._before : common])
            if time_ms > floor.stream_time_ms:
                outside_times = (*floor.outside_times, (floor.offset, time_ms))
                found.append(floor._replace(stream_time_ms=time_ms, outside_times=outside_times))
            else:
                found.append(floor)
        return found

    def _other_floors(self, number: int) -> list[bytes]:
        found: dict[bytes, bool] = {}
        for records in self._read_states(number):
            for key, value in zip(records.keys, records.values, strict=True):
                if key is not None and key[:1] == FLOOR and key != floor_key(self._identity.digest):
                    found[key] = value is not None
        return [key for key, there in found.items() if there]

    def _clear_after(self, floor: Floor) -> None:
        """What a run that was cut may have left, once the states were moved."""
        self._before = floor.moved_from
        if not self._before:
            return
        self._member.check_nobody_there()
        self._offsets = {number: one.offset for number, one in self._group_offsets().items()}
        self._member.join(self._partitions)
        self._clear()

    def _clear(self) -> None:
        """Tombstones for the records of keys in partitions that are not theirs any more.

        Of those only that were theirs before: where producers partition by something else, all that is elsewhere is in
        use.
        """
        prefix = ENTITY_KEY + self._identity.digest[:IDENTITY_BYTES]
        nonce = f"{NONCE_PREFIX}repartition-{-self._seed:x}:of{self._partitions}"
        for number in range(self._before):
            stale: dict[bytes, None] = {}
            for keys, values in self._records_with(number, prefix):
                entities = [unpack_key(key) for key in keys]
                left = partitions_of_keys(entities, self._before) == number
                left &= partitions_of_keys(entities, self._partitions) != number
                for key, value, has_left in zip(keys, values, left.tolist(), strict=True):
                    if not has_left or value is None:
                        stale.pop(key, None)
                    else:
                        stale[key] = None
            gone = list(stale)
            for start in range(0, len(gone), self._rows_at_once):
                chunk = gone[start : start + self._rows_at_once]
                self._commit(np.full(len(chunk), number), chunk, [None] * len(chunk), nonce)

    def _records_with(self, number: int, prefix: bytes) -> Iterator[tuple[list[bytes], list[bytes | None]]]:
        for records in self._read_states(number):
            chosen = [i for i, key in enumerate(records.keys) if key is not None and key.startswith(prefix)]
            if chosen:
                keys = [records.keys[i] or b"" for i in chosen]
                for key in keys:
                    key_kind(key)
                yield keys, [records.values[i] for i in chosen]

    def _read_states(self, number: int) -> Iterator[RecordBatch]:
        return self._broker.read(self._state_topic, number, *self._broker.offset_range(self._state_topic, number))
