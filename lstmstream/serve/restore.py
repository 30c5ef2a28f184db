"""Bring one partition's states back: state topic, floor record, replay of the input up to the committed offset.

Works in slices, so that the member stays in its group and other partitions go on. Several restores may run at once,
each with readers of its own. What is found decides between three ways on: continue (this identity's states are there),
start empty (nothing is there, or a reset was asked for), refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import NamedTuple

import numpy as np

from lstmstream.errors import CannotServe, UnreadableRecords
from lstmstream.records import Bools, Ints, Observations, RecordBatch
from lstmstream.serve.alert_restore import RestoredAlerts
from lstmstream.serve.committer import input_partitions, is_ours, is_unfinished_seed
from lstmstream.serve.erasures import RebuildErasures
from lstmstream.serve.key_table import Key
from lstmstream.serve.moves import left_behind
from lstmstream.serve.old_models import OldModels
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_context import RestoreContext
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.restore_load import StateLoad
from lstmstream.serve.restore_warnings import RestoreWarnings
from lstmstream.serve.state_records import IDENTITY_BYTES, Floor
from lstmstream.serve.stream_time import NEVER
from lstmstream.transport.ports import CommittedOffset, LogReader, Membership
from lstmstream.wording import counted

log = logging.getLogger(__name__)

RETRY_S = 0.5  # after a failure
LOOK_BACK = 1_000  # offsets, for the newest timestamp before the group's offset
CLEARED_AT_ONCE = 10_000  # states
DOUBT_S = 5.0  # so long must the group's offset lie before what was answered, until that counts


class RestorePhase(Enum):
    """What a restore does next."""

    LOOK_UP = auto()  # the committed offset, and how far the state topic goes
    LOAD = auto()  # read the state topic
    CHOOSE = auto()  # continue, start empty, or refuse
    CLEAR = auto()  # delete what the state topic still has of earlier states, before new ones begin
    FIND_ORIGIN = auto()  # how far back in the input a new model's states are rebuilt from
    CHECK_GAP = auto()  # somebody else moved the group's offset forward: over records that we have not answered?
    REPLAY = auto()  # re-read the input
    DONE = auto()


class Restored(NamedTuple):
    """What a restore did, for the log."""

    partition: int
    offset: int  # from which on events are answered
    states: int  # in memory now
    replay_from: int  # the floor: input offset from which records were replayed
    replayed: int  # records
    duration_s: float
    from_snapshot: int | None = None  # states that a local snapshot had; None: there was none to use
    from_standby: int | None = None  # states that were followed already; None: it was not followed
    state_records: int = 0  # that were read from the state topic


class Restore:
    """One partition on its way from RESTORING to RUNNING."""

    def __init__(self, partition: Partition, context: RestoreContext, *, answered: int = -1) -> None:
        """`answered`: the position of this member before it had to restore the partition again."""
        self.partition = partition
        self.phase = RestorePhase.LOOK_UP
        self._context = context
        self._began_s = context.clock()
        self._committed: CommittedOffset | None = None
        self._reader: LogReader | None = None  # of the input
        self._warnings = RestoreWarnings(partition.number, context.warned)
        self._errors = RestoreErrors(
            context.input_topic, partition.number, context.checkpointer.topic.name, context.group
        )
        self._salt = context.checkpointer.topic.input_topic_id  # of the digests in erasures
        self._load = StateLoad(partition, context, self._errors)
        self._replay_from = 0
        self._unplayed: RecordBatch | None = None  # was read, and is still to be replayed
        self._answered = answered  # where the group's offset was when we last knew it to be our own
        self._foreign = False  # the group's offset was set by somebody else
        self._takes_over = False  # from another model, that has answered since
        self._rebuilds = False  # from the origin, since records of the state topic cannot be used
        self._evicts = False  # all that is read again begins without states, so that keys are evicted again
        self._rebuild_noted = False  # the floor record says so
        self._erasures: RebuildErasures | None = None  # of a rebuild in which keys are evicted
        self._floor_position = 0
        self._newest_ms = -1  # the latest timestamp of the events that were answered last
        self._alerts = RestoredAlerts(partition, context.checkpointer.alert_rules)
        self._replayed = 0  # input records read again
        self._min_timestamp_ms = np.iinfo(np.int64).max  # of those
        self.retry_at_s = 0.0  # clock time; it failed a moment ago
        self.failures = 0
        self._unsure = False  # whether the committed offset is still the one that it works towards
        self._doubted_since_s: float | None = None  # it lies before what was answered

    @property
    def remaining(self) -> int:
        """Records still to be read in this phase."""
        unplayed = self._load.remaining + (0 if self._unplayed is None else len(self._unplayed))
        return unplayed if self._reader is None else unplayed + max(0, self._reader.end - self._reader.position)

    @property
    def committed_offset(self) -> int | None:
        """The group's offset that it works towards, once it is known."""
        return None if self._committed is None else self._committed.offset

    @property
    def doubtful(self) -> bool:
        """Whether it asks once more for the group's offset, at `retry_at_s`."""
        return self._doubted_since_s is not None and self.phase is RestorePhase.CHOOSE

    def check_again(self) -> None:
        """The transport failed: it goes on only if the committed offset is still the one that it works towards."""
        self._unsure = True

    def note_failure(self) -> None:
        """It is tried again a little later."""
        self.failures += 1
        self.retry_at_s = self._context.clock() + RETRY_S

    def advance(self, membership: Membership, slice_s: float) -> Restored | None:
        """Work for at most about `slice_s`; what was done once the partition is running, else None.

        Raises TryAgain, OwnershipLost, Fatal, and CannotServe where the states cannot be had.
        """
        clock = self._context.clock
        deadline_s = clock() + slice_s
        if self._unsure:
            self._check_committed()
        while self.phase is not RestorePhase.DONE and self.retry_at_s <= clock() < deadline_s:
            if self.phase is RestorePhase.LOOK_UP:
                self._look_up()
            elif self.phase is RestorePhase.LOAD:
                if self._load.read(deadline_s):
                    self.phase = RestorePhase.CHOOSE
            elif self.phase is RestorePhase.CHOOSE:
                self._choose(membership)
            elif self.phase is RestorePhase.CLEAR:
                self._clear(membership)
            elif self.phase is RestorePhase.FIND_ORIGIN:
                self._find_origin(deadline_s, membership)
            elif self.phase is RestorePhase.CHECK_GAP:
                self._check_gap(deadline_s)
            elif self.phase is RestorePhase.REPLAY:
                self._replay(deadline_s, membership)
        if self.phase is not RestorePhase.DONE:
            return None
        number, slab = self.partition.number, self.partition.slab
        duration_s = round(clock() - self._began_s, 3)
        return Restored(
            number,
            self.partition.position,
            len(slab),
            self._replay_from,
            self._replayed,
            duration_s,
            self._load.from_snapshot,
            self._load.from_standby,
            self._load.records,
        )

    def close(self) -> None:
        """Free its reader, and what was read."""
        self._unplayed = None
        self._load.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _check_committed(self) -> None:
        number = self.partition.number
        found = self._context.transport.committed_offsets([number]).get(number)
        before = None if self._committed is None else self._committed.offset
        if self.phase is not RestorePhase.LOOK_UP and before != (None if found is None else found.offset):
            self.close()
            self._load.forget()
            self._replayed = 0
            self.phase = RestorePhase.LOOK_UP
        self._unsure = False

    def _look_up(self) -> None:
        number = self.partition.number
        self._committed = self._context.transport.committed_offsets([number]).get(number)
        if self._committed is not None and is_unfinished_seed(self._committed.metadata):
            raise self._errors.seed_unfinished()
        self.phase = RestorePhase.LOAD

    def _open_reader(self, topic: str, start: int, end: int) -> None:
        self.close()
        self._reader = self._context.transport.open_reader(topic, self.partition.number, start, end)

    # -- the choice

    def _choose(self, membership: Membership) -> None:
        context, loaded, committed = self._context, self._load.states, self._committed
        beginning, end = context.transport.offset_range(context.input_topic, self.partition.number)
        if loaded.damaged_floor is not None:
            raise self._errors.floor_damaged(loaded.damaged_floor)
        # First: after a topic was made again, another offset does not help.
        if loaded.floor is not None and (
            changed := self._errors.topics_changed(loaded.floor, context.checkpointer.topic)
        ):
            raise changed
        self._note_other_models()
        floor = loaded.floor
        rows = self.partition.slab.index.rows()
        of_floor = np.zeros(len(rows), np.bool_)  # others cannot be used
        if floor is not None:
            of_floor = floor.vouches_for(loaded.origins(rows))
            newest = int(self.partition.slab.last_offset[rows[of_floor]].max(initial=-1))
            self._answered = max(self._answered, floor.position, floor.offset, newest + 1)
        self._answered = max(self._answered, self.partition.erasures.last)
        if (-1 if committed is None else committed.offset) < self._answered and self._doubts_committed():
            return
        if committed is not None:
            self._check_offset(committed.offset, beginning, end)
        if committed is None and (floor is not None or loaded.others):
            position = None if floor is None else self._answered
            raise self._topics_made_again(floor) or self._errors.offsets_gone(position)
        if floor is not None and committed is not None:
            self._continue(floor, committed, beginning, rows, of_floor)
        elif committed is None:
            self._check_growth()
            self._start_empty(membership, context.first_offset(self.partition.number, beginning, end))
        else:
            self._begin_without_states(membership, committed.offset, beginning)

    def _note_other_models(self) -> None:
        """What the partition is to know of them. Raises CannotServe where one has answered what our states miss."""
        context, loaded, floor = self._context, self._load.states, self._load.states.floor
        ours = context.checkpointer.identity
        self.partition.old_models = OldModels(loaded.others)
        self._takes_over = floor is not None and loaded.served_last != ours.digest[:IDENTITY_BYTES]
        if floor is not None and self._takes_over and context.engine.scorer.limits_keys:
            # Which keys the events since then would have evicted at which of them, no record tells.
            if context.on_model_change == "fail":
                raise self._errors.evictions_missed(ours, loaded.other_identities())
            loaded.drop(floor)
        if loaded.floor is not None:
            self.partition.earlier = loaded.floor.earlier
        else:
            self.partition.earlier = None if loaded.dropped is None else loaded.dropped.answered()

    def _begin_without_states(self, membership: Membership, committed: int, beginning: int) -> None:
        """Events were answered, and there are no states that count: rebuild them, start empty, or refuse."""
        context, others = self._context, self._load.states.other_identities()
        ours, way = context.checkpointer.identity, context.on_model_change
        if way == "fail" and others:
            raise self._errors.other_identity(ours, others)
        if way == "fail":
            raise self._errors.no_states(committed)
        if len(self.partition.slab):
            self.phase = RestorePhase.CLEAR
        elif way == "replay":
            self._newest_ms = -1
            self._open_reader(context.input_topic, max(beginning, committed - LOOK_BACK), committed)
            self.phase = RestorePhase.FIND_ORIGIN
        else:
            self._warnings.of_reset(ours, others)
            self._start_empty(membership, committed)

    def _check_offset(self, committed: int, beginning: int, end: int) -> None:
        """Whether events can be answered from the group's offset on. Raises CannotServe."""
        if not beginning <= committed <= end:
            raise self._topics_made_again(self._load.states.floor) or self._errors.outside(committed, beginning, end)
        if committed < self.partition.erasures.last:
            raise self._errors.before_erasure(committed, self.partition.erasures.last)

    def _doubts_committed(self) -> bool:
        """Whether to ask once more for the group's offset, which lies before what was answered.

        A coordinator that has just started reads its log up to an old high watermark, and was seen to answer with the
        offsets of long before.
        """
        now_s = self._context.clock()
        if self._doubted_since_s is None:
            self._doubted_since_s = now_s
            log.info(
                "the group's offset lies before what was answered; asking again for %g s",
                DOUBT_S,
                extra={"partition": self.partition.number, "answered": self._answered},
            )
        if now_s - self._doubted_since_s >= DOUBT_S:
            return False
        self._unsure, self.retry_at_s = True, now_s + RETRY_S
        return True

    def _topics_made_again(self, floor: Floor | None) -> CannotServe | None:
        """Whether that explains what is wrong: while the daemon runs it may not have been noticed yet."""
        if floor is None:
            return None
        topics = self._context.checkpointer.topic
        found = self._context.transport.describe([self._context.input_topic, topics.name])
        if len(found) < 2:
            return None
        now = topics._replace(
            topic_id=found[topics.name].topic_id, input_topic_id=found[self._context.input_topic].topic_id
        )
        return self._errors.topics_changed(floor, now)

    def _check_growth(self) -> None:
        """A partition that nobody has begun: is it new, though the group has come somewhere? Then keys have moved.

        The states of the old partitions are refused for that; but another member may have them. Partition 0 is always
        an old one.
        """
        number, partitions = self.partition.number, self._context.checkpointer.topic.partitions
        first = self._context.transport.committed_offsets([0]).get(0) if number else None
        before = None if first is None else input_partitions(first.metadata)
        if before is not None and before != partitions:
            raise self._errors.input_grown(before, partitions)

    def _clear(self, membership: Membership) -> None:
        """Delete states without a floor, of an earlier life of this identity: the next would take them for its own."""
        assert self._committed is not None
        slab, number = self.partition.slab, self.partition.number
        keys = slab.index.keys_at(slab.index.rows()[:CLEARED_AT_ONCE])
        plan = self._context.checkpointer.clearing_plan(number, keys, self._committed.offset)
        self._context.commit(plan, membership)
        slab.remove_all(keys)
        if not len(slab):
            self.phase = RestorePhase.CHOOSE

    def _start_empty(self, membership: Membership, origin: int) -> None:
        """No states: fix where they begin, and the group's offset, before the first prediction."""
        number = self.partition.number
        self.partition.begin_states(origin)
        self._alerts.begin(origin)
        self._context.commit(self._context.checkpointer.initial_plan(number, origin), membership)
        self._run(origin, floor=origin)

    def _find_origin(self, deadline_s: float, membership: Membership) -> None:
        """`state.replay` before the newest event that was answered. It is fixed, with the floor, before any answer."""
        assert self._committed is not None
        reader = self._reader
        assert reader is not None
        if reader.position < reader.end:
            try:
                batch = reader.next(max(0.0, deadline_s - self._context.clock()))
            except UnreadableRecords as error:
                reader.position = min(error.next_offset, reader.end)
                return
            self._newest_ms = max(self._newest_ms, int(batch.timestamps.max(initial=-1)))
            return
        context, number, committed = self._context, self.partition.number, self._committed.offset
        beginning, _ = context.transport.offset_range(context.input_topic, number)
        origin = committed
        if self._newest_ms >= 0:
            since_ms = max(0, self._newest_ms - round(1000 * context.replay_s))
            found = context.transport.offset_for_time(context.input_topic, number, since_ms)
            origin = committed if found is None else min(max(found, beginning), committed)
        self._alerts.begin(committed)  # the alerts before were those of another model
        self._evicts = context.engine.scorer.limits_keys
        self.partition.rebuilt_to = committed if self._evicts else -1
        context.commit(context.checkpointer.position_plan(number, origin, origin, committed, committed), membership)
        self._rebuild_noted = True
        self._warnings.of_rebuild(self._context.checkpointer.identity, origin, committed)
        self.close()
        rebuilt_to = self.partition.rebuilt_to
        self.partition.begin_states(origin, committed)
        self.partition.rebuilt_to = rebuilt_to
        self._load.forget()
        self._replay_from, self._floor_position = origin, committed
        self.phase = RestorePhase.REPLAY

    def _continue(self, floor: Floor, group: CommittedOffset, beginning: int, rows: Ints, of_floor: Bools) -> None:
        """This identity's states are there: drop those that cannot be used, and replay the input since the floor.

        `rows` and `of_floor`: as `_drop_unusable` takes them.
        """
        committed = group.offset
        self._floor_position = max(floor.position, floor.offset)
        reason, dropped = self._drop_unusable(floor, committed, rows, of_floor)
        reason = reason or self._alerts.why_rebuilt(floor, committed)
        if floor.offset < floor.rebuilt_to:
            reason = reason or "a rebuild was not finished"
        self._evicts, self._rebuild_noted = reason is not None and self._context.engine.scorer.limits_keys, False
        self._alerts.resume(floor, committed)
        if self._evicts:
            # States of different offsets do not tell which keys were there, so none is used. Those of keys that are
            # not there after the rebuild are written as empty ones.
            index = self.partition.slab.index
            self.partition.empty_states([*dropped, *self._load.states.damaged_keys(), *index.keys_at(index.rows())])
        self._replay_from = floor.offset if reason is None else floor.origin
        self._floor_position = min(self._floor_position, committed)  # it was moved back: the next floor says so
        self._foreign = not is_ours(group.metadata) and committed > self._answered
        if self._foreign and reason is None and self._replay_from >= self._floor_position and committed == beginning:
            # All that lies between is deleted: there is nothing to go back to, and the states need none of it.
            self._warnings.of_gap(
                self._answered, committed, "they were deleted, so the states do not contain them either"
            )
            self._answered = self._replay_from = committed
        self.partition.slab.stream_time.begin(self._replay_from, floor.stream_time_ms if reason is None else NEVER)
        if committed < self._answered:
            self._warnings.of_moving_back(committed, self._answered)
        self._rebuilds = reason is not None
        if reason is not None:
            if floor.seed:
                raise self._errors.seed_needed(reason)
            log.warning("rebuilding states from the input: %s", reason, extra={"partition": self.partition.number})
            if floor.origin > committed:
                raise self._errors.before_origin(reason, floor.origin)
        if beginning > self._replay_from:
            raise self._errors.input_gone(self._replay_from, beginning)
        self.partition.origin, self.partition.answers_from = floor.origin, floor.answers_from
        self.partition.seed, self.partition.moved_from = floor.seed, floor.moved_from
        self.partition.outside_times, self.partition.moves = floor.outside_times, floor.moves
        self._load.forget()
        self.close()
        # Before the input is opened: that may fail, and the choice is made.
        gap = self._foreign and committed > self._answered
        self.phase = RestorePhase.CHECK_GAP if gap else RestorePhase.REPLAY

    def _note_rebuild(self, membership: Membership) -> None:
        """Until the floor has passed all that is read again, a restart does it all again."""
        assert self._committed is not None
        partition, committed = self.partition, self._committed.offset
        partition.rebuilt_to = committed
        plan = self._context.checkpointer.position_plan(
            partition.number, partition.origin, partition.origin, committed, partition.answers_from
        )
        self._context.commit(plan, membership)
        self._rebuild_noted = True

    def _drop_unusable(self, floor: Floor, committed: int, rows: Ints, of_floor: Bools) -> tuple[str | None, list[Key]]:
        """Remove states of another origin, and of events that are not committed: (why a rebuild is needed, their keys).

        `rows` [n] are those of the slab that hold a state, `of_floor` [n] marks those that began where the floor says.
        """
        slab, loaded = self.partition.slab, self._load.states
        reason = None
        ahead = slab.last_offset[rows] >= committed
        left = left_behind(floor.moves, self.partition.number, slab.index.keys_at(rows), slab.last_offset[rows])
        dropped = slab.index.keys_at(rows[~of_floor | ahead | left])
        slab.remove_all(dropped)
        if (ahead & of_floor).any():
            reason = f"the group's offset was moved back to {committed}, before states that were written later"
        if floor.offset > committed:
            reason = f"the group's offset was moved back to {committed}, before the floor at {floor.offset}"
        if loaded.damaged:
            first = min(loaded.damaged.values())
            reason = (
                f"{counted(len(loaded.damaged), 'state record is', 'state records are')} damaged, the"
                f" first at offset {first}"
            )
        return reason, dropped

    def _check_gap(self, deadline_s: float) -> None:
        """Whether the group's offset was moved over records. Only control records or aborted ones are no loss."""
        assert self._committed is not None
        if self._reader is None:
            beginning, _ = self._context.transport.offset_range(self._context.input_topic, self.partition.number)
            self._open_reader(self._context.input_topic, max(beginning, self._answered), self._committed.offset)
        reader = self._reader
        assert reader is not None
        if reader.position < reader.end:
            batch = self._next_batch(reader, deadline_s)
            if batch is None or not len(batch):
                return
            first, end = int(batch.offsets[0]), self._committed.offset
            if self._context.on_foreign_commit != "accept":
                raise self._errors.skipped(self._answered, first, end)
            self._warnings.of_gap(first, end, "the states contain them")
        self.close()
        self.phase = RestorePhase.REPLAY

    # -- the replay

    def _next_batch(self, reader: LogReader, deadline_s: float) -> RecordBatch | None:
        """Of the input; None where a batch was passed over that cannot be decoded and that was never answered.

        Those after the floor's position and before the group's own offset were: states without them would be wrong.
        Of those before the floor's position nobody knows; where the group's offset was moved past them, they were not.
        """
        try:
            return reader.next(max(0.0, deadline_s - self._context.clock()))
        except UnreadableRecords as error:
            moved_past = self._foreign and error.first >= self._answered
            if error.first >= self._floor_position and not moved_past:
                raise self._errors.input_unreadable(error) from error
            log.error("skipped, the states do not contain it: %s", error.problem)  # noqa: TRY400 - for a person
            reader.position = min(error.next_offset, reader.end)
            return None

    def _replay(self, deadline_s: float, membership: Membership) -> None:
        assert self._committed is not None
        if self._reader is None:
            if self._evicts and not self._rebuild_noted:
                self._note_rebuild(membership)
            self._erasures = RebuildErasures(self.partition.erasures, self._salt) if self._evicts else None
            self._open_reader(self._context.input_topic, self._replay_from, self._committed.offset)
        reader = self._reader
        assert reader is not None
        if self._unplayed is None and reader.position < reader.end:
            self._unplayed = self._next_batch(reader, deadline_s)
        if self._unplayed is not None:
            self._replay_some(self._unplayed)
            return
        if reader.position < reader.end:
            return  # a batch was passed over
        self._erase_until(self._committed.offset)
        # From here on the offset is our own, so that this is said once; and it is known who answers.
        if self._foreign or self._takes_over:
            position, origin = self._committed.offset, self.partition.origin
            plan = self._context.checkpointer.position_plan(
                self.partition.number, origin, self._replay_from, position, self.partition.answers_from
            )
            self._context.commit(plan, membership)
            self._floor_position = position
        if self._rebuilds:  # whatever is in the records that were not used: they are to be written again, or deleted
            slab = self.partition.slab
            rows = slab.index.rows()
            slab.recorded[rows] = 1
            if self._evicts:
                empty = rows[slab.steps[rows] == 0]
                slab.last_offset[empty] = np.maximum(slab.last_offset[empty], self._committed.offset - 1)
                slab.first_unwritten[empty] = self._replay_from
        self._run(self._committed.offset, floor=self._replay_from, floor_position=self._floor_position)
        # Due at once: a daemon that is killed again and again must not replay more each time.
        self.partition.dirty.enqueue_marked(-np.inf, self._min_timestamp_ms)
        self._context.checkpointer.add_to_budget(self._replayed)

    def _replay_some(self, batch: RecordBatch) -> None:
        """The first of its events, so many that the loop is not held up; the rest stays for later."""
        limit, number, clock = self._context.batch_limit, self.partition.number, self._context.clock
        count = min(len(batch), limit.of_time)
        if count:
            policy, end = self._alerts.policy_at(int(batch.offsets[0]))
            if self._erasures is None:
                kept: Callable[[Observations], Ints | None] = partial(self.partition.erasures.kept, salt=self._salt)
            else:
                self._erase_until(int(batch.offsets[0]))
                kept, end = self._erasures.note, min(end, self._erasures.next_offset)
            count = min(count, int(np.searchsorted(batch.offsets, end)))
            events, began_s = batch.slice(0, count), clock()
            replayed = self._context.engine.replay(
                events, policy, count_hours=self._alerts.count_hours, kept=kept, evict=self._evicts
            )
            changed = replayed.get(number)
            limit.on_processed(count, clock() - began_s)
            if changed is not None:
                self.partition.dirty.mark_only(changed)
            self._replayed += count
            self._min_timestamp_ms = min(self._min_timestamp_ms, events.min_timestamp_ms()[number])
        self._unplayed = batch.slice(count, len(batch)) if count < len(batch) else None

    def _erase_until(self, offset: int) -> None:
        """In a rebuild with `state.max_keys`: the keys that were erased at offsets up to here leave."""
        if self._erasures is None:
            return
        slab = self.partition.slab
        for key in self._erasures.take_due(offset):
            row = slab.index.get(key)
            if row is None:
                continue
            if slab.recorded[row]:  # of events after its erasure; it is to be written, or deleted
                self.partition.empty_states([key])
            else:
                self.partition.erase([key])

    def _run(self, position: int, *, floor: int, floor_position: int | None = None) -> None:
        self.close()
        self.partition.run(position=position, floor=floor, floor_position=floor_position, now_s=self._context.clock())
        self.phase = RestorePhase.DONE
