"""A part of the events of a file by a hash of their keys, so that several machines can share a backfill.

Each row is in one shard, and all rows of a key are in the same one. The states of different keys do not depend on each
other, so the predictions of all shards together are those of one run over the whole file, in another order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from lstmstream.config import Config
from lstmstream.errors import CannotServe
from lstmstream.model import Card
from lstmstream.records import RecordBatch
from lstmstream.serve.decode import Decoder
from lstmstream.transport.partitioner import partition_of

_FORM = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` shards; `number` counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`3/16`. Raises CannotServe."""
        found = _FORM.fullmatch(text)
        number, count = (0, 0) if found is None else map(int, found.groups())
        if not 1 <= number <= count:
            raise CannotServe(f"--shard {text}: is not NUMBER/COUNT with numbers from 1 to the count; for example 3/16")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, key: bytes | None) -> bool:
        """Whether rows of the key are in it. A topic of `count` partitions has them in partition `number` - 1."""
        return partition_of(key, self.count) == self.number - 1


class ShardFilter:
    """Leaves the rows of one shard. Rows whose key cannot be read are dead letters, and are in the first shard."""

    def __init__(self, shard: Shard, configs: Sequence[Config], card: Card) -> None:
        """`configs`: of all stages, with the key that counts; `card`: of the first one's model. Raises CannotServe."""
        keys = [config.input.key for config in configs]
        if keys[0] is None:
            raise CannotServe(f"--shard {shard}: all events belong to one key, so they cannot be split; leave it out")
        others = sorted({str(key) for key in keys if key != keys[0]})
        if others:
            raise CannotServe(
                f"--shard {shard}: a later stage has another key ({', '.join(others)}) than the first ({keys[0]}), so"
                " its states depend on the events of all shards; give --stage NAME to score one stage"
            )
        if any(config.input.max_lateness is not None for config in configs):
            raise CannotServe(
                f"--shard {shard}: input.max_lateness compares an event with those of all keys, which are in other"
                " shards too; score the whole file, or remove it"
            )
        if any(config.state.max_keys is not None for config in configs):
            raise CannotServe(
                f"--shard {shard}: state.max_keys counts the keys of all shards; score the whole file, or remove it"
            )
        self.shard = shard
        self.rows = 0  # of the shard, so far
        self._decoder = Decoder(replace(card, features=()), key=keys[0], max_bytes=configs[0].input.max_bytes)

    def select(self, records: RecordBatch) -> RecordBatch:
        """The rows of the shard; an offset stays the row's number in the whole file."""
        timed = replace(records, timestamps=np.zeros(len(records), dtype=np.int64))  # a bad time is for later
        found = self._decoder.decode(timed).observations
        keys: list[bytes | None] = [None] * len(records)
        for row, key in zip(found.index.tolist(), found.keys, strict=True):
            keys[row] = key
        wanted = {key: self.shard.has(key) for key in set(keys)}
        chosen = records.take(np.flatnonzero([wanted[key] for key in keys]))
        self.rows += len(chosen)
        return chosen
