"""How fast `lstmstream state import` writes ready states, on this machine.

    python -m benchmarks.seeding [--keys N] [--hidden H] [--partitions P] [--client NAME] [--json FILE]

One state for each of 1,000,000 keys, an LSTM of 64 units (512 bytes of state per key), 8 partitions, in a Parquet file
as `state export` writes it; broker and command share the cores. Beside the import it measures its parts alone, by CPU
time: reading the file, and making the records. The figures have no limits, since machines differ. But a state topic
that does not have every state once is exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from lstmstream.config import load_config
from lstmstream.dev.broker import DevBroker
from lstmstream.model import Card, load_model
from lstmstream.serve.identity import state_identity
from lstmstream.serve.state_records import FLOOR, StateColumns, StateIdentity, pack_columns
from lstmstream.states.parquet import ParquetStates
from tests.broker.harness import create_topics, read_all, write_config
from tests.models import random_model

NAME = "seeding"
CHUNK_ROWS = 26_000


def write_states(path: Path, card: Card, identity: StateIdentity, keys: int) -> None:
    """Random ones."""
    values = np.random.default_rng(1).standard_normal((keys, card.state.size), np.float32)
    columns: dict[str, Any] = {
        "key": [f"customer-{number:09}" for number in range(keys)],
        "timestamp": pl.repeat(1_700_000_000_000, keys, dtype=pl.Int64, eager=True).cast(pl.Datetime("ms", "UTC")),
        "steps": pl.int_range(1, keys + 1, eager=True),
        "identity": pl.repeat(identity.digest.hex(), keys, eager=True),
    }
    for part in card.state.parts:
        size = int(np.prod(part.shape))
        columns[f"state.{part.name}"] = pl.Series(
            values[:, part.offset : part.offset + size], dtype=pl.Array(pl.Float32, size)
        )
    pl.DataFrame(columns).write_parquet(path, compression="snappy")


def measure_parts(path: Path, card: Card, identity: StateIdentity) -> dict[str, float]:
    """Rows per CPU second of reading, and of making records."""
    read_s = pack_s = 0.0
    rows = 0
    began = time.process_time()
    for chunk in ParquetStates(path, card).read(CHUNK_ROWS):
        read_s += time.process_time() - began
        began = time.process_time()
        count = len(chunk.keys)
        origins = np.full(count, -2)
        columns = StateColumns(origins, origins, chunk.steps, chunk.timestamps, chunk.failures, chunk.rows)
        pack_columns(chunk.keys, columns, identity.digest)
        pack_s += time.process_time() - began
        rows += count
        began = time.process_time()
    return {"read_rows_per_cpu_s": rows / read_s, "pack_rows_per_cpu_s": rows / pack_s}


def run(servers: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One import into an empty group."""
    create_topics(servers, [f"{NAME}.in", f"{NAME}.out"], partitions=options.partitions)
    config = write_config(
        folder / "c.yaml",
        name=NAME,
        model=random_model(folder, hidden=options.hidden),
        servers=servers,
        kafka={"client": options.client},
    )
    loaded = load_config(config)
    card = load_model(loaded.model, base=loaded.folder).card
    identity = state_identity(loaded, card)
    path = folder / "states.parquet"
    write_states(path, card, identity, options.keys)
    found: dict[str, Any] = {"client": options.client, "keys": options.keys, "state_bytes": 4 * card.state.size}
    found |= measure_parts(path, card, identity)
    began = time.perf_counter()
    command = [sys.executable, "-m", "lstmstream", "state", "import", str(config), str(path)]
    subprocess.run(command, check=True)
    found["import_s"] = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    found |= {
        "import_rows_per_s": options.keys / found["import_s"],
        "import_cpu_s": usage.ru_utime + usage.ru_stime,
        "load_average": os.getloadavg()[0],
    }
    keys = [record.key for record in read_all(servers, f"{NAME}.state", partitions=options.partitions)]
    states = [key for key in keys if key[:1] != FLOOR]
    assert len(states) == len(set(states)) == options.keys, f"the state topic has {len(states)} states"
    assert len(keys) == options.keys + options.partitions, "a floor record is missing"
    return found


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--client", default="confluent")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        broker = DevBroker(Path(folder) / "kafka")
        try:
            found = run(broker.up(port=0), Path(folder), options)
        finally:
            broker.down(wipe=True)
    text = json.dumps({name: round(one, 1) if isinstance(one, float) else one for name, one in found.items()}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
