"""The states of other members' partitions, followed in memory (`state.standby`), for a fast takeover: docs/standby.md.

A standby is the first part of a restore, done ahead of time: a `StateLoader` reads the partition's state topic from
its beginning, by the same rules and into the same kind of slab, as far as the topic goes. Every few seconds it reads
what is new. A restore that begins takes the slab as it is, and reads the topic on from there. So what is followed is
a function of the state topic alone, as a snapshot is, and never of what another member has in memory.

Nothing depends on a standby: where anything about it is doubtful it is dropped, and the topic is read as a whole.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from lstmstream.config import Config
from lstmstream.errors import CannotServe, LstmstreamError, TryAgain
from lstmstream.serve.checkpoint import StateTopic
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.loop_share import SLICE_S, LoopShare
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition, Partitions
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.snapshot_folder import tombstones_ms
from lstmstream.serve.state import StateStore
from lstmstream.serve.state_loader import StateLoader
from lstmstream.serve.state_records import StateIdentity
from lstmstream.transport.ports import LogReader, MemberInfo, Membership, Transport

MEMBERS_INTERVAL_S = 60.0  # for a look at who has which partitions; an assignment changes with a new generation only
UNSETTLED_INTERVAL_S = 2.0  # after a rebalance, until the broker says who has what
NEWS_INTERVAL_S = 5.0  # for a look at what is new in the state topic
RETRY_S = 30.0  # after a failure
STUCK_S = 120.0  # without a record, though committed ones are there

log = logging.getLogger(__name__)


class StandbyGauges(NamedTuple):
    """What is followed, all partitions together."""

    keys: int
    bytes: int
    records_behind: int  # of the state topic, at the last look at its ends


class Standby:
    """One partition of another member, as a restore would find it below `offset` of the state topic."""

    def __init__(
        self,
        number: int,
        states: StateStore,
        digest: bytes,
        errors: RestoreErrors,
        now_s: float,
        on_handed_over: Callable[[int], None],
    ) -> None:
        """`states`: a store for what is followed; `digest`: of the identity whose states are wanted."""
        self._on_handed_over = on_handed_over
        self.number = number
        self.offset = 0  # every committed record of the state topic below it is taken into account
        self.end = 0  # of the topic, at the last look
        self.complete_s = now_s  # clock time: all tombstones from `offset` on are younger than that
        self.end_s = now_s  # clock time of the last look
        self.said = False  # that it has come to the end
        self._partition = Partition(number, -1, states)
        self._partition.begin_states(0)
        self._loader = StateLoader(self._partition, digest, errors)

    @property
    def states(self) -> int:
        """Keys with a state."""
        return len(self._partition.slab)

    @property
    def bytes(self) -> int:
        """Memory of the states, and of where each began."""
        slab = self._partition.slab
        return slab.nbytes + 8 * slab.capacity

    def read(self, reader: LogReader) -> int:
        """The next records that are there; how many. Raises as StateLoader.read."""
        before = self._loader.records
        self._loader.read(reader, 0.0)
        self.offset = reader.position
        if self.offset >= self.end:
            self.complete_s = self.end_s
        return self._loader.records - before

    def hand_over(self, partition: Partition) -> StateLoader:
        """The partition has its states now, and the loader reads on there; nothing is left here."""
        partition.adopt(self._partition)
        self._loader.go_on_in(partition)
        self._on_handed_over(self.number)
        return self._loader

    def close(self) -> None:
        """Free its memory."""
        self._partition.close()


class Standbys:
    """The partitions that this member follows: `tick` once in each round of the loop, `find` for a restore."""

    def __init__(
        self,
        config: Config,
        transport: Transport,
        topic: StateTopic,
        identity: StateIdentity,
        states: StateStore,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        """`states` are those of the partitions that are served: what is followed is put in the same place."""
        self._config = config
        self._transport = transport
        self._topic = topic
        self._digest = identity.digest
        self._states = states.sibling()
        self._observer = observer
        self._clock = clock
        self._failures = FailureLog(log, clock)
        self._followed: dict[int, Standby] = {}
        self._refused: set[int] = set()  # partitions whose state topic cannot be used
        self._reading: tuple[Standby, LogReader] | None = None  # one at a time
        self._read_s = 0.0  # clock time of the last record, or of the opening
        self._waiting: list[Standby] = []  # to be read after that
        self._token: object = None  # of the membership under which the members were looked at
        self._members_s = 0.0  # clock time of the next look at them
        self._news_s = 0.0  # and at the ends of the state topic
        self._share = LoopShare(clock)

    # -- beside the work

    @property
    def rest_s(self) -> float:
        """Seconds until it reads on; infinity while there is nothing to read."""
        return self._share.rest_s if self._reading is not None or self._waiting else math.inf

    def tick(self, membership: Membership, partitions: Partitions, *, idle: bool) -> None:
        """A little work, unless something is being restored: that comes first, and what is followed may be for it.

        `idle`: no events came in this round.
        """
        now_s = self._clock()
        if membership.token != self._token:
            self._token = membership.token
            self._members_s = min(self._members_s, now_s + UNSETTLED_INTERVAL_S)
        if partitions.restoring():
            self._stop_reading()  # a reader that is not read from for long would be taken for one that hangs
            return
        if self._share.rest_s:
            return
        if not membership.valid:
            self._share.rest(now_s, idle=idle)
            return
        try:
            self._work(now_s, membership.member_id, partitions)
        except TryAgain as error:
            self._give_up("the broker failed", error)
        except (LstmstreamError, MemoryError) as error:  # no fault of the stream
            for number in list(self._followed):
                self._drop(number)
            self._give_up("they are dropped", error)
        self._share.rest(now_s, idle=idle)

    def _work(self, now_s: float, member_id: str, partitions: Partitions) -> None:
        for number in self._followed.keys() & partitions.running_numbers():
            self._drop(number)  # it was restored, from elsewhere
        if now_s >= self._members_s:
            self._choose(now_s, member_id, partitions)
        elif self._reading is not None:
            self._read(*self._reading)
        elif self._waiting:
            self._open(self._waiting.pop(0))
        elif now_s >= self._news_s:
            self._look(now_s)

    def _choose(self, now_s: float, member_id: str, partitions: Partitions) -> None:
        """Follow the partitions of the next members; those that nobody has, or that we are about to get, stay."""
        self._members_s = now_s + UNSETTLED_INTERVAL_S
        members = self._transport.group_members()
        wanted = followed_partitions(members, member_id, self._config.state.standby)
        if wanted is None:
            return
        self._members_s = now_s + MEMBERS_INTERVAL_S
        of_others = {number for one in members if one.member_id != member_id for number in one.partitions}
        before = set(self._followed)
        for number in before & (of_others - wanted):
            self._drop(number)
        for number in sorted(wanted - before - self._refused - partitions.assignment().keys()):
            self._followed[number] = self._new_standby(number, now_s)
        if set(self._followed) != before:
            self._news_s = now_s
            log.info("following the states of other members", extra={"partitions": sorted(self._followed)})
        self._tell()

    def _new_standby(self, number: int, now_s: float) -> Standby:
        config = self._config
        errors = RestoreErrors(config.input.topic, number, self._topic.name, config.name)
        return Standby(number, self._states, self._digest, errors, now_s, self._forget)

    def _look(self, now_s: float) -> None:
        """What is new, with one request to the broker."""
        self._news_s = now_s + NEWS_INTERVAL_S
        if not self._followed:
            return
        ends = self._transport.last_stable_offsets(self._topic.name, list(self._followed))
        for number, standby in list(self._followed.items()):
            if ends[number] < standby.offset:
                self._refuse(standby, f"the state topic ends at {ends[number]} now")
                continue
            standby.end, standby.end_s = ends[number], now_s
            if standby.offset >= standby.end:
                standby.complete_s = now_s
            else:
                self._waiting.append(standby)
        self._tell()

    def _open(self, standby: Standby) -> None:
        beginning, _ = self._transport.offset_range(self._topic.name, standby.number)
        if standby.offset < beginning and standby.offset > 0:
            self._refuse(standby, f"the state topic begins at {beginning} now")
            return
        start = max(standby.offset, beginning)
        reader = self._transport.open_reader(self._topic.name, standby.number, start, standby.end)
        self._reading, self._read_s = (standby, reader), self._clock()

    def _read(self, standby: Standby, reader: LogReader) -> None:
        """A slice of the topic."""
        now_s = self._clock()
        deadline_s = now_s + SLICE_S
        try:
            while reader.position < reader.end and now_s < deadline_s:
                count = standby.read(reader)
                now_s = self._clock()
                if count:
                    self._read_s = now_s
                else:
                    break
        except CannotServe as error:  # a restore will say the same, and stop the daemon: it may be for the owner only
            self._refused.add(standby.number)
            self._refuse(standby, str(error))
            return
        self._tell()
        if now_s - self._read_s > STUCK_S:
            raise TryAgain(f"the state topic cannot be read beyond offset {reader.position}")
        if reader.position < reader.end:
            return
        self._stop_reading()
        if not standby.said:
            standby.said = True
            log.info("standby is complete", extra={"partition": standby.number, "states": standby.states})

    # -- for a restore

    def find(self, number: int, beginning: int, end: int) -> Standby | None:
        """What was followed of a partition whose state topic has these bounds, if it may be used. Raises TryAgain.

        It stays here until `Standby.hand_over`.
        """
        standby = self._followed.get(number)
        if standby is None or not standby.offset:
            return None
        self._stop_reading()
        reason = self._doubt(standby, beginning, end)
        if reason is not None:
            self._refuse(standby, reason)
            return None
        return standby

    def _doubt(self, standby: Standby, beginning: int, end: int) -> str | None:
        topic = self._topic
        if standby.offset > end:
            return f"it is newer than the state topic: its offset is {standby.offset}, and the topic ends at {end}"
        if standby.offset < beginning:
            return f"records after its offset {standby.offset} were deleted: the state topic begins at {beginning}"
        found = self._transport.describe([topic.name, self._config.input.topic])
        ids = [found[name].topic_id if name in found else None for name in (topic.name, self._config.input.topic)]
        if ids != [topic.topic_id, topic.input_topic_id]:
            return "a topic was made again"
        kept_ms = tombstones_ms(found[topic.name])
        if kept_ms is None:
            return "delete.retention.ms of the state topic is not known: DESCRIBE_CONFIGS on it is not allowed"
        age_s = self._clock() - standby.complete_s
        if age_s >= kept_ms / 2000:
            return (
                f"it was not read for {age_s:.0f} s, more than half of the state topic's delete.retention.ms"
                f" ({kept_ms}): it may have missed that a key was deleted"
            )
        return None

    # -- the end of one

    def close(self) -> None:
        """Free everything."""
        self._stop_reading()
        for number in list(self._followed):
            self._drop(number)

    def _refuse(self, standby: Standby, reason: str) -> None:
        log.warning("a standby is not used: %s", reason, extra={"partition": standby.number})
        self._drop(standby.number)

    def _give_up(self, what: str, error: Exception) -> None:
        """For a while."""
        self._stop_reading()
        self._waiting.clear()
        self._share.pause(RETRY_S)
        self._failures.note(f"states of other members cannot be followed, {what}", error)
        self._tell()

    def _drop(self, number: int) -> None:
        standby = self._followed[number]
        self._forget(number)
        standby.close()

    def _forget(self, number: int) -> None:
        standby = self._followed.pop(number)
        if self._reading is not None and self._reading[0] is standby:
            self._stop_reading()
        self._waiting = [one for one in self._waiting if one is not standby]
        self._tell()

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading[1].close()
            self._reading = None

    def _tell(self) -> None:
        followed = self._followed.values()
        behind = sum(max(0, one.end - one.offset) for one in followed)
        gauges = StandbyGauges(sum(one.states for one in followed), sum(one.bytes for one in followed), behind)
        self._observer.on_standby(gauges)


def followed_partitions(members: Sequence[MemberInfo], member_id: str, count: int) -> set[int] | None:
    """The partitions of the `count` members after this one that have any; None while it is not known who has what.

    Every member sees the same circle, so each one is followed by the `count` before it. Members of one host are
    not beside each other where that can be: a host may fail as a whole.
    """
    if not any(one.partitions for one in members):
        return None  # a rebalance goes on
    ordered = sorted(members, key=lambda one: (one.host, one.group_instance_id or one.member_id))
    of_host: Counter[str] = Counter()
    ranks: dict[str, tuple[int, str]] = {}
    for one in ordered:
        ranks[one.member_id] = of_host[one.host], one.host
        of_host[one.host] += 1
    circle = sorted(ordered, key=lambda one: ranks[one.member_id])
    places = [place for place, one in enumerate(circle) if one.member_id == member_id]
    if not places:
        return None
    others = [*circle[places[0] + 1 :], *circle[: places[0]]]
    chosen: list[Collection[int]] = [one.partitions for one in others if one.partitions][:count]
    return {number for partitions in chosen for number in partitions}
