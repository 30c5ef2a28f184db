"""A day of keys that do not come back: memory and live records of the state topic over time. Without a broker.

    python -m benchmarks.churn [--keys 10000000] [--rule max_keys|ttl] [--max-keys N] [--ttl S] [--max-lateness S]

Every second event is of a new key, the others of one of the last 100,000, spread over 24 hours of simulated time. The
parts are those of the daemon: the model (an LSTM of 64 units in ONNX Runtime), the states, the plan of what each
transaction writes, the sweeper. The state topic is a dict that keeps the newest record of each key, as compaction
does, and of it only its size. Each rule has a process of its own. Judges nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.state_scale import memory_bytes
from lstmstream.config import Config
from lstmstream.records import Observations, RecordBatch
from lstmstream.serve.checkpoint import Checkpointer, StateTopic
from lstmstream.serve.expiry import INTERVAL_S, Sweeper
from lstmstream.serve.factory import expiry_of, load_step_model, make_engine
from lstmstream.serve.identity import state_identity
from lstmstream.serve.observers import Observers
from lstmstream.serve.partition import Partition, Partitions
from tests.models import random_model

DAY_S = 86_400.0
BATCH = 4096
RECENT = 100_000  # keys that may come back
HIDDEN = 64
LINES = 12


class Figures(NamedTuple):
    """At one moment."""

    hours: float
    distinct: int
    rss_mb: float
    states: int
    places: int  # in memory: states, and evicted keys whose record is not deleted yet
    live_records: int
    live_mb: float
    written: int  # records, since the beginning
    floor_lag: int
    minutes: float  # of real time


class CompactedTopic:
    """The newest record of each key."""

    def __init__(self) -> None:
        self.sizes: dict[bytes | None, int] = {}
        self.bytes = self.written = 0

    def take(self, batches: list[RecordBatch]) -> None:
        """One transaction."""
        for batch in batches:
            self.written += len(batch)
            for key, value in zip(batch.keys, batch.values, strict=True):
                self.bytes -= self.sizes.pop(key, 0)
                if value is not None:
                    self.sizes[key] = size = len(key or b"") + len(value)
                    self.bytes += size


class Churn:
    """One partition and its clock."""

    def __init__(self, state: dict[str, Any], late: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = random_model(Path(folder), hidden=HIDDEN, numbers=("amount",), elapsed=False)
            config = Config.model_validate(
                {
                    "name": "churn",
                    "model": str(model),
                    "kafka": {"bootstrap_servers": "nowhere:1"},
                    "input": {"topic": "in", **late},
                    "output": {"topic": "out"},
                    "state": state,
                }
            )
            _, step = load_step_model(config)
            self.scorer = make_engine(config, step).scorer
        self.now_s, self.offset, self.next_key, self.swept_s = 1.0, 0, 0, 0.0
        self.topic = CompactedTopic()
        self.random = np.random.default_rng(5)
        self.columns = len(step.card.features)
        partitions = Partitions()
        self.partition = Partition(0, 0, self.scorer.states)
        partitions.add(self.partition)
        self.partition.begin_states(0)
        self.partition.run(position=0, floor=0, now_s=0.0)
        expiry = expiry_of(config)
        self.checkpointer = Checkpointer(
            StateTopic("churn.state", "S", "I", 1),
            state_identity(config, step.card),
            partitions,
            interval_s=config.state.checkpoint_interval,
            clock=lambda: self.now_s,
            wall_s=lambda: self.now_s,
            expiry=expiry,
        )
        self.sweeper = Sweeper(expiry, partitions, Observers([]), lambda: self.now_s)

    def batch(self, took_s: float) -> None:
        """4096 events within so many seconds, in one transaction, as the daemon's committer makes it."""
        observations = self._observations(took_s)
        scored = self.scorer.score(observations)
        end = self.offset
        plan = self.checkpointer.plan(events=BATCH, changed=scored.changed, positions={0: end}, evicted=scored.evicted)
        self.topic.take(plan.records)
        self.checkpointer.on_commit(plan, scored.changed, {0: int(observations.timestamps[0])})
        self.scorer.commit()
        while self.swept_s <= self.now_s:  # the sweeper's slices in these seconds
            self.swept_s += INTERVAL_S
            if self.sweeper.due():
                self.sweeper.sweep()

    def _observations(self, took_s: float) -> Observations:
        new = np.arange(self.next_key, self.next_key + BATCH // 2)
        back = np.maximum(0, self.next_key - self.random.integers(1, RECENT, BATCH - len(new)))
        numbers = np.empty(BATCH, np.int64)
        numbers[0::2], numbers[1::2] = new, back
        self.next_key += len(new)
        offsets = np.arange(self.offset, self.offset + BATCH)
        self.offset += BATCH
        times = 1_750_000_000_000 + (1000 * (self.now_s + np.linspace(0, took_s, BATCH, endpoint=False))).astype(
            np.int64
        )
        self.now_s += took_s
        return Observations(
            np.arange(BATCH),
            np.zeros(BATCH, np.int64),
            offsets,
            [b"c%011d" % number for number in numbers.tolist()],
            times,
            self.random.random((BATCH, self.columns), np.float32),
            np.empty((BATCH, 0), np.int64),
        )

    def figures(self, began_s: float) -> Figures:
        """Now."""
        slab = self.partition.slab
        return Figures(
            self.now_s / 3600,
            self.next_key,
            memory_bytes() / 1e6,
            slab.key_count,
            len(slab),
            len(self.topic.sizes),
            self.topic.bytes / 1e6,
            self.topic.written,
            self.partition.floor_lag,
            (time.monotonic() - began_s) / 60,
        )


def run(state: dict[str, Any], late: dict[str, Any], keys: int) -> None:
    """A day with so many distinct keys."""
    churn, began_s = Churn(state, late), time.monotonic()
    print("| hours | distinct keys | RSS, MB | states | in memory | live records | MB | written | floor lag | min |")
    print("|" + " --- |" * len(Figures._fields), flush=True)
    batches = max(1, keys // (BATCH // 2))
    for number in range(batches):
        churn.batch(DAY_S / batches)
        if (number + 1) * LINES // batches > number * LINES // batches:
            print("| " + " | ".join(_shown(one) for one in churn.figures(began_s)) + " |", flush=True)


def _shown(figure: float) -> str:
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:,.1f}"


def main() -> None:
    """Print a table for each rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--rule", choices=["max_keys", "ttl", "both"], default="both")
    parser.add_argument("--max-keys", type=int, default=1_000_000)
    parser.add_argument("--ttl", type=int, default=3600, help="seconds")
    parser.add_argument("--max-lateness", type=int, default=600, help="seconds")
    args = parser.parse_args()
    rules: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "max_keys": ({"max_keys": args.max_keys}, {}),
        "ttl": ({"ttl": f"{args.ttl}s"}, {"max_lateness": f"{args.max_lateness}s"}),
    }
    context = multiprocessing.get_context("spawn")
    for rule, (state, late) in rules.items():
        if args.rule in (rule, "both"):
            print(f"\n{args.keys:,} keys in 24 h, {', '.join(f'{k}: {v}' for k, v in (state | late).items())}")
            process = context.Process(target=run, args=(state, late, args.keys))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
