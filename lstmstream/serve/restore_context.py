"""What the restores of a daemon share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lstmstream.config import Config
from lstmstream.config.types import start_ms
from lstmstream.serve.batch_limit import BatchLimit
from lstmstream.serve.checkpoint import Checkpointer, CheckpointPlan
from lstmstream.serve.engine import Engine
from lstmstream.serve.snapshot_folder import SnapshotFolder
from lstmstream.serve.standby import Standbys
from lstmstream.transport.ports import Membership, Transport


class RestoreContext(NamedTuple):
    """The same for all of them."""

    transport: Transport
    engine: Engine
    checkpointer: Checkpointer
    commit: Callable[[CheckpointPlan, Membership], None]  # of a plan without a batch; raises as Transport.commit
    input_topic: str
    group: str
    start: str | int  # of a group that has no offset: earliest | latest, or milliseconds since 1970
    on_model_change: str  # fail | reset | replay
    replay_s: float  # how far back in the input
    on_foreign_commit: str  # fail | accept
    clock: Callable[[], float]
    batch_limit: BatchLimit
    warned: set[str]  # what was said once and holds for all partitions
    snapshots: SnapshotFolder | None = None  # of `state.dir`
    standbys: Standbys | None = None  # of `state.standby`

    def first_offset(self, partition: int, beginning: int, end: int) -> int:
        """Of a group that has no offset, by `start`. Raises TryAgain."""
        if isinstance(self.start, str):
            return beginning if self.start == "earliest" else end
        found = self.transport.offset_for_time(self.input_topic, partition, self.start)
        return end if found is None else max(found, beginning)


def start_of(config: Config, now_s: float) -> str | int:
    """What RestoreContext takes of `input.start`; `now_s` since 1970."""
    moment_ms = start_ms(config.input.start, now_s)
    return config.input.start if moment_ms is None else moment_ms
