"""The command line of the benchmark."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "throughput"  # git-ignored


def parse_options(description: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Defaults that depend on --quick are filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    workload = parser.add_argument_group("workload")
    workload.add_argument("--events", type=_positive, help="in the topic (3000000; 600000 with --quick)")
    workload.add_argument("--keys", type=_positive, default=100_000, help="(100000)")
    spread = workload.add_mutually_exclusive_group()
    spread.add_argument("--zipf", type=float, default=0.8, help="exponent of the keys' frequencies (0.8)")
    spread.add_argument("--uniform", action="store_true", help="all keys are equally frequent")
    spread.add_argument("--one-key", action="store_true", help="all events have the same key")
    workload.add_argument("--partitions", type=_positive, default=4, help="(4)")
    workload.add_argument("--hidden", type=_positive, default=64, help="units of each LSTM layer (64)")
    workload.add_argument("--layers", type=_positive, default=1, help="(1)")
    run = parser.add_argument_group("what is run")
    run.add_argument("--apps", help="only those with these names, or names that begin so, separated by commas")
    run.add_argument("--list", action="store_true", help="print the names of all apps and end")
    run.add_argument("--rounds", type=int, help="of throughput; 0 leaves it out (5; 1 with --quick)")
    run.add_argument("--quick", action="store_true", help="shows that all of it works; its figures say little")
    run.add_argument("--latency", type=_positive, metavar="RATE", help="at so many events/s, and at shares of the peak")
    run.add_argument("--idle", action="store_true", help="CPU of the daemon without input")
    run.add_argument("--minutes", type=float, default=40.0, help="nothing new is started after so many (40)")
    run.add_argument("--out", type=Path, default=CACHE / "results", help="folder for the results (%(default)s)")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 5
    if options.events is None:
        options.events = 600_000 if options.quick else 3_000_000
    if options.one_key:
        options.keys = 1
    if options.uniform or options.one_key:
        options.zipf = 0.0
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
