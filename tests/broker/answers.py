"""Events of real customers, what `lstmstream score` answers to them, and whether a stream's answers are the same.

The events are the card purchases of ../shared/fraud where that folder is and polars can read it, else the demo's
simulator makes some. Needs neither torch nor onnx.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from kafka.partitioner.default import murmur2
from numpy.typing import NDArray

from lstmstream.demo.simulate import transactions

ROOT = Path(__file__).resolve().parents[2]
FRAUD = ROOT.parent / "shared" / "fraud"
START_MS = int(datetime(2018, 4, 1, tzinfo=UTC).timestamp() * 1000)
SIMULATED = 1_200_000  # events at share 1, about as many as the real ones
KEY, TIME = "customer", "time"  # the events' fields
_SOURCE = b',"source":'


@dataclass(frozen=True)
class Events:
    """N events in the order of time, and where in the input topic each of them stands."""

    origin: str
    columns: dict[str, NDArray[Any]]  # [N] each: customer, terminal, amount, time in ms
    keys: list[bytes]
    values: list[bytes]
    times_ms: NDArray[np.int64]
    partitions: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def records(self) -> Iterator[tuple[bytes, bytes, int, int]]:
        """Key, value, timestamp and partition of each."""
        return zip(self.keys, self.values, self.times_ms.tolist(), self.partitions.tolist(), strict=True)

    def rows(self, partitions: int) -> list[NDArray[np.int64]]:
        """For each partition: the row of the event at each offset."""
        return [np.flatnonzero(self.partitions == number) for number in range(partitions)]


def load_events(share: float, *, partitions: int) -> Events:
    """All events of a `share` of the customers, each customer's whole sequence."""
    files = sorted(FRAUD.glob("*.parquet")) if importlib.util.find_spec("polars") else []
    columns = _real(files, share) if files else _simulated(share)
    keys = [key.encode() for key in columns[KEY].tolist()]
    number = {key: (murmur2(key) & 0x7FFFFFFF) % partitions for key in set(keys)}
    placed = np.array([number[key] for key in keys], dtype=np.int64)
    offsets = np.empty(len(keys), dtype=np.int64)
    for partition in range(partitions):
        rows = np.flatnonzero(placed == partition)
        offsets[rows] = np.arange(len(rows))
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return Events(
        origin=str(FRAUD.relative_to(ROOT.parent)) if files else "the demo's simulator",
        columns=columns,
        keys=keys,
        # Copies, since what orjson returns holds on to several kB each.
        values=[bytes(memoryview(orjson.dumps(dict(zip(columns, row, strict=True))))) for row in values],
        times_ms=columns[TIME],
        partitions=placed,
        offsets=offsets,
    )


def _real(files: Sequence[Path], share: float) -> dict[str, NDArray[Any]]:
    import polars as pl

    frame = (
        pl.scan_parquet(list(files))
        .sort("TX_TIME_SECONDS", maintain_order=True)
        .select(
            pl.col("CUSTOMER_ID").cast(pl.String).alias(KEY),
            pl.col("TERMINAL_ID").cast(pl.String).alias("terminal"),
            pl.col("TX_AMOUNT").alias("amount"),
            (START_MS + 1000 * pl.col("TX_TIME_SECONDS").cast(pl.Int64)).alias(TIME),
        )
        .collect()
    )
    customers = frame[KEY].unique().sort()
    chosen = customers.sample(max(1, round(share * len(customers))), seed=1)
    frame = frame.join(chosen.to_frame(), on=KEY, how="semi", maintain_order="left")
    return {name: frame[name].to_numpy() for name in frame.columns}


def _simulated(share: float) -> dict[str, NDArray[Any]]:
    days = 40
    made = transactions(customers=max(20, round(share * SIMULATED / days / 5)), days=days, seed=11)
    return {
        KEY: np.array([f"c{number}" for number in made.customer.tolist()]),
        "terminal": np.array([str(number) for number in made.terminal.tolist()]),
        "amount": np.asarray(made.amount),
        TIME: np.asarray(made.time_ms),
    }


