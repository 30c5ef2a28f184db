"""Which keys were erased, and from which input offset on: records of the state topic (docs/erasure.md)."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from lstmstream.records import RecordBatch

_KIND, _LENGTH = 4, 25  # of the record key: the kind, 16 bytes that name the key, 8 bytes of the offset


class Erased(NamedTuple):
    """One key of one partition."""

    offset: int  # the key's events before it are forgotten
    name: bytes


class Erasures:
    """Those of one partition, from its records in the order of the log."""

    def __init__(self) -> None:
        self.read_to = 0  # offset of the state topic
        self._found: dict[bytes, Erased] = {}
        self._new: list[Erased] = []

    def watched(self, batches: Iterable[RecordBatch]) -> Iterable[RecordBatch]:
        """The same batches, which are read on the way."""
        for records in batches:
            for key, value in zip(records.keys, records.values, strict=True):
                if key is None or len(key) != _LENGTH or key[0] != _KIND:
                    continue
                if value is None:  # the input has nothing of the key any more
                    self._found.pop(key, None)
                elif key not in self._found:
                    self._found[key] = Erased(int.from_bytes(key[17:], "big"), key[1:17])
                    self._new.append(self._found[key])
            if len(records):
                self.read_to = max(self.read_to, int(records.offsets[-1]) + 1)
            yield records

    def take_new(self) -> list[Erased]:
        """What was found since the last call."""
        new, self._new = self._new, []
        return new


class KeyNames:
    """Finds the keys that erasures name, among those that have a state."""

    def __init__(self, salt: str) -> None:
        self._salt = salt.encode()[:64]
        self._keys: dict[bytes, bytes | None] | None = None  # by name, once there is an erasure
        self._pending: list[Erased] = []

    def add(self, erased: Iterable[Erased], known: Iterable[bytes | None]) -> None:
        """More erasures; `known`: the keys that have a state now."""
        self._pending = sorted([*self._pending, *erased])
        if self._pending and self._keys is None:
            self._keys = {self._name(key): key for key in known}

    def on_new_key(self, key: bytes | None) -> None:
        """It has a state from now on."""
        if self._keys is not None:
            self._keys[self._name(key)] = key

    def forgotten_at(self, offset: int) -> list[bytes | None]:
        """The keys to forget before the event at `offset`."""
        keys = []
        while self._pending and self._pending[0].offset <= offset:
            name = self._pending.pop(0).name
            if self._keys is not None and name in self._keys:
                keys.append(self._keys.pop(name))
        return keys

    def _name(self, key: bytes | None) -> bytes:
        kind = b"\x02" if key is None else b"\x01"
        return blake2b(kind + (key or b""), digest_size=16, key=self._salt).digest()
