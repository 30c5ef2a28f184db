"""Events of which the first are a history, in a file, and the others are in the topic."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lstmstream.transport.partitioner import partition_of
from tests.broker.harness import produce

NOW_MS = 1_700_000_000_000
PARTITIONS = 3
COLUMNS = ["--key", "id", "--timestamp", "ts"]
Event = dict[str, Any]


def events(count: int, *, keys: int = 25) -> list[Event]:
    """In the order of time, with some silences."""
    source, now_ms, found = random.Random(5), NOW_MS, []
    for n in range(count):
        now_ms += 5_000_000 if source.random() < 0.01 else source.choice([1, 700, 20_000])
        key = f"k{source.randrange(keys)}"
        found.append({"id": key, "ts": now_ms, "amount": round(source.uniform(-5, 50), 2), "n": n})
    return found


def to_topic(broker: str, topic: str, found: Sequence[Event]) -> None:
    """As their producer would send them."""
    produce(
        broker,
        topic,
        (
            (e["id"].encode(), json.dumps(e).encode(), e["ts"], partition_of(e["id"].encode(), PARTITIONS))
            for e in found
        ),
    )


def write_lines(path: Path, found: Sequence[Event]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(event) + "\n" for event in found))
    return path
