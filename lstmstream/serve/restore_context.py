"""What the restores of a daemon share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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
    start: str  # earliest | latest, for a group that has no offset
    on_model_change: str  # fail | reset | replay
    replay_s: float  # how far back in the input
    on_foreign_commit: str  # fail | accept
    clock: Callable[[], float]
    batch_limit: BatchLimit
    warned: set[str]  # what was said once and holds for all partitions
    snapshots: SnapshotFolder | None = None  # of `state.dir`
    standbys: Standbys | None = None  # of `state.standby`
