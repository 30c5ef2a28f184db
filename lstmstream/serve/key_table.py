"""Which row each key of a partition has: the compiled codec's table, or dicts of Python's.

Both grow in small pieces. A single dict of ten million keys stops the daemon for 200 ms and more when it is full
and is copied. The compiled one takes less than a third of the memory, and has a batch's keys looked up side by side.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Protocol

import numpy as np

from lstmstream import codec
from lstmstream.records import Ints, lengths

Key = bytes | None
_FIRST_KEYS = 349_525  # a dict grows before it has one more, and so never for long
_DICTS = 128  # a power of two
_KEY_OVERHEAD_BYTES = sys.getsizeof(b"") + 16  # of a bytes object, and of its places in list and free memory


class _Table(Protocol):
    """Keys to rows and back; what rows are free is not its concern."""

    def __len__(self) -> int: ...
    def find(self, key: Key, /) -> int: ...
    def find_all(self, keys: list[Key], rows: Ints, /) -> int: ...
    def insert_all(self, keys: list[Key], rows: Ints, /) -> None: ...
    def remove(self, key: Key, /) -> int: ...
    def keys_at(self, rows: Ints, /) -> list[Key]: ...
    def memory(self) -> int: ...


class DictTable:
    """In Python; `KeyTable` in native/key_table.h is the same."""

    def __init__(self) -> None:
        # The first keys, which are looked up without Python code for each of them; then many small dicts.
        self._first: dict[Key, int] = {}
        self._others: list[dict[Key, int]] = [{} for _ in range(_DICTS)]
        self._keys: list[Key] = []  # by row number; of a free row, any
        self._key_bytes = 0

    def __len__(self) -> int:
        return len(self._first) + sum(map(len, self._others))

    def find(self, key: Key) -> int:
        """Its row, or -1."""
        row = self._first.get(key, -1)
        return row if row >= 0 else self._others[hash(key) % _DICTS].get(key, -1)

    def find_all(self, keys: list[Key], rows: Ints) -> int:
        """Fill `rows` [N], with -1 for each key that is missing; how many are."""
        rows[:] = np.fromiter(map(self._first.get, keys, repeat(-1)), np.int64, len(keys))
        missing = np.flatnonzero(rows < 0)
        if len(missing) and any(self._others):
            others = self._others
            left = [keys[at] for at in missing.tolist()]
            rows[missing] = [others[hash(key) % _DICTS].get(key, -1) for key in left]
        return int(np.count_nonzero(rows < 0))

    def insert_all(self, keys: list[Key], rows: Ints) -> None:
        """Keys and rows [N] that are not there yet."""
        numbers = rows.tolist()
        room = max(0, _FIRST_KEYS - len(self._first))
        self._first.update(zip(keys[:room], numbers[:room], strict=True))
        for key, row in zip(keys[room:], numbers[room:], strict=True):
            self._others[hash(key) % _DICTS][key] = row
        self._keys += [None] * (max(numbers, default=-1) + 1 - len(self._keys))
        for key, row in zip(keys, numbers, strict=True):
            self._keys[row] = key
        self._key_bytes += int(lengths(keys).sum()) + len(keys) * _KEY_OVERHEAD_BYTES

    def remove(self, key: Key) -> int:
        """The row that it had. Raises KeyError."""
        row = self._first.pop(key, -1)
        if row < 0:
            row = self._others[hash(key) % _DICTS].pop(key)
        self._keys[row] = None
        self._key_bytes -= len(key or b"") + _KEY_OVERHEAD_BYTES
        return row

    def keys_at(self, rows: Ints) -> list[Key]:
        """The key of each row [N]; None for a free one."""
        return [self._keys[row] for row in rows.tolist()]

    def memory(self) -> int:
        """Bytes that keys and table use."""
        return self._key_bytes + sum(map(sys.getsizeof, [self._first, *self._others]))


class KeyTable(Mapping[Key, int]):
    """Keys to row numbers, in the order of these. Row numbers of removed keys are used again, the newest first."""

    def __init__(self) -> None:
        compiled = codec.load()
        self._table: _Table = DictTable() if compiled is None else compiled.KeyTable(secrets.randbits(64))
        self._free: list[int] = []
        self.used_rows = 0  # all row numbers that a key has, or had, are below

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys_at(self.rows()))

    def __getitem__(self, key: Key) -> int:
        row = self._table.find(key)
        if row < 0:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return self._table.find(key) >= 0  # type: ignore[arg-type]  # as Mapping has it

    @property
    def nbytes(self) -> int:
        """Memory of the keys and of the table."""
        return self._table.memory()

    def find_all(self, keys: list[Key]) -> tuple[Ints, int]:
        """(the row of each key [N], -1 for one that is missing; how many are)."""
        rows = np.empty(len(keys), np.int64)
        return rows, self._table.find_all(keys, rows)

    def add_all(self, keys: list[Key]) -> Ints:
        """New rows [N] for keys that are all different, and have none."""
        count = min(len(keys), len(self._free))
        again = np.array(self._free[len(self._free) - count :][::-1], dtype=np.int64)
        end = self.used_rows + len(keys) - count
        rows = np.concatenate([again, np.arange(self.used_rows, end)])
        self._table.insert_all(keys, rows)
        del self._free[len(self._free) - count :]
        self.used_rows = end
        return rows

    def remove(self, key: Key) -> int:
        """The row that the key had, which is free now. Raises KeyError."""
        return int(self.remove_all([key])[0])

    def remove_all(self, keys: list[Key]) -> Ints:
        """The rows [N] that the keys had, which are free now. Raises KeyError."""
        rows = list(map(self._table.remove, keys))
        self._free += rows
        return np.array(rows, dtype=np.int64)

    def rows(self) -> Ints:
        """The rows of all keys, ascending."""
        taken = np.ones(self.used_rows, np.bool_)
        taken[self._free] = False
        return np.flatnonzero(taken)

    def free_rows(self) -> list[int]:
        """Rows of removed keys, in the order in which they are used again."""
        return self._free[::-1]

    def keys_at(self, rows: Ints) -> list[Key]:
        """The keys of these rows [N]; None for a row that is free."""
        return self._table.keys_at(np.ascontiguousarray(rows, np.int64))
