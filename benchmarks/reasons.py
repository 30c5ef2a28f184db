"""Events per second of the engine with and without `output.reasons`, without a broker.

    python -m benchmarks.reasons [--events N] [--batch N] [--keys N] [--zipf A] [--hidden H] [--layers L] [--repeat R]

The events and the model of benchmarks/stages.py: 7 numbers and a category, so that an alert is 9 more rows at most. The
threshold lies where the fraction of events in the first column has an alert. Off and on take turns, each with an
engine of its own; of each the best of R runs counts. `redone`: the time of the stage `reasons` per alert. Judges
nothing.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.stages import make_batches, make_stages_engine, timer_into
from lstmstream.records import RecordBatch

FRACTIONS = (0.0, 0.001, 0.01, 0.05)


def scores(batches: Sequence[RecordBatch], hidden: int, layers: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Of all events."""
    engine = make_stages_engine(timer_into(defaultdict(float)), hidden, layers)
    found = []
    for batch in batches:
        found.append(engine.process(batch).predictions.score)
        engine.commit()
    return np.concatenate(found)


def measure(
    batches: Sequence[RecordBatch], hidden: int, layers: int, threshold: float, reasons: int
) -> tuple[float, float, int]:
    """(CPU seconds, those of the stage `reasons`, alerts) of all batches but the first."""
    spent: defaultdict[str, float] = defaultdict(float)
    engine = make_stages_engine(timer_into(spent), hidden, layers, threshold=threshold, reasons=reasons)
    engine.process(batches[0])
    engine.commit()
    spent.clear()
    alerts, began_s = 0, time.process_time()
    for batch in batches[1:]:
        alerts += int(engine.process(batch).predictions.alert.sum())
        engine.commit()
    return time.process_time() - began_s, spent["reasons"], alerts


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--zipf", type=float, default=0.8)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    batches = list(make_batches(args.events, args.batch, args.keys, args.zipf))
    events = sum(map(len, batches[1:]))
    found = scores(batches, args.hidden, args.layers)
    print("alerts    off, events/s    on, events/s   of off   us per alert")
    for fraction in FRACTIONS:
        threshold = float(np.quantile(found, 1 - fraction)) if fraction else 2.0
        runs = [[measure(batches, args.hidden, args.layers, threshold, n) for n in (0, 3)] for _ in range(args.repeat)]
        off, on = (min(column) for column in zip(*runs, strict=True))
        each = f"{on[1] / on[2] * 1e6:.1f}" if on[2] else "-"
        print(
            f"{on[2] / events:6.2%} {events / off[0]:16,.0f} {events / on[0]:15,.0f} {off[0] / on[0]:8.1%} {each:>14}"
        )


if __name__ == "__main__":
    main()
