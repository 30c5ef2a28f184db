"""The daemon: poll → process → commit, with its phases, its way back after an error, and its end.

One thread, and one micro-batch, one transaction. While that of a full batch is committed, the next batch is polled,
decoded and stepped already; a batch that is not full has no other waiting behind it, and its end is waited for. What
the loop does not do itself: partition.py holds what is known of a partition, committer.py judges transactions,
restores.py brings states back.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from concurrent.futures import Executor

from lstmstream.config import Config
from lstmstream.errors import (
    LstmstreamError,
    MembershipRefused,
    RecordRefused,
    SchemaRegistryDown,
    TryAgain,
    UnreadableRecords,
)
from lstmstream.records import RecordBatch, concatenate
from lstmstream.serve.abandoned import AbandonedTransactions
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import Checkpointer
from lstmstream.serve.clock import Clock
from lstmstream.serve.committer import Committer
from lstmstream.serve.engine import Engine
from lstmstream.serve.expiry import Sweeper
from lstmstream.serve.factory import expiry_of
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.housekeeping import Housekeeping
from lstmstream.serve.identity import state_identity
from lstmstream.serve.key_check import KeyCheck
from lstmstream.serve.observers import Observer, Observers, StageTimer
from lstmstream.serve.old_models import OldModelSweeper
from lstmstream.serve.partition import Partitions
from lstmstream.serve.phase import ALLOWED, Phase
from lstmstream.serve.refusals import Refusals
from lstmstream.serve.restore_context import RestoreContext, start_of
from lstmstream.serve.restores import Restores
from lstmstream.serve.seeks import Seeks
from lstmstream.serve.snapshot_folder import SnapshotFolder
from lstmstream.serve.snapshots import Snapshots
from lstmstream.serve.standby import Standbys
from lstmstream.serve.state import StateStore
from lstmstream.serve.time_limits import BACKOFF_S, backoffs, commit_timeout_s, longest_batch_s
from lstmstream.serve.topics import Topics
from lstmstream.transport.ports import CALL_TIMEOUT_S, CommittedOffset, Membership, PollResult, Transport

log = logging.getLogger(__name__)

POLL_TIMEOUT_S = 0.25  # a shutdown waits for its end
POLL_TIMEOUT_RESTORING_S = 0.005  # there is other work
FILL_S = 0.02  # how long more records are waited for while a transaction is open anyway
DRAIN_FRACTION = 0.8  # of the shutdown timeout; the rest is for leaving the group
QUIET_S = 10.0
REJOIN_AFTER = 10  # refusals of the membership in a row: the group is joined with a new consumer
SECOND_LOOK_S = 1.0  # a new coordinator's high watermark comes with the next fetch of its followers


class Daemon:
    """Serves one config until it is asked to stop. `startup.start_daemon` makes it, once the broker is reached.

    It has a few more attributes than other classes: this is where the parts meet that have one task each.
    """

    def __init__(
        self,
        config: Config,
        transport: Transport,
        topics: Topics,
        engine: Engine,
        observer: Observer,
        timer: StageTimer,
        clock: Clock,
        background: Executor | None,
        files: Executor | None = None,
    ) -> None:
        """`transport` has begun to join the group, and `topics` are right.

        `background` runs commits beside the loop; without one, nothing overlaps. `files` writes snapshots and reads
        them; without one, the loop does.
        """
        self._config = config
        self._transport = transport
        self._engine = engine
        self._observer = observer
        self._timer = timer
        self._clock = clock
        self._partitions = Partitions()
        self._seeks = Seeks(transport, config.input.topic, clock.monotonic_s)
        expiry = expiry_of(config)
        self._checkpointer = Checkpointer(
            topics.state,
            state_identity(config, engine.scorer.card),
            self._partitions,
            interval_s=config.state.checkpoint_interval,
            clock=clock.monotonic_s,
            wall_s=clock.wall_s,
            retention=topics.retention,
            alert_rules=engine.scorer.alert_rules,
            expiry=expiry,
        )
        self._sweeper = Sweeper(expiry, self._partitions, observer, clock.monotonic_s)
        self._old_models = OldModelSweeper(config.state.keep_old_models, transport, config.state.topic, clock)
        key_check = KeyCheck(
            self._partitions,
            observer,
            topic=config.input.topic,
            key_field=config.input.key,
            input_partitions=topics.partitions,
            clock=clock.monotonic_s,
        )
        properties = config.kafka.properties
        self._refusals = Refusals(
            config.state.topic,
            compressed=properties.get("compression.type", "none") != "none",
            wall_s=clock.wall_s,
        )
        self._batch_limit = BatchLimit(config.batch.max_events, longest_s=longest_batch_s(config))
        self._committer = Committer(
            transport,
            engine,
            self._checkpointer,
            Observers([observer, key_check]),
            timer,
            clock.monotonic_s,
            refusals=self._refusals,
            batch_limit=self._batch_limit,
            background=background,
            timeout_s=commit_timeout_s(config),
        )
        self._housekeeping = Housekeeping(
            config,
            transport,
            topics,
            self._partitions,
            self._checkpointer,
            observer,
            clock.monotonic_s,
            seeks=self._seeks,
            batch_limit=self._batch_limit,
            on_topics=self._refusals.set_topics,
        )
        self._failures = FailureLog(log, clock.monotonic_s)
        self._snapshots: Snapshots | None = None
        if config.state.dir is not None:
            folder = SnapshotFolder(
                config.folder / config.state.dir,
                transport,
                topics.state,
                self._checkpointer.identity.digest,
                engine.scorer.card.state.size,
                clock,
                files,
            )
            self._snapshots = Snapshots(folder, transport, observer, clock, files)
        self._standbys: Standbys | None = None
        if config.state.standby:
            self._standbys = Standbys(
                config,
                transport,
                topics.state,
                self._checkpointer.identity,
                engine.scorer.states,
                observer,
                clock.monotonic_s,
            )
        context = RestoreContext(
            transport,
            engine,
            self._checkpointer,
            self._committer.submit_plan,
            config.input.topic,
            config.name,
            start_of(config, clock.wall_s()),
            config.on_model_change,
            config.state.replay,
            config.input.on_foreign_commit,
            clock.monotonic_s,
            self._batch_limit,
            set(),
            None if self._snapshots is None else self._snapshots.folder,
            self._standbys,
        )
        self._restores = Restores(context, self._partitions, observer, self._failures)
        self._abandoned = AbandonedTransactions(transport, clock.monotonic_s)
        self._membership: Membership | None = None  # of the last poll; None before the first assignment
        self._token: object = None  # of the membership under which the partitions were last known to be ours
        self._failed = False  # the transport failed and has not recovered yet
        self._lacks_schema = False  # and the registry cannot be asked for it
        self._recoveries = 0  # since the last commit
        self._refused_memberships = 0  # recoveries in a row for that
        self._last_recovery_s = -math.inf  # when it began
        self._quiet = False  # in a recovery soon after another one: what is worth one line is not worth hundreds
        self._stopping = False
        self._drain_deadline_s = math.inf  # clock time at which handing over is given up
        self.phase = Phase.STARTING
        self._set_phase(Phase.JOINING)

    @property
    def states(self) -> StateStore:
        """What is remembered of each key. Not to be changed from outside."""
        return self._engine.scorer.states

    # -- the loop

    def stop(self) -> None:
        """Finish the batch, hand over, and return from `run`. For a signal handler; a second call changes nothing."""
        if not self._stopping:
            limit_s = DRAIN_FRACTION * self._config.shutdown_timeout
            self._drain_deadline_s = self._clock.monotonic_s() + limit_s
            self._transport.bound_calls(limit_s)
        self._stopping = True

    def run(self) -> int:
        """Serve until stopped; the exit code. Raises CannotServe, Fatal, OwnershipLost."""
        try:
            while not self._stopping:
                self.run_once()
            return self.drain()
        except UnreadableRecords:
            self.drain()  # how far it has answered must be known, so that the group can be moved on from there
            raise
        finally:
            self.close()

    def run_once(self) -> None:
        """One round of the loop, and the way back if the broker failed in it."""
        try:
            self._run_once()
        except TryAgain as error:
            self._recover(error)

    def _run_once(self) -> None:
        self._observer.on_loop()
        if not self._committer.in_background:
            self._timer.take()  # of restores and of polls without records: they belong to no batch
        polled = self._poll()
        if self._membership is None or polled.assignment != self._partitions.assignment():
            self._committer.wait()  # nothing is given up in the middle of a transaction
            self._handle_rebalance(polled)
        if polled.membership.valid and polled.membership.token != self._token:
            self._check_retained(polled.membership)
        batch = polled.records.for_partitions(self._partitions.running_numbers())
        if self._check_membership(polled.membership):
            self._check_positions(batch, polled.positions)
            # What the open transaction has events of is not passed over: they are read again if it fails.
            with_records = batch.first_offsets().keys() | self._committer.pending_partitions()
            self._partitions.pass_over(polled.positions, with_records)
            if not len(batch):
                self._committer.wait()  # what is due depends on it
            if self._partitions.erasures_due():  # a transaction of their own: no event may be on the way meanwhile
                self._process_batch(RecordBatch.empty(self._config.input.topic), polled.membership)
            if len(batch) or self._checkpointer.due():
                self._process_batch(batch, polled.membership, polled.positions)
            self._restore_some(polled.membership)
        else:
            self._committer.wait()
            self._read_again(batch)
        if self._sweeper.due():
            self._committer.wait()
            self._sweeper.sweep()
        self._old_models.tick(self._partitions.running())
        self._housekeeping.tick(polled)
        idle = not len(polled.records)
        if self._snapshots is not None:
            restoring = bool(self._partitions.restoring())
            self._snapshots.tick(self._partitions.running(), restoring=restoring, idle=idle)
        if self._standbys is not None:
            self._standbys.tick(polled.membership, self._partitions, idle=idle)

    def _poll(self) -> PollResult:
        """What the broker has, up to the limit of a batch.

        More is waited for with `batch.max_wait`, and while the transaction before is open: the next one cannot begin
        before its end, so a fuller batch costs no time. A client that fetches partition by partition gives the end of
        one fetch before it has the next.
        """
        limit = self._batch_limit.now
        with self._timer("poll"):
            polled = self._transport.poll(self._poll_timeout_s(), limit)
            wait_until_s = self._clock.monotonic_s() + self._config.batch.max_wait
            while 0 < len(polled.records) < limit and not self._stopping:
                left_s = wait_until_s - self._clock.monotonic_s()
                if left_s <= 0 and not self._committer.is_open:
                    break
                wait_s = min(left_s, POLL_TIMEOUT_S) if left_s > 0 else FILL_S
                try:  # a commit with at_least_once waits in line behind a poll
                    more = self._transport.poll(wait_s, limit - len(polled.records))
                except UnreadableRecords:
                    break  # what was read before it is answered first; the next poll says it again
                polled = more._replace(records=concatenate([polled.records, more.records]))
                if left_s <= 0 and not len(more.records):
                    break
        return polled

    def _poll_timeout_s(self) -> float:
        if self._committer.in_background:
            return 0.0  # if there is nothing to do meanwhile, its end is the next thing
        if self._partitions.restoring():
            return POLL_TIMEOUT_RESTORING_S
        beside = (self._snapshots, self._standbys)
        return min([POLL_TIMEOUT_S, *(work.rest_s for work in beside if work is not None)])

    def _handle_rebalance(self, polled: PollResult) -> None:
        """Close partitions that were revoked, begin to restore those that were assigned; the others go on."""
        if self._membership is None and not polled.membership.valid:
            return  # not in the group yet
        before, now = self._partitions.assignment(), polled.assignment
        revoked = [number for number, epoch in before.items() if now.get(number) != epoch]
        assigned = [number for number, epoch in now.items() if before.get(number) != epoch]
        for number in revoked:
            self._close_partition(number)
        self._housekeeping.check_assignment(assigned)
        for number in assigned:
            self._restores.begin(number, now[number])
        if assigned:
            self._abandoned.on_assigned()
        self._membership = polled.membership
        self._observer.on_rebalance()
        self._housekeeping.on_rebalance()
        self._observer.on_unblocked("assignment")
        log.info("partitions assigned", extra={"partitions": sorted(now), "new": sorted(assigned)})
        self._update_phase()

    def _check_retained(self, membership: Membership) -> None:
        """A new generation: whether others have had our partitions meanwhile, of which no client says so for certain.

        kafka-python was seen to keep those of a static member that slept through its session, when others had had
        them and had died. Raises TryAgain.
        """
        self._committer.wait()
        self._restore_moved(self._transport.committed_offsets(self._partitions.running_numbers()))
        for restore in self._partitions.restoring():
            restore.check_again()
        self._token = membership.token

    def _restore_moved(self, committed: Mapping[int, CommittedOffset]) -> None:
        """Go on where the group's offset is our position; restore the others again."""
        for partition in self._partitions.running():
            found = committed.get(partition.number)
            if found is None or found.offset != partition.position:
                log.warning("the group's offset has moved; restoring", extra={"partition": partition.number})
                self._restart_restore(partition.number)

    def _check_membership(self, membership: Membership) -> bool:
        """Whether anything may be committed. A member that was dropped from the group is not fenced by the broker."""
        if self._membership is not None:
            self._membership = membership
            if membership.valid:
                self._observer.on_unblocked("membership")
            else:
                self._observer.on_blocked("membership", "dropped from the consumer group; rejoining")
        return membership.valid

    def _read_again(self, batch: RecordBatch) -> None:
        for number in batch.next_offsets():
            self._seeks.resume(number, self._partitions[number].next_offset)

    def _check_positions(self, batch: RecordBatch, positions: Mapping[int, int]) -> None:
        """Raises TryAgain where a seek of the client was lost."""
        first_offsets = batch.first_offsets()
        pending = self._committer.pending_offset
        processed = {number: max(self._partitions[number].position, pending(number)) for number in first_offsets}
        self._seeks.check(first_offsets, positions, processed, self._partitions.running_numbers())

    def _process_batch(
        self,
        batch: RecordBatch,
        membership: Membership,
        positions: Mapping[int, int] | None = None,
        *,
        flush: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """One micro-batch, one transaction: outputs, dead letters, due states and offsets together, or none of it."""
        began_s = self._clock.monotonic_s()
        try:
            result = self._engine.process(batch, self._refusals)
        except SchemaRegistryDown as error:
            self._wait_for_schemas(batch, error)
            return
        if self._lacks_schema:
            self._lacks_schema = False
            self._observer.on_unblocked("schema registry")
        self._batch_limit.on_processed(len(batch), self._clock.monotonic_s() - began_s)
        full = len(batch) >= self._batch_limit.now
        # After a failure its end is waited for, and beside a restore: both are about what is committed.
        overlap = full and not flush and not self._recoveries and not self._partitions.restoring()
        self._committer.submit(result, membership, positions, flush=flush, overlap=overlap, timeout_s=timeout_s)
        self._recoveries = self._refused_memberships = 0

    def _wait_for_schemas(self, batch: RecordBatch, error: SchemaRegistryDown) -> None:
        """Nothing of the batch has happened yet: read it again, a little later. Polls go on. Raises TryAgain."""
        self._committer.wait()
        self._lacks_schema = True
        self._observer.on_blocked(
            "schema registry", "the schema registry cannot be used; waiting. The log has its error"
        )
        self._observer.on_failure(str(error), len(batch))
        self._failures.note("a schema is needed, asking again", error)
        self._read_again(batch)
        self._clock.sleep(BACKOFF_S[-1])

    # -- partitions

    def _close_partition(self, number: int) -> None:
        partition = self._partitions.remove(number)
        if partition is not None:
            self._restores.note_closed(partition)
            partition.close()
            self._observer.on_close(number)

    def _restart_restore(self, number: int) -> None:
        epoch = self._partitions[number].epoch
        self._close_partition(number)
        self._restores.begin(number, epoch)

    def _restore_some(self, membership: Membership) -> None:
        """A slice of work for several restores; a partition goes live when its own is done."""
        if self._partitions.restoring():
            self._abandoned.tick(membership)
        for restored in self._restores.advance(membership, lambda: self._committer.pending is not None):
            self._seeks.resume(restored.partition, restored.offset)
            self._observer.on_restored(restored)
            self._recoveries = self._refused_memberships = 0
            self._housekeeping.hurry()
            self._update_phase()
        if self._partitions.restoring():
            self._observer.on_blocked("restore", self._restores.text())

    # -- the way back after an error

    def _recover(self, error: TryAgain) -> None:
        """A new producer ends the open transaction one way or the other; then the committed offsets tell which."""
        with contextlib.suppress(TryAgain):  # then it is pending, and no news
            self._committer.wait()
        self._failed = True
        self._recoveries += 1
        self._refused_memberships = self._refused_memberships + 1 if isinstance(error, MembershipRefused) else 0
        now_s = self._clock.monotonic_s()
        self._quiet, self._last_recovery_s = now_s - self._last_recovery_s < QUIET_S, now_s
        before = self.phase
        self._set_phase(Phase.RECOVERING)
        self._observer.on_blocked("broker", "the broker failed; recovering. The log has its error")
        self._observer.on_failure(str(error), self._committer.pending_events())
        self._failures.note(self._what_failed(error), error)
        # A refused record is found in a few steps, and then there is a commit.
        if self._recoveries > 1 and not isinstance(error, RecordRefused):
            self._clock.sleep(BACKOFF_S[min(self._recoveries - 2, len(BACKOFF_S) - 1)])
        for backoff_s in backoffs():
            if self._stopping:
                return  # `drain` decides what is left to do
            self._observer.on_loop()
            try:
                self._transport.recover()
                self._housekeeping.check_topics()
                self._resolve_pending(CALL_TIMEOUT_S)
                if self._refused_memberships >= REJOIN_AFTER:
                    self._refused_memberships = 0
                    # A client was seen that went on polling, and whose heartbeats had ended for good.
                    log.error("the group refuses what is committed; replacing the consumer")
                    self._transport.join()
                break
            except TryAgain as again:
                if self._quiet:  # it lasts, which is worth the line that was left out
                    self._quiet = False
                    log.info("phase", extra={"before": before.value, "now": self.phase.value})
                self._failures.note("the broker cannot be used, still trying", again)
                self._housekeeping.lose_lag()
                self._observer.on_failure(str(again), self._committer.pending_events())
                self._clock.sleep(backoff_s)
        with contextlib.suppress(TryAgain):  # where each commit fails, a round does not come to its end
            self._housekeeping.measure()
        self._observer.on_unblocked("broker")
        log.log(self._log_level(), "recovered")
        self._update_phase()
        self._quiet = False

    def _what_failed(self, error: TryAgain) -> str:
        if isinstance(error, RecordRefused):
            return "a record is refused, trying again in smaller batches"
        if self._committer.pending_events() == 1 and self._recoveries > 3:
            return (
                "not even one event could be committed in time, trying again (a quota of the broker, or a slow network?"
                " transaction.timeout.ms and delivery.timeout.ms are the limits)"
            )
        return "the broker failed, trying again"

    def _resolve_pending(self, timeout_s: float) -> None:
        """Go on from the committed offsets, with the states that belong to them. Raises TryAgain."""
        concerned = self._partitions.running_numbers() | self._committer.pending_partitions()
        committed = self._transport.committed_offsets(concerned, timeout_s)
        if self._committer.looks_aborted(committed):
            self._clock.sleep(SECOND_LOOK_S)
            committed = self._transport.committed_offsets(concerned, timeout_s)
        self._committer.resolve(committed)
        for restore in self._partitions.restoring():
            restore.check_again()
        self._restore_moved(committed)
        for partition in self._partitions.running():
            self._seeks.resume(partition.number, partition.next_offset)
        self._failed = False

    # -- the end

    def drain(self) -> int:
        """Write the dirty states, so that the next owner has nothing to replay. 1 if that could not be committed."""
        self.stop()
        self._set_phase(Phase.DRAINING)
        self._observer.on_blocked("stop", "stopping")
        with contextlib.suppress(TryAgain, UnreadableRecords):
            self._pass_control_records()
        nothing = RecordBatch.empty(self._config.input.topic)
        failure: TryAgain | None = None
        backoff_s, limit_s = backoffs(), commit_timeout_s(self._config)  # no longer: there is time for a second try
        while self._committer.pending is not None or self._checkpointer.behind():
            self._observer.on_loop()
            left_s = self._drain_deadline_s - self._clock.monotonic_s()
            if left_s <= 0:
                log.error(
                    "not all states could be written within shutdown_timeout (%gs); the next owner will replay the"
                    " input%s",
                    self._config.shutdown_timeout,
                    "" if failure is None else f". The last failure: {failure}",
                    extra={"states": self._checkpointer.dirty_count()},
                )
                return 1
            try:
                if self._committer.in_background:
                    self._committer.wait()
                elif self._failed or self._membership is None or not self._membership.valid:
                    self._recover_for_shutdown()
                else:
                    self._process_batch(nothing, self._membership, flush=True, timeout_s=min(left_s, limit_s))
            except TryAgain as error:
                if failure is None:
                    log.warning("clean shutdown failed, trying again until shutdown_timeout: %s", error)
                failure = error
                self._failed = True
                left_s = self._drain_deadline_s - self._clock.monotonic_s()
                self._clock.sleep(max(0.0, min(next(backoff_s), left_s)))
        log.info("clean shutdown, states written")
        return 0

    def _pass_control_records(self) -> None:
        """A last look for control records at the position: retention may take them before the next owner comes."""
        member = self._membership is not None and self._membership.valid
        if self._failed or not member or self._committer.pending is not None:
            return
        polled = self._transport.poll(POLL_TIMEOUT_S, 1)
        if polled.assignment == self._partitions.assignment():
            records = polled.records.for_partitions(self._partitions.running_numbers())
            self._check_positions(records, polled.positions)
            self._partitions.pass_over(polled.positions, records.first_offsets().keys())

    def _recover_for_shutdown(self) -> None:
        """Learn the last transaction's outcome and what is still ours; no restore goes on. Raises TryAgain.

        A member that was dropped is assigned its partitions again when it is back. Where nobody has gone on with one
        meanwhile, the states in memory are still those of the committed offset and can be handed over.
        """
        if self._failed:
            self._transport.recover()
            self._resolve_pending(CALL_TIMEOUT_S)
        polled = self._transport.poll(POLL_TIMEOUT_S, 1)
        self._membership = polled.membership
        if not polled.membership.valid:
            return
        still_assigned = [p.number for p in self._partitions if p.number in polled.assignment]
        committed = self._transport.committed_offsets(still_assigned) if still_assigned else {}
        for partition in self._partitions:
            found = committed.get(partition.number)
            if partition.restore is None and found is not None and found.offset == partition.position:
                partition.epoch = polled.assignment[partition.number]
            else:
                self._close_partition(partition.number)

    def close(self) -> None:
        """Leave the group and free everything."""
        with contextlib.suppress(LstmstreamError):  # what it would say comes too late
            self._committer.wait()
        for restore in self._partitions.restoring():
            restore.close()
        if self._snapshots is not None:
            self._snapshots.close()
        if self._standbys is not None:
            self._standbys.close()
        self._old_models.close()
        self._housekeeping.close()
        self._transport.close(timeout_s=min(5.0, (1 - DRAIN_FRACTION) * self._config.shutdown_timeout))
        self._set_phase(Phase.STOPPED)

    # -- phases

    def _update_phase(self) -> None:
        """Name the phase by what is left to restore."""
        if self._membership is None:
            self._set_phase(Phase.JOINING)
            return
        restoring = self._partitions.restoring()
        self._set_phase(Phase.RESTORING if restoring else Phase.RUNNING)
        if restoring:
            self._observer.on_blocked("restore", self._restores.text())
        else:
            self._observer.on_unblocked("restore")
            self._restores.on_all_restored()

    def _set_phase(self, phase: Phase) -> None:
        if phase is self.phase:
            return
        assert phase in ALLOWED[self.phase], f"{self.phase} → {phase}"
        log.log(self._log_level(), "phase", extra={"before": self.phase.value, "now": phase.value})
        self.phase = phase
        self._observer.on_phase(phase.value)

    def _log_level(self) -> int:
        return logging.DEBUG if self._quiet and not self._stopping else logging.INFO
