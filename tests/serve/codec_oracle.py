"""The compiled codec beside the Python code, which is the definition: the same columns, or declined; the same tables.

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
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np

from lstmstream import codec
from lstmstream.errors import BadRecord
from lstmstream.formats.json_documents import parse_document
from lstmstream.records import RecordBatch
from lstmstream.serve import key_table, state_records
from lstmstream.serve.decode import Decoder, _Rejects
from lstmstream.serve.event_fields import _text
from lstmstream.transport import record_format
from tests.serve.hostile_events import hostile_event
from tests.serve.test_fast_decode import assert_texts, batch, decoder, plain

T = TypeVar("T")
MEMBERS = ("amount", "id", "channel", "at", "other", "more", "é")


def read_alike(decoder: Decoder, records: RecordBatch) -> bool:
    """Whether the codec reads the batch. AssertionError where it reads one in another way than Python code."""
    compiled = decoder._fast._compiled
    assert compiled is not None
    answer = compiled.read(records)
    if answer is None:
        return False
    found, declined = answer
    rejects = _Rejects()
    wanted, _ = decoder._read_each(records, rejects)
    rows = np.setdiff1d(np.arange(len(records)), declined)
    assert rejects.by_index.keys().isdisjoint(rows.tolist()), rejects.by_index
    assert [found.keys[row] for row in rows.tolist()] == [wanted.keys[row] for row in rows.tolist()]
    assert found.timestamps[rows].tolist() == wanted.timestamps[rows].tolist()
    assert found.x[rows].tobytes() == wanted.x[rows].tobytes()  # -0.0 is not 0.0
    assert found.categories[rows].tolist() == wanted.categories[rows].tolist()
    assert found.absent[rows].tolist() == wanted.absent[rows].tolist()
    assert_texts(found.texts, records, rows.tolist())
    assert all(column[row] is None for column in found.texts.values() for row in declined.tolist())
    return True


def members_alike(value: bytes | None) -> bool:
    """Whether a member of an event is read. AssertionError where its text is another one than Python code writes."""
    compiled = codec.load()
    assert compiled is not None
    columns = compiled.read_members([value], tuple(name.encode() for name in MEMBERS))
    try:
        document = parse_document(value)
    except BadRecord:
        return False
    read = False
    for name, (text,) in zip(MEMBERS, columns, strict=True):
        assert text is None or text == _text(document, name, value or b""), (name, text)
        read |= bool(text)
    return read


def records_alike(body: bytes, count: int) -> bool:
    """Whether a batch of the log is read. AssertionError where that depends on the codec."""
    try:
        wanted = record_format._decode_columns(body, count)
    except ValueError:
        wanted = None
    try:
        found = record_format.decode_records(body, count)
    except ValueError:
        found = None
    if found is None or wanted is None:
        assert found is wanted
        return False
    assert found.offset_deltas.tolist() == wanted.offset_deltas.tolist()
    assert found.timestamp_deltas.tolist() == wanted.timestamp_deltas.tolist()
    assert found[2:] == wanted[2:]
    return True


def hostile_records(source: random.Random) -> tuple[bytes, int]:
    """A batch of the log without its head, often damaged, and how many records it claims."""
    count = source.randrange(4)
    sizes = [0, 1, 9, 63, 64, 200]
    keys = [source.choice([None, source.randbytes(source.choice(sizes))]) for _ in range(count)]
    values = [source.choice([None, source.randbytes(source.choice(sizes))]) for _ in range(count)]
    headers = [source.choice([[], [], [("n", None), ("é", b"v" * source.choice(sizes))]]) for _ in range(count)]
    deltas = [source.choice([0, 1, -1, 1 << source.randrange(60), -(1 << source.randrange(60))]) for _ in range(count)]
    body = bytearray(record_format.encode_records(deltas, keys, values, headers))
    for _ in range(source.choice([0, 0, 1, 1, 2, 3])):
        at = source.randrange(len(body) + 1)
        piece = source.choice([b"\x80", b"\xff" * source.randrange(12), b"\0", b"\1", source.randbytes(1)])
        body[at : at + source.randrange(3)] = piece
    if source.random() < 0.1:
        del body[source.randrange(len(body) + 1) :]
    return bytes(body), count + (source.random() < 0.1) * source.choice([-count, 1, 1 << 30])


def states_alike(source: random.Random) -> bool:
    """Records of the state topic are written and read, damaged ones too, as Python does; whether they were sound."""
    count, floats = source.randrange(5), source.choice([0, 1, 2, 3, 17])
    keys = [source.choice([None, source.randbytes(source.choice([0, 1, 7, 8, 300]))]) for _ in range(count)]
    numbers = np.array([[source.getrandbits(63) for _ in range(count)] for _ in range(5)], np.int64)
    numbers[4] %= 1 << 16  # failures
    rows = np.frombuffer(source.randbytes(4 * count * floats), np.float32).reshape(count, floats)
    columns, digest = state_records.state_columns(numbers, rows), source.randbytes(16)
    packed = in_both(lambda: state_records.pack_columns(keys, columns, digest))
    record_keys, values = ([field or b"" for field in fields] for fields in packed)  # none is null
    for _ in range(source.choice([0, 0, 1, 1, 2]) if count else 0):
        damaged = source.choice([record_keys, values])
        i = source.randrange(count)
        at, piece = source.randrange(len(damaged[i]) + 1), source.choice([b"", b"\0", source.randbytes(1)])
        damaged[i] = damaged[i][:at] + piece + damaged[i][at + source.randrange(2) :]
    found = in_both(lambda: comparable(state_records.unpack_states(record_keys, values, digest, floats)))
    assert found is None or found == comparable(columns)
    return found is not None


def comparable(columns: state_records.StateColumns | None) -> list[bytes] | None:
    return None if columns is None else [np.ascontiguousarray(column).tobytes() for column in columns]


def in_both(function: Callable[[], T]) -> T:
    """What it gives, with the codec and without."""
    compiled, module = function(), codec._module
    codec._module = None
    try:
        assert function() == compiled
    finally:
        codec._module = module
    return compiled


def tables_alike(source: random.Random, steps: int = 60, largest: int = 40) -> int:
    """How many keys a table had at most. AssertionError where one of the two is not as a dict.

    `steps` times some keys come, up to `largest` at once, or go.
    """
    compiled = codec.load()
    assert compiled is not None
    tables = [key_table.DictTable(), compiled.KeyTable(source.getrandbits(64))]
    expected: dict[bytes | None, int] = {}
    sizes = [0, 1, 14, 15, 16, 17, 40, 300]
    known: list[bytes | None] = [None, *(source.randbytes(source.choice(sizes)) for _ in range(largest))]
    free, most = list(range(3 * largest * steps)), 0
    source.shuffle(free)
    for _ in range(steps):
        asked = [source.choice(known) for _ in range(source.randrange(largest))]
        new = list(dict.fromkeys(key for key in asked if key not in expected))
        for _ in range(source.randrange(largest)):
            key = source.randbytes(source.choice(sizes))
            if key not in expected and key not in new:
                new.append(key)
        rows = np.array([free.pop() for _ in new], np.int64)
        expected.update(zip(new, rows.tolist(), strict=True))
        known += new
        most = max(most, len(expected))
        gone = source.sample(list(expected), source.randrange(1 + min(len(expected), largest if steps % 3 else 1)))
        for table in tables:
            table.insert_all(new, rows)
            assert table.find_all(asked, found := np.empty(len(asked), np.int64)) == 0
            assert found.tolist() == [expected[key] for key in asked]
            assert table.keys_at(found) == asked
            assert [table.remove(key) for key in gone] == [expected[key] for key in gone]
        free += [expected.pop(key) for key in gone]
        for table in tables:
            assert len(table) == len(expected)
            assert table.find_all(known, found := np.empty(len(known), np.int64)) == sum(
                key not in expected for key in known
            )
            assert found.tolist() == [expected.get(key, -1) for key in known]
            assert [table.find(key) for key in gone] == [-1] * len(gone)
            assert table.memory() > 0
    return most


def main() -> None:
    """Hostile events for some seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--library", type=Path, help="a compiled codec in place of the package's")
    args = parser.parse_args()
    if args.library is not None:
        codec._module = load_library(args.library)
    one, source = decoder(), random.Random(args.seed)
    end, read, members_read, records_read, keys, count = time.monotonic() + args.seconds, 0, 0, 0, 0, 0
    states_read = 0
    while time.monotonic() < end:
        values: list[bytes | None] = [hostile_event(source) for _ in range(source.choice([1, 1, 1, 3, 40]))]
        if len(values) == 40:
            values[2:] = [plain(amount=source.random(), channel=source.choice(["web", "é"]))] * 38
        try:
            read += read_alike(one, batch(values))
            members_read += members_alike(values[0])
        except AssertionError:
            print(f"seed {args.seed}, batch {count}: {values}", file=sys.stderr)
            raise
        body, claimed = hostile_records(source)
        try:
            records_read += records_alike(body, claimed)
        except AssertionError:
            print(f"seed {args.seed}, batch {count}: {body!r} with {claimed} records", file=sys.stderr)
            raise
        states_read += states_alike(random.Random(f"{args.seed} states {count}"))
        if count % 50 == 0:
            keys += tables_alike(random.Random(f"{args.seed} {count}"), largest=source.choice([3, 40, 400]))
        count += 1
    print(f"seed {args.seed}, {count:,} batches of each kind: the codec reads {read:,} of hostile events, members of")
    print(f"{members_read:,}, and {records_read:,} of the log, as Python code reads them; it declines the others")
    print(f"state records of {states_read:,} batches are sound, the others refused, with the codec and without")
    print(f"tables with {keys:,} keys at most, all together, are as dicts")


def load_library(path: Path) -> ModuleType:
    """The compiled codec at `path`."""
    loader = importlib.machinery.ExtensionFileLoader("_codec", str(path))
    specification = importlib.util.spec_from_loader("_codec", loader)
    assert specification is not None
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
