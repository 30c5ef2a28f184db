"""The compiled codec beside `Decoder._decode_each`, which is the definition: the same columns, or declined.

    python -m tests.serve.codec_oracle --seconds 60 [--library FILE] [--seed N]

`make fuzz-codec` runs it with a codec that checks its memory.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lstmstream.records import RecordBatch
    from lstmstream.serve.decode import Decoder


def read_alike(decoder: Decoder, records: RecordBatch) -> bool:
    """Whether the codec reads the batch. AssertionError where it reads it in another way than Python code does."""
    compiled = decoder._fast._compiled
    assert compiled is not None
    found = compiled.read(records)
    if found is None:
        return False
    wanted = decoder._decode_each(records)
    assert not wanted.dead_letters, wanted.dead_letters
    observations = wanted.observations
    assert found.keys == observations.keys
    assert found.timestamps.tolist() == observations.timestamps.tolist()
    assert found.x.tobytes() == observations.x.tobytes()  # -0.0 is not 0.0
    assert found.categories.tolist() == observations.categories.tolist()
    assert found.absent.sum(axis=0).tolist() == wanted.field_counts.missing[decoder._category_places].tolist()
    return True


def main() -> None:
    """Hostile events for some seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--library", type=Path, help="a compiled codec in place of the package's")
    args = parser.parse_args()
    if args.library is not None:
        use_library(args.library)
    from tests.serve.hostile_events import hostile_event
    from tests.serve.test_fast_decode import batch, decoder

    one, source = decoder(), random.Random(args.seed)
    end, read, count = time.monotonic() + args.seconds, 0, 0
    while time.monotonic() < end:
        values: list[bytes | None] = [hostile_event(source) for _ in range(source.choice([1, 1, 1, 3]))]
        try:
            read += read_alike(one, batch(values))
        except AssertionError:
            print(f"seed {args.seed}, batch {count}: {values}", file=sys.stderr)
            raise
        count += 1
    print(
        f"seed {args.seed}: {count:,} batches of hostile events, {read:,} of them read, all as Python code reads them"
    )


def use_library(path: Path) -> None:
    """The file at `path` as the package's codec, for this process."""
    import lstmstream

    name = "lstmstream._codec"
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    specification = importlib.util.spec_from_loader(name, loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    sys.modules[name] = module
    setattr(lstmstream, "_codec", module)  # noqa: B010 - mypy knows no such attribute


if __name__ == "__main__":
    main()
