"""What states cost as keys become many: memory and pauses, look-ups, snapshots, CPU time per event. Without a broker.

    python -m benchmarks.state_scale [--keys 10000,1000000,10000000] [--rounds N] [--skip-events]

An LSTM of 64 units (512 bytes of state per key), keys of 12 bytes, batches of 4096; times are CPU times. A pause
is what the longest batch of new keys takes more than the usual one. Each count of keys and each way to keep them has a
process of its own, so that its memory can be told. The ways: a single dict, as before there were tables; the table of
dicts, which is used without the compiled codec; the compiled table. Ten million keys need 8 GB. Judges nothing.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stages import make_batches, make_stages_engine
from lstmstream import codec
from lstmstream.serve.key_table import Key, KeyTable
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.snapshot_file import BLOCK_STATES, Block, SnapshotFile, SnapshotHead, SnapshotWriter
from lstmstream.serve.state import StateStore
from lstmstream.serve.state_loader import StateLoader
from lstmstream.serve.state_records import state_columns

BATCH = 4096
HIDDEN = 64
DIGITS = 11  # of a key's name, after a letter
ROW_BYTES = 2 * 4 * HIDDEN + 5 * 8  # h and c; steps, last timestamp, last offset, failures, first unwritten change
SPREADS = {"uniform": 0.0, "Zipf 1.1": 1.1, "one key": None}


def names(start: int, stop: int) -> list[Key]:
    """Keys by number."""
    return [b"c%0*d" % (DIGITS, number) for number in range(start, stop)]


def memory_bytes() -> int:
    """What the process uses now."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no path of a person's
        return int(file.read().split()[1]) * resource.getpagesize()


def grow(keys: int) -> dict[str, float]:
    """One partition that each batch brings 4096 new keys to: memory, and how long the batches take."""
    store = StateStore(np.zeros(2 * HIDDEN, np.float32))
    store.open(0)
    before, times_s = memory_bytes(), []
    for start in range(0, keys, BATCH):
        new = names(start, min(keys, start + BATCH))
        partitions = np.zeros(len(new), np.int64)
        began = time.thread_time()
        states = store.gather(partitions, new)
        states.rows[:], states.steps[:] = 0.5, 1
        store.apply(states)
        store.commit()
        times_s.append(time.thread_time() - began)
    used = memory_bytes() - before
    gc_began = time.thread_time()
    gc.collect()
    gc_s = time.thread_time() - gc_began
    times_s.sort()
    per_key, row_and_key = used / keys, ROW_BYTES + 1 + DIGITS
    return {
        "bytes per key": per_key,
        "beside row + key": per_key / row_and_key,
        "counted": store.slabs[0].nbytes / keys,
        "usual ms": 1e3 * statistics.median(times_s),
        "longest - usual ms": 1e3 * (times_s[-1] - statistics.median(times_s)),
        "gc ms": 1e3 * gc_s,
    }


def look_up(keys: int) -> dict[str, float]:
    """Nanoseconds per look-up of a batch's keys, drawn uniformly and new objects, as a decoder makes them."""
    table, way = KeyTable(), os.environ["WAY"]
    plain: dict[Key, int] = {}
    pauses_s = []
    for start in range(0, keys, BATCH):
        new = names(start, min(keys, start + BATCH))
        began = time.thread_time()
        if way == "dict":
            plain.update(zip(new, range(start, start + len(new)), strict=True))
        else:
            table.add_all(new)
        pauses_s.append(time.thread_time() - began)
    random, times_s = np.random.default_rng(1), []
    for _ in range(300):
        chosen: list[Key] = [b"c%0*d" % (DIGITS, number) for number in random.integers(keys, size=BATCH).tolist()]
        began = time.thread_time()
        if way == "dict":
            find = plain.get
            np.array([find(key, -1) for key in chosen], np.int64)
        else:
            table.find_all(chosen)
        times_s.append(time.thread_time() - began)
    return {"ns": 1e9 * statistics.median(times_s) / BATCH, "longest ms": 1e3 * max(pauses_s)}


