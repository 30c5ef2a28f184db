"""CPU microseconds per event with the compiled codec and without it, in turns.

    python -m benchmarks.codec [--rounds N] [--batch N]

The events of benchmarks/stages.py: bytes to columns and predictions to bytes in the engine, and the records of Kafka's
log, which kafka-python's consumer reads and its producer writes. Needs the compiled codec. Judges nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict

from benchmarks.stages import make_batches, make_stages_engine, timer_into
from lstmstream import codec
from lstmstream.transport.record_format import decode_records, encode_records

WAYS = ("pure", "compiled")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=10_000)
    args = parser.parse_args()
    if codec.load() is None:
        print("benchmarks.codec: there is no compiled codec to compare with")
        return
    spent: defaultdict[str, float] = defaultdict(float)
    timer, engines = timer_into(spent), {}
    for way in WAYS:
        os.environ[codec.VARIABLE] = way
        engines[way] = make_stages_engine(timer, hidden=8)
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for round_number, batch in enumerate(make_batches((args.rounds + 1) * args.batch, args.batch, 100_000, 0.8)):
        for way in WAYS if round_number % 2 else WAYS[::-1]:
            os.environ[codec.VARIABLE] = way
            spent.clear()
            engines[way].process(batch)
            engines[way].commit()
            n = len(batch)
            deltas = list(range(n))
            with timer("write to the log"):
                body = encode_records(deltas, batch.keys, batch.values, batch.headers)
            with timer("read from the log"):
                decode_records(body, n)
            if round_number:  # the first one warms up
                for stage in ("read from the log", "decode", "encode", "write to the log"):
                    found[stage, way].append(spent[stage] / n * 1e6)
    print(f"{time.strftime('%Y-%m-%d')}, batches of {args.batch:,}, us per event: median of {args.rounds} (range)")
    print("| | pure Python | compiled | ratio |\n| --- | --- | --- | --- |")
    for stage in dict.fromkeys(stage for stage, _ in found):
        pure, compiled = (found[stage, way] for way in WAYS)
        ratio = statistics.median(pure) / statistics.median(compiled)
        print(f"| {stage} | {_cell(pure)} | {_cell(compiled)} | {ratio:.1f} |")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
