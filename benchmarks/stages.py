"""CPU microseconds per event of each stage of the engine, without a broker: decode, gather, step, apply, encode.

    python -m benchmarks.stages [--events N] [--batch N] [--keys N] [--zipf A] [--hidden H] [--layers L]

JSON events of 161 bytes with 7 numbers and a category, keyed by a field, with ISO 8601 times. `--states` also packs the
state of every key that changed, as a checkpoint that writes all of them would. The last lines are what measuring the
stages costs (`stage_seconds`), and what ONNX Runtime alone takes for a row. The compiled codec is used where it is
there, and not with LSTMSTREAM_CODEC=pure; benchmarks/codec.py compares the two. Judges nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lstmstream.config import Config
from lstmstream.records import RecordBatch
from lstmstream.serve.engine import Engine
from lstmstream.serve.factory import load_step_model, make_engine
from lstmstream.serve.freed_memory import keep_freed_memory
from lstmstream.serve.metrics import STAGES, Metrics
from lstmstream.serve.model_checks import probe
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.state_records import pack_states
from lstmstream.serve.step import OnnxStep
from tests.models import random_model

NUMBERS = ("amount", "f1", "f2", "f3", "f4", "f5", "f6")
PARTITIONS = 4
BARE_ROWS = 1024


def make_batches(
    events: int, batch: int, keys: int, zipf: float, *, partitions: int = PARTITIONS, key_digits: int = 6
) -> Iterator[RecordBatch]:
    """Batches as a poll gives them: partition after partition. Key n belongs to partition n % `partitions`."""
    random = np.random.default_rng(7)
    weights = 1 / np.arange(1, keys + 1) ** zipf
    drawn = np.searchsorted(np.cumsum(weights / weights.sum()), random.random(events))
    number = random.permutation(keys)[np.minimum(drawn, keys - 1)]
    offsets = np.zeros(partitions, np.int64)
    for start in range(0, events, batch):
        chosen = np.sort(number[start : start + batch] % partitions * keys + number[start : start + batch])
        partition_of, keys_of = chosen // keys, chosen % keys
        order = np.lexsort((random.random(len(chosen)), partition_of))
        partition_of, keys_of = partition_of[order], keys_of[order]
        names = [b"c%0*d" % (key_digits, key) for key in keys_of.tolist()]
        values: list[bytes | None] = []
        for i, name in enumerate(names):
            second = (start + i) // 50
            clock = (second // 3600 % 24, second // 60 % 60, second % 60, i * 20 % 1000)
            numbers = (random.random() * 100, i % 1000, *(random.random(6) * 4 - 2).tolist())
            values.append(
                b'{"card_id":"%b","ts":"2025-06-01T%02d:%02d:%02d.%03dZ","amount":%.2f,"merchant_id":"m%04d","f1":%.3f,'
                b'"f2":%.3f,"f3":%.3f,"f4":%.3f,"f5":%.3f,"f6":%.3f}' % (name, *clock, *numbers)
            )
        placed = np.empty(len(chosen), np.int64)
        for partition in range(partitions):
            here = partition_of == partition
            placed[here] = offsets[partition] + np.arange(here.sum())
            offsets[partition] += here.sum()
        times = np.full(len(chosen), 1_750_000_000_000, np.int64)
        yield RecordBatch("in", partition_of, placed, times, list(names), values, [()] * len(chosen))


def timer_into(spent: dict[str, float]) -> Callable[[str], AbstractContextManager[None]]:
    """Adds the CPU seconds of each stage to its entry."""

    @contextmanager
    def timer(stage: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[stage] += time.process_time() - began

    return timer


def make_stages_engine(
    timer: Callable[[str], AbstractContextManager[None]],
    hidden: int = 64,
    layers: int = 1,
    partitions: int = PARTITIONS,
    **output: Any,
) -> Engine:
    """An engine for the events of `make_batches`, with all partitions open. `output`: settings of that section."""
    config, step = _config_and_model(hidden, layers, **output)
    engine = make_engine(config, step, timer=timer)
    for partition in range(partitions):
        engine.scorer.states.open(partition)
    return engine


def _config_and_model(hidden: int, layers: int, **output: Any) -> tuple[Config, OnnxStep]:
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(
            Path(folder), hidden=hidden, layers=layers, numbers=NUMBERS, categories={"merchant_id": 1000},
            elapsed=False,
        )  # fmt: skip
        config = Config.model_validate(
            {
                "name": "stages",
                "model": str(model),
                "kafka": {"bootstrap_servers": "nowhere:1"},
                "input": {"topic": "in", "key": "card_id", "timestamp": "ts", "max_future": "3650d"},
                "output": {"topic": "out", **output},
            }
        )
        return config, load_step_model(config)[1]


def bare_session_s(hidden: int, layers: int, rows: int = BARE_ROWS) -> float:
    """CPU seconds that ONNX Runtime alone takes for one row of the same model, `rows` at once: the median."""
    _, step = _config_and_model(hidden, layers)
    given = step.feed(probe(step.card, rows=rows))
    spent_s = []
    for _ in range(60):
        began_s = time.process_time()
        step.session.run(step.outputs, given)
        spent_s.append(time.process_time() - began_s)
    return float(np.median(spent_s[10:])) / rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--zipf", type=float, default=0.8)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--states", action="store_true")
    args = parser.parse_args()
    keep_freed_memory()
    spent: defaultdict[str, float] = defaultdict(float)
    engine = make_stages_engine(timer_into(spent), args.hidden, args.layers)
    batches = list(make_batches(args.events, args.batch, args.keys, args.zipf))
    engine.process(batches[0])
    engine.commit()
    spent.clear()
    answered = 0
    for batch in batches[1:]:
        result = engine.process(batch)
        with timer_into(spent)("commit"):
            engine.commit()
        answered += len(result.predictions.index)
        if args.states:
            with timer_into(spent)("pack states"):
                for number, change in result.changed.items():
                    pack_states(engine.scorer.states.slabs[number], change.rows, b"12345678", 0)
    print(f"{answered:,} predictions, {sum(spent.values()) / answered * 1e6:.2f} us per event")
    for stage, seconds in spent.items():
        print(f"  {stage:12} {seconds / answered * 1e6:6.2f} us")
    cost_s, batch_s = cost_of_stage_seconds(), sum(spent.values()) / answered * args.batch
    print(f"stage_seconds: {cost_s * 1e6:.1f} us per batch, {cost_s / batch_s:.2%} of the engine's time for it")
    bare_s, step_s = bare_session_s(args.hidden, args.layers), spent["step"] / answered
    print(
        f"ONNX Runtime alone, {BARE_ROWS:,} rows at once: {bare_s * 1e6:.2f} us per row, {bare_s / step_s:.0%} of step"
    )


def cost_of_stage_seconds() -> float:
    """Seconds that one batch takes to time its stages and to count them in the metrics: the best of many."""
    metrics, timer = Metrics(), StageTimer(time.monotonic)

    def one_batch() -> None:
        timer.take()
        for stage in STAGES:
            with timer(stage):
                pass
        metrics.observe_stages(timer.take())

    return min(timeit.repeat(one_batch, number=1000, repeat=20)) / 1000


if __name__ == "__main__":
    main()