def events(keys: int, partitions: int, rounds: int) -> dict[str, float]:
    """CPU microseconds per event of the engine, all stages, with so many keys in memory."""
    engine = make_stages_engine(lambda _: nullcontext(), HIDDEN, partitions=partitions)
    for partition, slab in engine.scorer.states.slabs.items():
        for start in range(partition, keys, BATCH * partitions):
            numbers = range(start, min(keys, start + BATCH * partitions), partitions)
            _, _, rows = slab.find_or_add([b"c%0*d" % (DIGITS, number) for number in numbers])
            slab.rows.fill(rows, np.full(2 * HIDDEN, 0.5, np.float32))
            slab.steps[rows], slab.last_timestamp[rows], slab.failures[rows] = 1, 0, 0
    found = {}
    for spread, zipf in SPREADS.items():
        drawn_of = 1 if zipf is None else keys
        batches = make_batches(
            (rounds + 3) * BATCH, BATCH, drawn_of, zipf or 0.0, partitions=partitions, key_digits=DIGITS
        )
        times_s = []
        for batch in batches:
            began = time.process_time()
            engine.process(batch)
            engine.commit()
            times_s.append(time.process_time() - began)
        found[spread] = 1e6 * statistics.median(times_s[3:]) / BATCH
    return found


def snapshot(keys: int) -> dict[str, float]:
    """One partition, written to a file and loaded from it, which is in the page cache then; seconds by the clock."""
    head = SnapshotHead("", "states", "", "", 1, 0, 2 * HIDDEN, 0, 0, 0, ())
    rows = np.random.default_rng(1).random((BLOCK_STATES, 2 * HIDDEN), np.float32)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as executor:
        path, began = Path(folder) / "snapshot", time.perf_counter()
        writer = SnapshotWriter(path, head)
        for start in range(0, keys, BLOCK_STATES):
            new = names(start, min(keys, start + BLOCK_STATES))
            numbers = np.ones((5, len(new)), np.int64)
            writer.add(Block(new, state_columns(numbers, rows[: len(new)]), {}))
        writer.finish()
        write_s = time.perf_counter() - began
        partition = Partition(0, 1, StateStore(np.zeros(2 * HIDDEN, np.float32)))
        loader = StateLoader(partition, bytes(16), RestoreErrors("in", 0, "states", "group"))
        began, began_cpu, longest_s = time.perf_counter(), time.process_time(), 0.0
        with SnapshotFile(path, executor) as found:
            for block in found.blocks():
                block_began = time.perf_counter()
                loader.put(block.keys, block.columns)
                longest_s = max(longest_s, time.perf_counter() - block_began)
        load_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    assert len(partition.slab) == keys
    return {
        "keys/s written": keys / write_s,
        "keys/s loaded": keys / load_s,
        "CPU us/key loaded": 1e6 * cpu_s / keys,
        "longest block ms": 1e3 * longest_s,
    }


def in_process(way: str, work: Callable[..., dict[str, float]], *args: int) -> dict[str, float]:
    """`work` in a new process, with the compiled codec or without."""
    context = multiprocessing.get_context("spawn")
    os.environ |= {codec.VARIABLE: "compiled" if way == "compiled" else "pure", "WAY": way}
    with context.Pool(1) as pool:
        return pool.apply(work, args)


def print_row(title: str, values: dict[str, float]) -> None:
    """One line of a table."""
    print(f"| {title} | " + " | ".join(f"{value:,.2f}" for value in values.values()) + " |", flush=True)


def print_head(title: str, columns: Any) -> None:
    """The first lines of a table."""
    print(f"\n| {title} | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(list(columns)), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", default="10000,1000000,10000000")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--skip-events", action="store_true")
    args = parser.parse_args()
    counts = [int(float(text)) for text in args.keys.split(",")]
    tables = ["dicts"] if codec.load() is None else ["dicts", "compiled"]
    print_head(
        "keys, table: growth",
        ["B/key", "B/key over row + key", "state_bytes/key", "usual ms", "longest - usual", "gc ms"],
    )
    for count in counts:
        for way in tables:
            print_row(f"{count:,} {way}", in_process(way, grow, count))
    print_head("keys, table: look-ups", ["ns", "longest ms of 4096 new keys"])
    for count in counts:
        for way in ["dict", *tables]:
            print_row(f"{count:,} {way}", in_process(way, look_up, count))
    print_head(
        "keys, table: snapshot", ["keys/s written", "keys/s loaded", "CPU us per key loaded", "longest block ms"]
    )
    for count in counts:
        print_row(f"{count:,} {tables[-1]}", in_process(tables[-1], snapshot, count))
    if args.skip_events:
        return
    print_head("keys, partitions, table: CPU us per event", SPREADS)
    for count in counts:
        for partitions in (1, 64) if count == counts[-1] else (1, 4, 64):
            print_row(
                f"{count:,}, {partitions}, {tables[-1]}", in_process(tables[-1], events, count, partitions, args.rounds)
            )


if __name__ == "__main__":
    main()
