"""The restores of this member: several at once, each in slices, so that it stays in its group meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lstmstream.errors import SchemaRegistryDown, TryAgain
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partition, PartitionPhase, Partitions
from lstmstream.serve.restore import Restore, Restored
from lstmstream.serve.restore_context import RestoreContext
from lstmstream.serve.restore_progress import RestoreProgress
from lstmstream.transport.ports import Membership

SLICE_S = 1.0  # of each round of the loop, for all restores together
MAX_PARALLEL = 3  # while one is computed, the others' records come; the first partition should go live early
FAILURES_BEFORE_RECOVERY = 5  # of the transport


class Restores:
    """Begins restores and works on them."""

    def __init__(
        self, context: RestoreContext, partitions: Partitions, observer: Observer, failures: FailureLog
    ) -> None:
        self._context = context
        self._partitions = partitions
        self._observer = observer
        self._failures = failures
        self._progress = RestoreProgress(context.clock)
        self._answered: dict[int, int] = {}  # positions of partitions that were closed, by number

    def begin(self, number: int, epoch: int) -> None:
        """Add the partition, RESTORING."""
        partition = Partition(number, epoch, self._context.engine.scorer.states)
        partition.restore = Restore(partition, self._context, answered=self._answered.get(number, -1))
        self._partitions.add(partition)

    def note_closed(self, partition: Partition) -> None:
        """How far this member has answered it: when it comes back, its floor record may say less."""
        if partition.phase is PartitionPhase.RUNNING:
            self._answered[partition.number] = partition.position

    def advance(self, membership: Membership, in_doubt: Callable[[], bool]) -> Iterator[Restored]:
        """A slice of work for some of them; what was done, as partitions begin to run.

        `in_doubt`: whether the outcome of a transaction is not known, such as of one that a restore has begun.
        Raises TryAgain then, or where a restore failed several times: the transport must recover first. Raises
        CannotServe, Fatal, OwnershipLost as Restore.advance does.
        """
        now_s = self._context.clock()
        active = [r for r in self._partitions.restoring() if r.retry_at_s <= now_s][:MAX_PARALLEL]
        for restore in active:
            try:
                restored = restore.advance(membership, SLICE_S / len(active))
            except TryAgain as error:
                restore.note_failure()
                recover = restore.failures % FAILURES_BEFORE_RECOVERY == 0 and not isinstance(error, SchemaRegistryDown)
                if in_doubt() or recover:
                    raise
                self._failures.note(f"restoring partition {restore.partition.number} failed, trying again", error)
                continue
            self._observer.on_loop()
            if restored is not None:
                self._progress.on_restored(restored)
                yield restored

    def text(self) -> str:
        """What is left, in words for /readyz. Logs it every few seconds."""
        return self._progress.text(self._partitions.restoring())

    def on_all_restored(self) -> None:
        """Nothing is left to restore."""
        self._progress.on_all_restored()
