"""States for a group that has not begun yet, written as its only member.

The group is the lock. The first transaction commits the offsets where the input joins, with metadata that says that
states are being written; a daemon refuses such an offset. Each transaction carries offsets, and so the fence of the
membership: once anybody else has joined, nothing more is written. States name a number of this run in place of an
origin, and only the last transaction names it too: that of the floor records, with offsets as the daemon commits them.
So what an unfinished run has left counts nowhere, and another run begins from the start.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType

import numpy as np

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.records import Ints, RecordBatch
from lstmstream.serve.alert_memory import PartitionMemory
from lstmstream.serve.clock import Clock
from lstmstream.serve.committer import NONCE_PREFIX, SEEDING_PREFIX, is_unfinished_seed
from lstmstream.serve.identity import state_identity
from lstmstream.serve.state_records import (
    FLOOR,
    Floor,
    StateIdentity,
    floor_key,
    is_seed,
    pack_floor,
    state_record_bytes,
)
from lstmstream.serve.stream_time import NEVER
from lstmstream.serve.topics import GONE_S, MissingTopics, NotVisibleYet, Topics, ensure_topics
from lstmstream.states.joining import Join
from lstmstream.states.sole_member import MemberTransport, SoleMember
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.wording import counted

BYTES_PER_TRANSACTION = 16 << 20


def seed_offsets(partitions: Ints, order: Ints) -> Ints:
    """[N] What stands for the last offset of N states that are there before the input, with `state.max_keys`.

    -1 for the most recent one of each partition, -2 for the one before: a key's place among those that have a state.
    `order` [N]: positions of the states, the least recent first.
    """
    ordered = order[np.argsort(partitions[order], kind="stable")]
    ends = np.append(np.flatnonzero(np.diff(partitions[ordered])) + 1, len(ordered))
    counts = np.diff(ends, prepend=0)
    offsets = np.empty(len(ordered), np.int64)
    offsets[ordered] = np.arange(len(ordered)) - np.repeat(ends, counts)
    return offsets


class Seeding:
    """One run. `prepare`, `begin`, any number of `write`, `finish`; then, whatever has happened, `close`."""

    def __init__(
        self,
        config: Config,
        card: Card,
        transport: MemberTransport,
        *,
        clock: Clock = Clock(),  # noqa: B008 - immutable
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.identity: StateIdentity = state_identity(config, card)
        self.broker = PatientBroker(transport, say=say)
        self.origin = -2 - secrets.randbits(62)  # what the states of this run name in place of an origin
        self.rows_at_once = max(1, BYTES_PER_TRANSACTION // state_record_bytes(card.state.size))
        self.max_keys = config.state.max_keys  # of a partition; None: no limit
        self._config, self._card, self._transport = config, card, transport
        self._clock, self._say = clock, say
        self._member = SoleMember(config.name, transport, clock)
        self._topics: Topics | None = None
        self._joins: Mapping[int, Join] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix="lstmstream-states")
        self._writing: Future[None] | None = None

    @property
    def partitions(self) -> int:
        """Of the input."""
        return self._known.partitions

    @property
    def _known(self) -> Topics:
        assert self._topics is not None, "prepare comes first"
        return self._topics

    def prepare(self) -> None:
        """Reach the broker, make the topics that are missing, and see that nothing has begun. Raises CannotServe."""
        self._member.patiently("the broker cannot be used", self._transport.connect)
        self._topics = self._member.patiently("the topics cannot be used", self._ensure_topics, GONE_S)
        self._member.check_nobody_there()
        self._check_not_begun()
        self._check_state_topic()

    def _ensure_topics(self) -> Topics:
        try:
            return ensure_topics(self._config, self._transport, self._card.state.size)
        except MissingTopics as error:
            if self._config.create_topics:  # perhaps only this broker does not know it yet
                raise NotVisibleYet(str(error)) from error
            raise

    def _check_not_begun(self) -> None:
        for number, committed in self.broker.group_offsets(self._config.input.topic, range(self.partitions)).items():
            if not is_unfinished_seed(committed.metadata):
                raise CannotServe(
                    f"group {self._config.name!r} has begun: its offset of {self._config.input.topic}[{number}] is"
                    f" {committed.offset}. States can be written for a group that has not begun only: use another name"
                    " and state topic"
                )

    def _check_state_topic(self) -> None:
        """Nothing but what an unfinished run has left."""
        topic, left = self._config.state.topic, 0
        for number in range(self.partitions):
            for records in self.broker.read(topic, number, *self.broker.offset_range(topic, number)):
                for key, value, offset in zip(records.keys, records.values, records.offsets.tolist(), strict=True):
                    if value is None:
                        continue
                    if key is None or key[:1] == FLOOR or not is_seed(value):
                        raise CannotServe(
                            f"state.topic: topic {topic!r} has states already (partition {number}, offset {offset});"
                            " use another name and state topic, or delete that topic if nobody needs it"
                        )
                    left += 1
        if left:
            self._say(
                f"{counted(left, 'state')} of an unfinished import or build will not count; it begins from the start"
            )

    # -- writing

    def begin(self, joins: Mapping[int, Join]) -> None:
        """Become the group's only member, and fix where the input goes on. Raises CannotServe."""
        self._joins = joins
        for number, join in joins.items():
            beginning, _ = self.broker.offset_range(self._config.input.topic, number)
            if join.offset < beginning:
                raise CannotServe(
                    f"{self._config.input.topic}[{number}]: offsets {join.offset} to {beginning - 1} were deleted"
                    " meanwhile, before anybody has answered them; run it again with a history that contains them"
                )
        self._member.join(self.partitions)
        self._check_not_begun()  # as its only member: nobody can begin from here on, and go unnoticed
        self._commit([], self._joins, self._progress_nonce)

    @property
    def _progress_nonce(self) -> str:
        return f"{SEEDING_PREFIX}{-self.origin:x}:of{self.partitions}"

    def write(self, partitions: Ints, keys: list[bytes | None], values: list[bytes | None]) -> None:
        """Write C state records, best `rows_at_once`, while the next ones are being made. Raises CannotServe."""
        count = len(values)
        now_ms = np.full(count, int(self._clock.wall_s() * 1000), np.int64)
        batch = RecordBatch.to_write(self._config.state.topic, partitions, now_ms, keys, values)
        self.wait()
        self._writing = self._background.submit(
            self._commit, [batch], np.unique(partitions).tolist(), self._progress_nonce
        )

    def wait(self) -> None:
        """Until all is written that was given to `write`. Raises CannotServe."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(
        self,
        alerts: Mapping[int, PartitionMemory] = MappingProxyType({}),
        times_ms: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """Make the states count, all at once. Raises CannotServe.

        `alerts`: what is remembered of each partition. `times_ms`: the greatest event time of each; NEVER or left out
        where there is none. It counts with `input.max_lateness` only.
        """
        self.wait()
        numbers, topics = sorted(self._joins), self._known.state
        if self._config.input.max_lateness is None:
            times_ms = {}
        known_ms = {number: time_ms for number, time_ms in times_ms.items() if time_ms != NEVER}
        floors = [
            Floor(
                self.identity,
                origin=self._joins[number].offset,
                offset=self._joins[number].offset,
                input_topic_id=topics.input_topic_id,
                partitions=topics.partitions,
                state_topic_id=topics.topic_id,
                position=self._joins[number].offset,
                alerts=alerts.get(number),
                seed=self.origin,
                stream_time_ms=known_ms.get(number, NEVER),
                outside_times=((self._joins[number].offset, known_ms[number]),) if number in known_ms else (),
            )
            for number in numbers
        ]
        batch = RecordBatch.to_write(
            topics.name,
            np.array(numbers, np.int64),
            np.full(len(numbers), int(self._clock.wall_s() * 1000), np.int64),
            [floor_key(self.identity.digest)] * len(numbers),
            [pack_floor(floor) for floor in floors],
        )
        self._commit([batch], numbers, f"{NONCE_PREFIX}seed-{-self.origin:x}:of{self.partitions}")

    def _commit(self, batches: list[RecordBatch], partitions: Collection[int], nonce: str) -> None:
        offsets = {number: self._joins[number].offset for number in partitions}
        is_last = nonce != self._progress_nonce
        self._member.commit(
            batches, offsets, nonce, partitions=self.partitions, is_done=lambda: is_last and self._has_finished()
        )

    def _has_finished(self) -> bool:
        """Whether the last transaction went through: no daemon replaces an offset that waits for states."""
        committed = self._transport.committed_offsets(list(self._joins)).values()
        return any(not is_unfinished_seed(one.metadata) for one in committed)

    def close(self) -> None:
        """Leave the group. Never raises."""
        self._background.shutdown()
        self._transport.close(2.0)
