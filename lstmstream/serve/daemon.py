"""The daemon: poll → process → commit, with its phases, its way back after an error, and its end.

One thread. One micro-batch, one transaction. Nothing is polled while one is open.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import NamedTuple

import numpy as np

from lstmstream.config import Config
from lstmstream.errors import TryAgain
from lstmstream.serve import topics
from lstmstream.serve.build import make_engine, owner_of
from lstmstream.serve.checkpoint import Checkpointer, Plan
from lstmstream.serve.engine import Engine, Result
from lstmstream.serve.health import Health
from lstmstream.serve.metrics import Metrics
from lstmstream.serve.records import RecordBatch, concatenate
from lstmstream.serve.restore import Restore
from lstmstream.serve.step import OnnxStep
from lstmstream.transport.base import CommittedOffset, Transport, Turn

log = logging.getLogger(__name__)

POLL_S = 0.1
RESTORE_SLICE_S = 1.0
COMMIT_LIMIT_S = 25.0
DRAIN_SHARE = 0.8  # of the shutdown timeout; the rest is for leaving the group
GAUGES_EVERY_S = 1.0
TOPICS_EVERY_S = 5.0
BACKOFF_S = (0.1, 0.2, 0.5, 1.0)


class Phase(Enum):
    """Where in its life the daemon is."""

    STARTING = "starting"
    JOINING = "joining"
    RESTORING = "restoring"
    RUNNING = "running"
    RECOVERING = "recovering"
    DRAINING = "draining"
    STOPPED = "stopped"


ALLOWED: Mapping[Phase, set[Phase]] = {
    Phase.STARTING: {Phase.JOINING, Phase.STOPPED},
    Phase.JOINING: {Phase.RESTORING, Phase.RUNNING, Phase.RECOVERING, Phase.DRAINING, Phase.STOPPED},
    Phase.RESTORING: {Phase.RUNNING, Phase.RECOVERING, Phase.DRAINING, Phase.STOPPED},
    Phase.RUNNING: {Phase.RESTORING, Phase.RECOVERING, Phase.DRAINING, Phase.STOPPED},  # a rebalance: restore again
    Phase.RECOVERING: {Phase.JOINING, Phase.RESTORING, Phase.RUNNING, Phase.DRAINING, Phase.STOPPED},
    Phase.DRAINING: {Phase.STOPPED},
    Phase.STOPPED: set(),
}


class _Attempt(NamedTuple):
    """A transaction whose fate is not known yet."""

    result: Result
    plan: Plan
    nonce: str

    def was_committed(self, committed: Mapping[int, CommittedOffset | None]) -> bool:
        """Whether it went through, by what is committed now for each partition of the plan.

        The offsets themselves tell nothing: an idle owner's are those that were committed before, and another member
        that answers the same events commits the same ones. A partition that was lost since may show another's nonce,
        so one that shows ours is enough; if none does, nothing of it is ours any more, or it was aborted.
        """
        found = (committed.get(partition) for partition in self.plan.offsets)
        return any(there is not None and there.metadata == self.nonce for there in found)


class Daemon:
    """Serves one config until `stop` is called."""

    def __init__(
        self,
        config: Config,
        step: OnnxStep,
        transport: Transport,
        metrics: Metrics,
        health: Health,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`clock`: monotonic seconds; `wall_s`: seconds since 1970 UTC."""
        self._config = config
        self._step = step
        self._transport = transport
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._wall_s = wall_s
        self._sleep = sleep
        self._stopping = False
        self._drain_by = math.inf  # clock time at which handing over is given up
        self.phase = Phase.STARTING
        self._engine: Engine
        self._checkpointer: Checkpointer
        self._topics: topics.Topics
        self._member: object = None
        self._assignment: Mapping[int, int] = {}
        self._joined = False
        self._restores: list[Restore] = []
        self._live: set[int] = set()
        self._attempt: _Attempt | None = None
        self._recovered = True  # whether the transport can be used: it cannot between an error and `recover`
        instance = uuid.uuid4().hex
        self._nonces = (f"{instance}-{number}" for number in itertools.count(1))
        self._stage_s: defaultdict[str, float] = defaultdict(float)
        self._next_gauges_s = 0.0
        self._next_topics_s = 0.0
        self._restore_began_s = 0.0

    def stop(self) -> None:
        """Finish the batch, hand over, and return from `run`. Safe to call from a signal handler, more than once."""
        if not self._stopping:
            limit_s = DRAIN_SHARE * self._config.shutdown_timeout
            self._drain_by = self._clock() + limit_s
            self._transport.bound_calls(limit_s)
        self._stopping = True

    def run(self) -> int:
        """Serve until stopped; the exit code. Raises CannotServe, Fatal, OwnershipLost."""
        try:
            if not self.start():
                return 0
            while not self._stopping:
                self.step()
            return self.drain()
        finally:
            self._transport.close(timeout_s=min(5.0, (1 - DRAIN_SHARE) * self._config.shutdown_timeout))
            self._enter(Phase.STOPPED)

    def start(self) -> bool:
        """Reach the broker, prepare the topics, join. False if stopped meanwhile."""
        self._health.wait("broker", "the broker has not been reached yet")
        for backoff_s in _backoffs():
            if self._stopping:
                self._enter(Phase.STOPPED)
                return False
            self._health.moved()
            try:
                self._transport.connect()
                self._topics = topics.prepare(self._config, self._transport)
                self._transport.join()
                break
            except TryAgain as error:
                self._health.wait("broker", "the broker cannot be reached; trying again")
                log.warning(
                    "the broker at %s cannot be used yet, trying again: %s",
                    ", ".join(self._config.kafka.bootstrap_servers),
                    error,
                )
                self._sleep(backoff_s)
        self._health.done("broker")
        self._engine = make_engine(self._config, self._step, hashed_topics=self._topics.hashed, measure=self._measure)
        self._checkpointer = Checkpointer(
            self._config.state.topic,
            owner_of(self._config, self._step),
            interval_s=self._config.state.checkpoint_interval,
            input_id=self._topics.input_id,
            partitions=self._topics.partitions,
            clock=self._clock,
            wall_ms=lambda: int(self._wall_s() * 1000),
        )
        self._enter(Phase.JOINING)
        return True

    def step(self) -> None:
        """One round of the loop, and the way back if the broker failed in it."""
        try:
            self._turn()
        except TryAgain as error:
            self._recover(error)

    def _turn(self) -> None:
        """Poll, answer and commit, restore a little."""
        self._health.moved()
        self._stage_s.clear()
        turn = self._poll()
        self._follow(turn)
        self._member = turn.member if turn.member_valid else None
        records = turn.records.of_partitions(self._live)
        if self._member is None:  # dropped from the group, and not fenced: nothing may be committed
            for partition in records.next_offsets():
                self._transport.resume(partition, self._checkpointer.position(partition))
            return
        if len(records) or self._checkpointer.due():
            self._answer(records)
        if self._restores:
            self._restore()
        self._look_around()

    def _poll(self) -> Turn:
        """What the broker has; with `batch.max_wait`, a little more of it."""
        limit, wait_s = self._config.batch.max_events, self._config.batch.max_wait
        with self._measure("poll"):
            turn = self._transport.poll(POLL_S, limit)
            deadline = self._clock() + wait_s
            while len(turn.records) and len(turn.records) < limit and (left_s := deadline - self._clock()) > 0:
                more = self._transport.poll(left_s, limit - len(turn.records))
                turn = more._replace(records=concatenate([turn.records, more.records]))
        return turn

    def _follow(self, turn: Turn) -> None:
        """Close partitions that were taken away, begin to restore those that came; the others go on."""
        if self._joined and turn.assignment == self._assignment:
            return
        if not (self._joined or turn.member_valid):
            return
        self._joined = True
        self._metrics.rebalances.inc()
        gone = [p for p, epoch in self._assignment.items() if turn.assignment.get(p) != epoch]
        come = [p for p, epoch in turn.assignment.items() if self._assignment.get(p) != epoch]
        for partition in gone:
            self._close(partition)
        self._assignment = dict(turn.assignment)
        if any(partition >= self._topics.partitions for partition in come):
            topics.still_there(self._config, self._transport, self._topics)
        for partition in come:
            self._begin_restore(partition)
        self._health.done("assignment")
        log.info("partitions assigned", extra={"partitions": sorted(turn.assignment), "new": sorted(come)})
        self._settle()

    def _answer(self, records: RecordBatch, *, everything: bool = False, limit_s: float = COMMIT_LIMIT_S) -> None:
        """One micro-batch, one transaction.

        1. the engine answers and stages the new states;
        2. answers, dead letters, due states and offsets are committed together;
        3. the engine keeps the states. Up to 2 an error leaves nothing behind; within 2 `_recover` finds out, by the
           nonce that each commit bears.
        """
        result = self._engine.process(records)
        plan = self._checkpointer.plan(
            self._engine.states,
            events=len(records),
            changes=result.changes,
            positions=records.next_offsets(),
            everything=everything,
        )
        self._attempt = attempt = _Attempt(result, plan, next(self._nonces))
        began_s = self._clock()
        with self._measure("commit"):
            self._transport.commit(
                result.messages, plan.messages, plan.offsets, self._member, nonce=attempt.nonce, limit_s=limit_s
            )
        self._keep(attempt, self._clock() - began_s)

    def _keep(self, attempt: _Attempt, commit_s: float | None) -> None:
        """The attempt is committed: so are its states; count it."""
        result, plan, _ = attempt
        self._attempt = None
        self._engine.commit()
        self._checkpointer.committed(plan, result.changes, result.records.oldest_ms())
        now_s = self._wall_s()
        timestamps = result.records.timestamps
        self._metrics.observe_batch(
            events=len(result.records),
            scores=result.answers.score,
            alerts=int(result.answers.alert.sum()),
            dead_letters=Counter(letter.stage for letter in result.dead_letters),
            latencies_s=now_s - timestamps[timestamps >= 0] / 1000,
            now_s=now_s,
            late=result.late_events,
            late_policy=self._config.input.late,
            expired=result.expired,
            checkpoints=sum(map(len, plan.written.values())),
        )
        self._metrics.transaction("committed", commit_s)
        self._metrics.observe_stages(self._stage_s)
        self._stage_s.clear()

    def _recover(self, error: TryAgain) -> None:
        """A new producer ends the open transaction one way or the other; the nonce in the offsets tells which."""
        self._recovered = False
        self._enter(Phase.RECOVERING)
        self._health.wait("broker", "the broker failed; recovering")
        log.warning("the broker failed, trying again: %s", error)
        for backoff_s in _backoffs():
            if self._stopping:
                return  # `drain` decides what is left to do
            self._health.moved()
            try:
                self._transport.recover()
                topics.still_there(self._config, self._transport, self._topics)
                self._rewind()
                self._recovered = True
                break
            except TryAgain as again:
                log.warning("still trying: %s", again)
                self._sleep(backoff_s)
        self._health.done("broker")
        log.info("recovered")
        self._settle()

    def _rewind(self) -> None:
        """Go on from the committed offsets, with the states that belong to them. Raises TryAgain."""
        attempt = self._attempt
        concerned = self._live if attempt is None else {*self._live, *attempt.plan.offsets}
        committed = {p: self._transport.committed(p) for p in concerned}
        if attempt is not None and attempt.was_committed(committed):
            if self._config.delivery == "at_least_once":  # states come after the offsets, so perhaps they are missing
                attempt = attempt._replace(plan=attempt.plan._replace(written={}, floors={}))
            self._keep(attempt, None)
        elif attempt is not None:
            self._metrics.transaction("aborted")
            self._engine.rollback()
        self._attempt = None
        for restore in list(self._restores):  # they stopped half-way
            self._restart_restore(restore.partition)
        for partition in list(self._live):
            found, position = committed[partition], self._checkpointer.position(partition)
            if found is not None and found.offset == position:
                self._transport.resume(partition, position)
            else:
                log.warning("the group's offset has moved; restoring", extra={"partition": partition})
                self._restart_restore(partition)

    def _begin_restore(self, partition: int) -> None:
        if not self._restores:
            self._restore_began_s = self._clock()
        self._restores.append(
            Restore(
                partition,
                self._transport,
                self._engine,
                self._checkpointer,
                input_topic=self._config.input.topic,
                input_id=self._topics.input_id,
                partitions=self._topics.partitions,
                state_topic=self._config.state.topic,
                start=self._config.input.start,
                on_model_change=self._config.on_model_change,
                retention_ms=self._topics.retention_ms,
                nonces=self._nonces,
                clock=self._clock,
            )
        )

    def _restart_restore(self, partition: int) -> None:
        self._close(partition)
        self._begin_restore(partition)

    def _restore(self) -> None:
        """A slice of the oldest restore; its partition goes live when it is done."""
        restore = self._restores[0]
        done = restore.advance(self._member, RESTORE_SLICE_S)
        self._metrics.restore_records_remaining.set(restore.remaining)
        self._metrics.restore_seconds.set(self._clock() - self._restore_began_s)
        if done:
            self._restores.pop(0)
            self._live.add(restore.partition)
            self._next_gauges_s = 0.0  # now, and not in a second
            self._transport.resume(restore.partition, restore.position)
            log.info("partition restored", extra={"partition": restore.partition, "offset": restore.position})
            self._settle()

    def _close(self, partition: int) -> None:
        self._restores = [r for r in self._restores if r.partition != partition]
        self._live.discard(partition)
        self._checkpointer.close(partition)
        self._engine.states.close(partition)
        self._metrics.forget_partition(self._config.input.topic, partition)

    def _settle(self) -> None:
        """Name the phase by what is left to restore."""
        if not self._joined:
            self._enter(Phase.JOINING)
            return
        self._enter(Phase.RESTORING if self._restores else Phase.RUNNING)
        if self._restores:
            self._health.wait("restore", f"{len(self._restores)} partitions are being restored")
        else:
            self._health.done("restore")

    def drain(self) -> int:
        """Write the dirty states, so that the next owner has nothing to replay. 1 if that could not be committed."""
        self._enter(Phase.DRAINING)
        self._health.wait("stop", "stopping")
        nothing = RecordBatch.empty(self._config.input.topic)
        failure: TryAgain | None = None
        backoffs = _backoffs()
        while self._attempt is not None or any(self._checkpointer.floor_lag().values()):
            self._health.moved()
            left_s = self._drain_by - self._clock()
            if left_s <= 0:
                log.error(
                    "not all states could be written within shutdown_timeout (%gs); the next owner will replay the"
                    " input%s",
                    self._config.shutdown_timeout,
                    "" if failure is None else f". The last failure: {failure}",
                    extra={"states": self._checkpointer.unwritten()},
                )
                return 1
            try:
                if not self._recovered or self._member is None:
                    self._rejoin_to_end()
                else:
                    self._answer(nothing, everything=True, limit_s=left_s)
            except TryAgain as error:
                if failure is None:
                    log.warning("handing over failed, trying again until shutdown_timeout: %s", error)
                failure = error
                self._recovered = False
                self._sleep(max(0.0, min(next(backoffs), self._drain_by - self._clock())))
        log.info("handed over")
        return 0

    def _rejoin_to_end(self) -> None:
        """While stopping: learn the last transaction's fate and what is still ours; restore nothing. Raises TryAgain.

        A member that was dropped gets its partitions anew when it is back. Where nobody has gone on with one meanwhile,
        the states in memory are still those of the committed offset and can be handed over.
        """
        if not self._recovered:
            self._transport.recover()
            self._rewind()
            self._recovered = True
        turn = self._transport.poll(POLL_S, 1)
        self._member = turn.member if turn.member_valid else None
        if self._member is None:
            return
        for partition in [p for p in self._live if turn.assignment.get(p) != self._assignment.get(p)]:
            found = self._transport.committed(partition) if partition in turn.assignment else None
            if found is None or found.offset != self._checkpointer.position(partition):
                self._close(partition)
        self._assignment = dict(turn.assignment)

    def _look_around(self) -> None:
        """Gauges once a second; every few seconds, whether broker and topics are as they were."""
        now_s = self._clock()
        if now_s >= self._next_gauges_s:
            self._next_gauges_s = now_s + GAUGES_EVERY_S
            self._set_gauges()
        if now_s >= self._next_topics_s:
            self._next_topics_s = now_s + TOPICS_EVERY_S
            topics.still_there(self._config, self._transport, self._topics)

    def _set_gauges(self) -> None:
        topic = self._config.input.topic
        for partition, records in self._checkpointer.floor_lag().items():
            self._metrics.floor_lag(topic, partition, records)
            mark = self._transport.high_watermark(partition)
            if mark is not None:
                self._metrics.lag(topic, partition, max(0, mark - self._checkpointer.position(partition)))
        slabs = self._engine.states.slabs.values()
        self._metrics.state_keys.set(sum(int(np.count_nonzero(slab.steps[: len(slab.keys)])) for slab in slabs))
        self._metrics.state_bytes.set(sum(slab.nbytes for slab in slabs))

    def _enter(self, phase: Phase) -> None:
        if phase is self.phase:
            return
        assert phase in ALLOWED[self.phase], f"{self.phase} → {phase}"
        log.info("phase", extra={"before": self.phase.value, "now": phase.value})
        self.phase = phase
        self._health.enter(phase.value)

    @contextmanager
    def _measure(self, stage: str) -> Iterator[None]:
        began_s = self._clock()
        try:
            yield
        finally:
            self._stage_s[stage] += self._clock() - began_s


def _backoffs() -> Iterator[float]:
    yield from BACKOFF_S
    while True:
        yield BACKOFF_S[-1]