def score_offline(config: Path, events: Events, folder: Path) -> list[bytes]:
    """What `lstmstream score` answers to the events in a JSONL file, by row, each up to its `source`."""
    data, out = folder / "events.jsonl", folder / "answers.jsonl"
    data.write_bytes(b"".join(value + b"\n" for value in events.values))
    columns = ["--key", KEY, "--timestamp", TIME, "--out", str(out)]
    command = [sys.executable, "-m", "lstmstream", "score", str(config), str(data), *columns]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"lstmstream score ended with code {done.returncode}: {done.stderr[-2000:]}"
    heads = []
    with out.open("rb") as lines:
        for row, line in enumerate(lines):
            head, source = parts(line.rstrip(b"\n"))
            assert source == {"file": str(data), "row": row}, f"row {row} of {out} says it is from {source}"
            heads.append(head)
    assert len(heads) == len(events), f"score answered {len(heads)} of {len(events)} events"
    return heads


def parts(answer: bytes) -> tuple[bytes, dict[str, Any]]:
    """An answer's bytes up to its `source`, and that."""
    head, _, rest = answer.partition(_SOURCE)
    return head, orjson.loads(rest.removesuffix(b"}"))


class Checker:
    """Takes the records of the output topic in their order and notes every difference from what they should be."""

    def __init__(self, events: Events, expected: Sequence[bytes], *, input_topic: str, partitions: int) -> None:
        self.problems: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.scores: NDArray[np.float32] = np.full(len(events), np.nan, dtype=np.float32)
        self._events, self._expected, self._input_topic = events, expected, input_topic
        self._rows = events.rows(partitions)
        self._times = events.times_ms.tolist()
        self._seen = np.zeros(len(events), dtype=np.int64)
        self._last: dict[bytes, int] = {}

    def take(self, records: Iterable[Any]) -> None:
        """Compare each record with the event that it says it answers."""
        for record in records:
            head, source = parts(record.value)
            partition, offset = source["partition"], source["offset"]
            if source["topic"] != self._input_topic or not 0 <= offset < len(self._rows[partition]):
                self._note("answers to no event", f"{source}")
                continue
            row = int(self._rows[partition][offset])
            key = self._events.keys[row]
            self._seen[row] += 1
            if head != self._expected[row]:
                self._note("not as `score` answers", f"{head!r}, should be {self._expected[row]!r}, at {source}")
            if self._last.get(key, -1) >= row:
                self._note("out of order within its key", f"row {row} after {self._last[key]}, key {key!r}")
            if (record.key, record.timestamp, record.partition) != (key, self._times[row], partition):
                self._note("wrong record key, time or partition", f"{record.key!r} {record.timestamp} at {source}")
            self._last[key] = row
            self.scores[row] = orjson.loads(head + b"}")["score"]

    def finish(self) -> dict[str, int]:
        """How many of each kind of problem, missing and doubled answers included; empty if all is right."""
        for what, wrong in (("without an answer", self._seen == 0), ("answered more than once", self._seen > 1)):
            if rows := np.flatnonzero(wrong).tolist():
                self._note(what, f"rows {rows[:5]}", len(rows))
        return dict(self.problems)

    def report(self) -> str:
        """The problems, one line each with an example."""
        return "\n".join(f"{count} {what}, e.g. {self.examples[what]}" for what, count in self.problems.items())

    def _note(self, what: str, example: str, count: int = 1) -> None:
        self.problems[what] += count
        self.examples.setdefault(what, example)


class Digest:
    """Which records a reader saw in each partition, in what order, in a few bytes."""

    def __init__(self) -> None:
        self._hashes: dict[int, Any] = {}
        self._counts: Counter[int] = Counter()

    def take(self, records: Iterable[Any]) -> None:
        """Add records as they come."""
        for record in records:
            running = self._hashes.setdefault(record.partition, blake2b())
            running.update(b"%d %d " % (record.offset, len(record.value)))
            running.update(record.value)
            self._counts[record.partition] += 1

    def seen(self) -> dict[int, tuple[int, str]]:
        """Count and hash by partition: equal for readers that saw the same."""
        return {p: (self._counts[p], running.hexdigest()) for p, running in sorted(self._hashes.items())}
