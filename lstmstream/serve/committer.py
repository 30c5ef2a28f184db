"""Transactions: the only caller of the transport's commit, and the only judge of one whose outcome is not known.

1. `submit` plans which states are due and hands outputs, states and offsets to the transport, with a nonce. With
   `overlap` it returns at once; the next batch may be polled, decoded and stepped meanwhile, and `wait` comes before
   anything else: before the next transaction, a rebalance, a restore.
2. It went through: the engine keeps the states, the checkpointer notes what is clean and dirty, observers are told.
3. It failed: its outcome is not known. The transaction stays *pending* until `resolve` is given the group's committed
   offsets: one of its partitions shows the nonce, or the batch is rolled back and will be done again, in parts:
   what failed as a whole may have been too slow, or hold one record that a topic refuses (refusals.py). A batch that
   was stepped meanwhile is rolled back first, whatever the outcome: it is read again.

Offsets alone cannot tell: an idle checkpoint commits the present ones again, and after a rebalance another member may
commit the very same ones.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from typing import NamedTuple

from lstmstream.errors import OutcomeUnknown, RecordRefused, TryAgain
from lstmstream.records import RecordBatch
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import WRITES_PER_TRANSACTION_ON_SHUTDOWN, Checkpointer, CheckpointPlan
from lstmstream.serve.engine import Engine, Result
from lstmstream.serve.observers import Observer
from lstmstream.serve.refusals import Refusals
from lstmstream.serve.scorer import Timer
from lstmstream.transport.ports import CommittedOffset, Membership, Transport

COMMIT_TIMEOUT_S = 12.0  # the broker aborts a transaction after 10 s
INITIAL_COMMIT_TIMEOUT_S = 10.0
LOOP_S = 0.25  # how often the loop shows that it is alive while it waits
NONCE_PREFIX = "lstmstream:"
SEEDING_PREFIX = f"{NONCE_PREFIX}seeding:"  # while `lstmstream state import | build` writes states


def is_ours(metadata: str) -> bool:
    """Whether an offset with this metadata was committed by lstmstream, by this process or another one."""
    return metadata.startswith(NONCE_PREFIX)


def is_unfinished_seed(metadata: str) -> bool:
    """Whether an offset with this metadata waits for states that `lstmstream state import | build` is to write."""
    return metadata.startswith(SEEDING_PREFIX)


def input_partitions(metadata: str) -> int | None:
    """How many partitions the input had when an offset was committed; None where its metadata does not say."""
    found = re.fullmatch(rf"{NONCE_PREFIX}.*:of(\d+)", metadata)
    return None if found is None else int(found[1])


class PendingTransaction(NamedTuple):
    """A transaction whose outcome is not known yet."""

    result: Result | None  # None: no batch belongs to it
    plan: CheckpointPlan
    nonce: str

    def was_committed(self, committed: Mapping[int, CommittedOffset]) -> bool:
        """Whether one of its partitions shows its nonce.

        Where none does, it was aborted; or every partition was taken over and committed by other members since, and
        then there is nothing left here to keep.
        """
        return any(
            partition in committed and committed[partition].metadata == self.nonce for partition in self.plan.offsets
        )


class Committer:
    """One transaction at a time."""

    def __init__(
        self,
        transport: Transport,
        engine: Engine,
        checkpointer: Checkpointer,
        observer: Observer,
        timer: Timer,
        clock: Callable[[], float],
        *,
        refusals: Refusals,
        batch_limit: BatchLimit,
        timeout_s: float = COMMIT_TIMEOUT_S,
        background: Executor | None = None,
    ) -> None:
        """`batch_limit` is halved by what fails. `timeout_s` of one transaction: more than the broker gives it.

        `background` runs the transport's commit with `overlap`; without one, nothing overlaps.
        """
        self._refusals = refusals
        self._batch_limit = batch_limit
        self._write_limit = BatchLimit(WRITES_PER_TRANSACTION_ON_SHUTDOWN)
        self._background = background
        self._timeout_s = timeout_s
        self._transport = transport
        self._engine = engine
        self._checkpointer = checkpointer
        self._observer = observer
        self._timer = timer
        self._clock = clock
        self._instance = uuid.uuid4().hex
        self._sequence = 0
        self._running: Future[float] | None = None  # the clock's time at the end of the transaction
        self._began_s = 0.0
        self._outcome_unknown = False  # of the pending transaction: it was about to be committed
        self.pending: PendingTransaction | None = None

    @property
    def in_background(self) -> bool:
        """Whether a transaction is open beside the loop; it is `pending` too."""
        return self._running is not None

    @property
    def is_open(self) -> bool:
        """Whether a transaction in the background has not come to its end yet. The next one must wait for that."""
        return self._running is not None and not self._running.done()

    def submit(
        self,
        result: Result,
        membership: Membership,
        positions: Mapping[int, int] | None = None,
        *,
        flush: bool = False,
        overlap: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Commit a batch with the states that are due, once the end of the transaction before is known.

        Raises TryAgain (then a transaction is pending), OwnershipLost, Fatal; with `overlap`, the next `wait` does.
        `positions`: where the client reads on after the batch, which may be behind control records that follow it.
        After a failure the next batch should be smaller: see BatchLimit.
        """
        self.wait()
        read_on = {} if positions is None else positions
        plan = self._checkpointer.plan(
            events=len(result.records),
            changed=result.changed,
            positions={p: max(at, read_on.get(p, 0)) for p, at in result.records.next_offsets().items()},
            flush=flush,
            max_writes=self._write_limit.now,
            evicted=result.evicted,
        )
        commit = self._prepare(result, plan, membership, self._timeout_s if timeout_s is None else timeout_s)
        if overlap and self._background is not None:
            self._running = self._background.submit(commit)
        else:
            self._finish(commit)

    def submit_plan(self, plan: CheckpointPlan, membership: Membership) -> None:
        """Commit a plan without a batch: where a partition's states begin. Raises as `submit` does."""
        self.wait()
        self._finish(self._prepare(None, plan, membership, INITIAL_COMMIT_TIMEOUT_S))

    def wait(self) -> None:
        """Until the end of the transaction in the background, if there is one. Raises as `submit` does."""
        running, self._running = self._running, None
        if running is not None:
            self._finish(lambda: self._wait_for(running))

    def looks_aborted(self, committed: Mapping[int, CommittedOffset]) -> bool:
        """Whether the group's offsets show nothing of a pending transaction that may have been committed.

        Then they should be asked for once more, a little later: a coordinator that has just taken over answers without
        what its high watermark has not passed yet.
        """
        return self._outcome_unknown and self.pending is not None and not self.pending.was_committed(committed)

    def resolve(self, committed: Mapping[int, CommittedOffset]) -> None:
        """Learn the outcome of the pending transaction from the group's offsets, asked for after `recover`."""
        assert self._running is None, "the transaction is still open"
        pending, self.pending = self.pending, None
        self._outcome_unknown = False
        batches = 0 if pending is None or pending.result is None else 1
        while self._engine.in_flight > batches:  # batches that never came to be submitted
            self._engine.rollback()
        if pending is None:
            return
        if pending.was_committed(committed):
            self._on_commit(pending, None)
        elif pending.result is not None:
            self._engine.rollback()
            self._observer.on_abort()

    def pending_partitions(self) -> set[int]:
        """Those whose offsets tell the outcome."""
        return set() if self.pending is None else set(self.pending.plan.offsets)

    def pending_offset(self, partition: int) -> int:
        """Where the partition's events go on after the pending transaction; 0 where it has none of them."""
        return 0 if self.pending is None else self.pending.plan.offsets.get(partition, 0)

    def pending_events(self) -> int:
        """Events of the pending transaction."""
        return 0 if self.pending is None or self.pending.result is None else len(self.pending.result.records)

    def _prepare(
        self, result: Result | None, plan: CheckpointPlan, membership: Membership, timeout_s: float
    ) -> Callable[[], float]:
        """What commits it and returns the clock's time; from now on it is pending."""
        assert self.pending is None, "the last transaction's outcome is not known"
        self._sequence += 1
        partitions = self._checkpointer.topic.partitions
        nonce = f"{NONCE_PREFIX}{self._instance}:{self._sequence}:of{partitions}"
        self.pending = PendingTransaction(result, plan, nonce)
        outputs: list[RecordBatch] = [] if result is None else result.outputs.batches()
        self._began_s = self._clock()

        def commit() -> float:
            self._transport.commit(
                outputs, plan.records, plan.offsets, nonce=nonce, membership=membership, timeout_s=timeout_s
            )
            return self._clock()

        return commit

    def _wait_for(self, running: Future[float]) -> float:
        while True:
            try:
                return running.result(LOOP_S)
            except TimeoutError:
                if running.done():
                    raise
                self._observer.on_loop()

    def _finish(self, end: Callable[[], float]) -> None:
        """Learn the end of the pending transaction from what `end` returns or raises."""
        assert self.pending is not None
        result, plan, _ = pending = self.pending
        events = 0 if result is None else len(result.records)
        writes = 0 if result is None else sum(map(len, plan.written.values()))
        try:
            with self._timer("commit"):
                ended_s = end()
        except RecordRefused as error:
            self._refusals.note(result, error)
            self._batch_limit.on_refused(events)
            raise
        except TryAgain as error:
            self._outcome_unknown = isinstance(error, OutcomeUnknown)
            took_s = self._clock() - self._began_s
            self._batch_limit.on_failure(events, took_s)
            self._write_limit.on_failure(writes, took_s)
            raise
        self.pending = None
        self._on_commit(pending, ended_s - self._began_s)
        if events:
            self._batch_limit.on_commit()
        if writes:
            self._write_limit.on_commit()

    def _on_commit(self, pending: PendingTransaction, duration_s: float | None) -> None:
        result, plan, _ = pending
        if result is None:
            return  # its restore goes on, or starts again and finds the floor
        self._checkpointer.on_commit(plan, result.changed, result.records.min_timestamp_ms())
        # Behind it: what the state topic has no record of is forgotten.
        self._engine.commit()
        self._refusals.on_commit(plan.offsets)
        self._observer.on_commit(result, plan, duration_s)
