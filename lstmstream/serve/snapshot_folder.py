"""The snapshots in `state.dir`: which of them a restore may use, and which are removed (docs/snapshots.md).

`<state.dir>/<state topic>/<partition>-<identity>-<time>-<random>.snapshot`. Names only help to find them; what is
inside counts. Several processes may share the folder: names are random, files come into being by a rename, and whoever
has written one removes the older ones of its partition and identity.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from lstmstream.serve.checkpoint import StateTopic
from lstmstream.serve.clock import Clock
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.snapshot_file import SnapshotFile, SnapshotHead, SnapshotRefused
from lstmstream.transport.ports import Admin, TopicInfo

KEPT = 2  # of each partition and identity
LEFTOVER_S = 3600.0  # files of that age that nobody finished
ABANDONED_S = 7 * 86400.0  # snapshots that nobody renews: of other identities, and of partitions that are elsewhere now
CLOCKS_APART_MS = 60_000
DEFAULT_TOMBSTONES_MS = 24 * 3600 * 1000  # Kafka's delete.retention.ms
_NAME = re.compile(r"(\d+)-([0-9a-f]{32})-(\d+)-[0-9a-f]{8}\.snapshot")

log = logging.getLogger(__name__)


def tombstones_ms(topic: TopicInfo) -> int | None:
    """How long a topic keeps tombstones; None where its settings may not be read."""
    return None if topic.settings_denied else int(topic.settings.get("delete.retention.ms", DEFAULT_TOMBSTONES_MS))


class SnapshotFolder:
    """The snapshots of one state topic, for the states of one identity."""

    def __init__(
        self,
        folder: Path,
        admin: Admin,
        topic: StateTopic,
        digest: bytes,
        floats: int,
        clock: Clock,
        executor: Executor | None,
    ) -> None:
        """`folder`: `state.dir`; `digest` and `floats`: whose states, and how large their rows are.

        `executor` reads the next block of a snapshot while one is in use.
        """
        self.path = folder / topic.name
        self.topic = topic
        self.digest = digest
        self.floats = floats
        self._admin = admin
        self._clock = clock
        self._executor = executor
        self._failures = FailureLog(log, clock.monotonic_s)
        self._refused: set[Path] = set()  # said already

    def open(self, partition: int, beginning: int, end: int) -> SnapshotFile | None:
        """The newest sound snapshot of a partition whose state topic has these bounds. Raises TryAgain.

        A block may still turn out to be damaged: `refuse` it then, and ask again.
        """
        paths = list(self._candidates(partition))
        tombstones_ms = self.tombstones_ms() if paths else None
        for path in paths:
            try:
                found = SnapshotFile(path, self._executor)
            except (SnapshotRefused, OSError) as error:
                self.refuse(path, error)
                continue
            reason = self._other_source(found.head, partition) or self._outside(found.head, beginning, end)
            reason = reason or self._too_old(found.head, tombstones_ms)
            if reason is None:
                return found
            found.close()
            self.refuse(path, reason)
        return None

    def refuse(self, path: Path, reason: object) -> None:
        """Not to be used again. Says it once."""
        if path not in self._refused:
            self._refused.add(path)
            log.warning("the snapshot %s is not used: %s", path, reason)

    def tombstones_ms(self) -> int | None:
        """How long the state topic keeps tombstones; None where that is not known. Raises TryAgain, CannotServe."""
        found = self._admin.describe([self.topic.name]).get(self.topic.name)
        return None if found is None else tombstones_ms(found)

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC."""
        return int(self._clock.wall_s() * 1000)

    def new_name(self, partition: int, taken_ms: int) -> str:
        """For a snapshot; no other process takes the same."""
        return f"{partition}-{self.digest.hex()}-{taken_ms}-{secrets.token_hex(4)}.snapshot"

    def remove_old(self, newest: Path) -> None:
        """Keep this one and the one before; clear away what nobody finished, and what nobody uses any more."""
        now_s = self._clock.wall_s()
        mine = _NAME.fullmatch(newest.name)
        assert mine is not None
        others = []
        try:
            for path, match in self._files():
                if path != newest and match.group(1, 2) == mine.group(1, 2):
                    others.append((int(match[3]), path))
                elif now_s - path.stat().st_mtime > ABANDONED_S:
                    path.unlink(missing_ok=True)
            for _, path in sorted(others, reverse=True)[KEPT - 1 :]:
                path.unlink(missing_ok=True)
            for path in self.path.glob(".*.tmp"):
                if now_s - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink(missing_ok=True)
        except OSError as error:
            self._failures.note("old snapshots could not be removed from state.dir", error)

    def _candidates(self, partition: int) -> Iterator[Path]:
        """Of a partition and our identity, newest first, without those that were refused."""
        wanted = (str(partition), self.digest.hex())
        found = [(int(match[3]), path) for path, match in self._files() if (match[1], match[2]) == wanted]
        return (path for _, path in sorted(found, reverse=True) if path not in self._refused)

    def _files(self) -> Iterator[tuple[Path, re.Match[str]]]:
        try:
            paths = list(self.path.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            self._failures.note("state.dir cannot be read, so no snapshot is used", error)
            return
        for path in paths:
            if (match := _NAME.fullmatch(path.name)) is not None:
                yield path, match

    # -- why a snapshot cannot be used; None where it can

    def _other_source(self, head: SnapshotHead, partition: int) -> str | None:
        topic = self.topic
        expected = (
            ("identity", head.identity, self.digest.hex()),
            ("state topic", head.state_topic, topic.name),
            ("id of the state topic", head.state_topic_id, topic.topic_id),
            ("id of the input topic", head.input_topic_id, topic.input_topic_id),
            ("number of partitions", head.partitions, topic.partitions),
            ("partition", head.partition, partition),
            ("size of a state", head.floats, self.floats),
        )
        for what, found, wanted in expected:
            if found != wanted:
                return f"its {what} is {found}, and should be {wanted}"
        return None

    def _outside(self, head: SnapshotHead, beginning: int, end: int) -> str | None:
        if head.offset > end:
            return f"it is newer than the state topic: its offset is {head.offset}, and the topic ends at {end}"
        if head.offset < beginning:
            return f"records after its offset {head.offset} were deleted: the state topic begins at {beginning}"
        return None

    def _too_old(self, head: SnapshotHead, tombstones_ms: int | None) -> str | None:
        """Of a key that was deleted after the snapshot only a tombstone tells, and compaction takes that away later.

        Half of the time is left for a restore to get there.
        """
        if tombstones_ms is None:
            return "delete.retention.ms of the state topic is not known: DESCRIBE_CONFIGS on it is not allowed"
        age_ms, kept_ms = self.now_ms() - head.taken_ms, min(tombstones_ms, head.tombstones_ms)
        if age_ms < -CLOCKS_APART_MS:
            return f"it was taken {-age_ms / 1000:.0f} s in the future, by this machine's clock"
        if age_ms >= kept_ms / 2:
            return (
                f"it is {age_ms / 1000:.0f} s old, more than half of the state topic's delete.retention.ms ({kept_ms}):"
                " it may have missed that a key was deleted"
            )
        return None
