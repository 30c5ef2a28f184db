"""A snapshot file alone: what was written is read, block by block, with and without a thread that reads ahead."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lstmstream.serve import snapshot_file
from lstmstream.serve.alert_memory import Incident
from lstmstream.serve.key_table import Key
from lstmstream.serve.snapshot_file import Block, SnapshotFile, SnapshotHead, SnapshotRefused, SnapshotWriter
from lstmstream.serve.state_records import state_columns

FLOATS = 3
HEAD = SnapshotHead("00" * 16, "state", "s", "i", 4, 2, FLOATS, 10, 1, 1, ())


def block(number: int, keys: list[Key]) -> Block:
    """Numbers that no other block has."""
    numbers = np.arange(5 * len(keys), dtype=np.int64).reshape(5, -1) + 1_000 * number
    rows = np.arange(FLOATS * len(keys), dtype=np.float32).reshape(-1, FLOATS) + 1_000 * number
    return Block(keys, state_columns(numbers, rows), {0: Incident(1, 2, 3, 4)} if number % 2 else {})


BLOCKS = [
    block(0, [b"same-00", b"same-01"]),
    block(1, [b"ends in\0", b"\0ends in", b"\0\0\0\0\0\0\0\0"]),  # all as long as each other
    block(2, [None, b"", b"a", b"longer than the others", b"\xff\0"]),
    block(3, [b""]),
    *[block(number, [b"key-%04d" % number]) for number in range(4, 30)],
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = SnapshotWriter(tmp_path / "some.snapshot", HEAD)
    for one in BLOCKS:
        writer.add(one)
    writer.finish()
    return tmp_path / "some.snapshot"


def assert_all_is_there(snapshot: SnapshotFile) -> None:
    for number, wanted in enumerate(BLOCKS):
        found = snapshot.next()
        assert found is not None
        assert found.keys == wanted.keys
        assert {type(key) for key in found.keys} <= {bytes, type(None)}
        assert found.incidents == wanted.incidents
        for name, column in wanted.columns._asdict().items():
            np.testing.assert_array_equal(getattr(found.columns, name), column)
        assert snapshot.remaining == sum(len(one.keys) for one in BLOCKS[number + 1 :])
    assert snapshot.next() is None


def test_what_was_written_is_read(path: Path) -> None:
    with SnapshotFile(path) as snapshot:
        assert_all_is_there(snapshot)


@pytest.mark.parametrize("ahead", [1, 300, 1 << 20])
def test_what_was_written_is_read_ahead(path: Path, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block at a time, a few, or all at once."""
    monkeypatch.setattr(snapshot_file, "_AHEAD_BYTES", ahead)
    with ThreadPoolExecutor(2) as threads, SnapshotFile(path, threads) as snapshot:
        assert_all_is_there(snapshot)


def test_a_damaged_block_that_was_read_ahead_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-150] ^= 1
    path.write_bytes(content)
    with (
        ThreadPoolExecutor(2) as threads,
        SnapshotFile(path, threads) as snapshot,
        pytest.raises(SnapshotRefused, match="block 29 is damaged"),
    ):
        list(snapshot.blocks())


def test_one_that_is_closed_while_it_is_read_ahead(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_file, "_AHEAD_BYTES", 1)
    with ThreadPoolExecutor(2) as threads:
        snapshot = SnapshotFile(path, threads)
        assert snapshot.next() is not None
        snapshot.close()
        snapshot.close()
