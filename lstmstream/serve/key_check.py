"""Whether the events of a key come in one partition: others decide that, and a state per partition is wrong without.

Looks at what was committed, in bounded time and memory: a few of the keys that each batch changed are looked up in the
other partitions of this member. What the partitions of other members hold cannot be seen from here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lstmstream.serve.checkpoint import CheckpointPlan
from lstmstream.serve.engine import Result
from lstmstream.serve.observers import Observer
from lstmstream.serve.partition import Partitions

log = logging.getLogger(__name__)

LOOK_UPS = 512  # per batch
WARN_INTERVAL_S = 3600.0
MAX_REMEMBERED = 10_000  # keys that were counted; from then on no more are


class _Twice(NamedTuple):
    """A key that has a state in two partitions, by what may be logged of it."""

    partition: int
    offset: int
    other: int


class KeyCheck(Observer):
    """Looks at each batch that is committed, and tells another observer. `input_partitions`: of the whole topic."""

    def __init__(
        self,
        partitions: Partitions,
        observer: Observer,
        *,
        topic: str,
        key_field: str | None,
        input_partitions: int,
        clock: Callable[[], float],
    ) -> None:
        self._partitions = partitions
        self._observer = observer
        self._topic = topic
        self._key_field = key_field
        self._input_partitions = input_partitions
        self._clock = clock
        self._known: set[bytes] = set()  # keys that were counted
        self._without_key = 0
        self._next_warning_s = {"twice": -np.inf, "without": -np.inf}
        self._turn = 0  # so that each batch's look-ups begin at another of its rows

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """See Observer."""
        if self._key_field is None:
            self._count_without_key(result)
        if len(self._partitions) > 1 and len(self._known) < MAX_REMEMBERED:
            self._look_for_twins(result)

    def _count_without_key(self, result: Result) -> None:
        count = result.records.keys.count(None)
        if not count:
            return
        self._without_key += count
        self._observer.on_records_without_key(count)
        if self._may_warn("without"):
            number = result.records.keys.index(None)
            log.warning(
                "records without a key share one state per partition; give the records a key, or set input.key to a"
                " field",
                extra={
                    "records": self._without_key,
                    "topic": self._topic,
                    "partitions": self._input_partitions,
                    "partition": int(result.records.partitions[number]),
                    "offset": int(result.records.offsets[number]),
                },
            )

    def _look_for_twins(self, result: Result) -> None:
        found = list(self._twins(result))
        if not found:
            return
        self._observer.on_keys_in_several_partitions(len(found))
        if self._may_warn("twice"):
            log.warning(
                "events of one key arrive in several partitions, and each partition has its own state for it. All"
                " producers must partition topic %r by %s, with the same partitioner",
                self._topic,
                "the record key" if self._key_field is None else f"the field {self._key_field!r}",
                extra={
                    "keys": len(self._known),
                    "partition": found[0].partition,
                    "offset": found[0].offset,
                    "other_partition": found[0].other,
                },
            )

    def _twins(self, result: Result) -> Iterator[_Twice]:
        """Keys of the batch that have a state in another partition too, and were not counted yet."""
        self._turn += 1
        slabs = {partition.number: partition.slab for partition in self._partitions}
        changed = {number: rows for number, rows in result.changed.items() if number in slabs and len(rows.rows)}
        share = max(1, LOOK_UPS // max(1, len(slabs) * len(changed)))
        for number, (rows, offsets) in changed.items():
            start = self._turn * share % len(rows)
            chosen = np.unique(np.arange(start, start + min(share, len(rows))) % len(rows))
            keys = slabs[number].index.keys_at(rows[chosen])
            other_of = np.full(len(keys), -1)
            for other, slab in reversed(slabs.items()):
                if other != number:
                    other_of[slab.index.find_all(keys)[0] >= 0] = other
            for at in np.flatnonzero(other_of >= 0).tolist():
                key = keys[at]
                if key is not None and key not in self._known and len(self._known) < MAX_REMEMBERED:
                    self._known.add(key)
                    yield _Twice(number, int(offsets[chosen[at]]), int(other_of[at]))

    def _may_warn(self, about: str) -> bool:
        now_s = self._clock()
        if now_s < self._next_warning_s[about]:
            return False
        self._next_warning_s[about] = now_s + WARN_INTERVAL_S
        return True
