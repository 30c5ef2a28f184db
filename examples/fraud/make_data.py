"""Writes simulated card transactions of 90 days, `transactions.parquet`, and a day of other customers, `events.jsonl`.

    python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named

The simulation is lstmstream.demo.simulate, with another seed than the demo's: no customer here is in the demo.
The labels are known at once; in production they come days later.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from lstmstream.demo.simulate import ENTRIES, KINDS, MERCHANTS, Transactions, transactions

SEED, CUSTOMERS, TERMINALS, DAYS = 1000, 4000, 5000, 90
SMALL = 400  # customers
EVENTS_SEED, EVENTS = 7, 4000  # the seed of the demo


def table(history: Transactions) -> pl.DataFrame:
    """The transactions with their labels, under the field names of the README."""
    return pl.DataFrame(
        {
            "customer": [f"c{number:06d}" for number in history.customer.tolist()],
            "time": pl.Series(history.time_ms).cast(pl.Datetime("ms", "UTC")),
            "amount": history.amount,
            "distance_km": pl.Series(history.distance_km).fill_nan(None),  # an online shop has no location
            "merchant": np.array(MERCHANTS)[history.merchant].tolist(),
            "entry": np.array(ENTRIES)[history.entry].tolist(),
            "fraud": history.fraud.astype(np.int8),
            "kind": np.array(KINDS)[history.kind].tolist(),
        }
    )


def main(folder: Path, customers: int) -> None:
    """Writes both files."""
    table(transactions(customers=customers, terminals=TERMINALS, days=DAYS, seed=SEED)).write_parquet(
        folder / "transactions.parquet"
    )
    events = table(transactions(days=1, seed=EVENTS_SEED)[:EVENTS])
    events.with_columns(pl.col("time").dt.to_string("%Y-%m-%dT%H:%M:%S%.3fZ")).write_ndjson(folder / "events.jsonl")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes transactions.parquet and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} customers instead of {CUSTOMERS}")
    options = parser.parse_args()
    main(options.folder, SMALL if options.small else CUSTOMERS)
