"""Which events a model learned from, as far as its card can say: a time range and hashes of keys for each split.

`lstmstream train` writes the records; `evaluate` and `train --init` ask how many of their events they cover. Of many
keys the card has those with the smallest hashes, so that the same keys can be picked out of other data.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lstmstream.evaluation.alignment import key_index
from lstmstream.formats.timestamps import format_iso, timestamp_ms
from lstmstream.history.events import Events
from lstmstream.records import Bools, Ints

MAX_KEYS = 4096  # whose hashes the card has, for each split


class Overlap(NamedTuple):
    """The share of events that lie in the training data."""

    share: float
    at_most: bool  # whether it counts every key as known, because none of them is one that the card can tell

    def __str__(self) -> str:
        percent = f"{self.share:.1%}" if self.share < 0.1 else f"{self.share:.0%}"
        return f"up to {percent}" if self.at_most else percent


def training_record(split: str, events: Events, rows: Ints) -> dict[str, Any]:
    """The record of the ascending rows of one split, as JSON values."""
    hashes = np.sort(_hashes(events, np.unique(key_index(events, rows))))
    times = np.asarray(events.timestamp[rows])
    return {
        "split": split,
        "from": format_iso(int(times.min())) if events.timed else None,
        "to": format_iso(int(times.max())) if events.timed else None,
        "keys": len(hashes),
        "key_hashes": base64.b64encode(hashes[:MAX_KEYS].astype("<u4").tobytes()).decode(),
    }


def overlap(records: Sequence[dict[str, Any]], events: Events, rows: Ints) -> Overlap | None:
    """How many of the rows [n] lie in the time range of a record and have one of its keys; None without records."""
    if not records or not len(rows):
        return None
    known = [np.frombuffer(base64.b64decode(record["key_hashes"]), "<u4") for record in records]
    # keys with a larger hash than this may be missing from a record that has the smallest hashes only
    limit = min(
        (int(hashes[-1]) for hashes, record in zip(known, records, strict=True) if len(hashes) < record["keys"]),
        default=2**32,
    )
    keys, of_row = np.unique(key_index(events, rows), return_inverse=True)
    key_hashes = _hashes(events, keys)
    can_tell = (key_hashes <= limit)[of_row]
    at_most = not can_tell.any()
    times = np.asarray(events.timestamp[rows])
    inside: Bools = np.zeros(len(rows), np.bool_)
    for record, hashes in zip(records, known, strict=True):
        in_range: Bools = np.ones(len(rows), np.bool_)
        if record["from"] is not None and events.timed:
            begin, end = (timestamp_ms(record[name], name) for name in ("from", "to"))
            in_range = (times >= begin) & (times <= end)
        inside |= in_range if at_most else in_range & np.isin(key_hashes, hashes)[of_row]
    return Overlap(float(inside.mean() if at_most else inside[can_tell].mean()), at_most)


def _hashes(events: Events, keys: Ints) -> Ints:
    """[n] 32 bits for the key of each index."""
    digests = (hashlib.blake2b(events.keys[key].encode(), digest_size=4).digest() for key in keys.tolist())
    return np.frombuffer(b"".join(digests), "<u4").astype(np.int64)
