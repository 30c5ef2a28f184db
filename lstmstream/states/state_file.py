"""States in a file, as `lstmstream state export` writes them, read back in chunks of columns."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.extras import require
from lstmstream.formats.timestamps import TIMESTAMP_MAX_MS, timestamp_ms
from lstmstream.model import Card
from lstmstream.records import Floats, Ints
from lstmstream.serve.state_records import StateIdentity
from lstmstream.serve.stream_time import NEVER

UNNAMED = -1  # in place of a partition: the file does not say it
_CHUNK_LINES = 8_192


class FileStates(NamedTuple):
    """C states of a file."""

    first_row: int  # of the file, from 1
    identities: Sequence[str | None]  # those that occur
    keys: list[bytes | None]
    partitions: Ints  # [C] or UNNAMED
    timestamps: Ints  # [C] milliseconds since 1970 UTC
    stream_times: Ints  # [C] the stream time of their partition, likewise, or NEVER: the file does not say it
    steps: Ints  # [C]
    failures: Ints  # [C]
    rows: Floats  # [C, S]


class StateFile(Protocol):
    """A file that can be read several times."""

    count: int | None  # rows, where the file says it

    def read(self, chunk_rows: int) -> Iterator[FileStates]:
        """All states in the order of the file. Raises CannotServe."""


def open_state_file(path: Path, card: Card) -> StateFile:
    """By the suffix: .parquet or .jsonl. Raises CannotServe."""
    if path.suffix not in (".parquet", ".jsonl"):
        raise CannotServe(f"{path}: the file's name must end with .jsonl or .parquet, as state export writes them")
    if not path.is_file():
        raise CannotServe(f"{path}: there is no such file")
    if path.suffix == ".jsonl":
        return _JsonStates(path, card)
    require("tables", f"{path}: reading Parquet", otherwise="use .jsonl")
    from lstmstream.states.parquet import ParquetStates  # noqa: PLC0415 -- needs polars

    return ParquetStates(path, card)


def check_states(path: Path, states: FileStates, identity: StateIdentity) -> None:
    """Whether they are of this identity, and what a state can be. Raises CannotServe."""
    wanted = identity.digest.hex()
    for found in states.identities:
        if found != wanted:
            whose = (
                "does not say which model and settings its states belong to"
                if found is None
                else (f"has states of another model or other settings (identity {found})")
            )
            raise CannotServe(f"{path}: {whose}; those of this configuration are {identity}, identity {wanted}")
    for name, values, least, most in (
        ("partition", states.partitions, UNNAMED, 2**31 - 1),
        ("steps", states.steps, 1, 2**62),
        ("failures", states.failures, 0, 2**16 - 1),
        ("timestamp", states.timestamps, 0, TIMESTAMP_MAX_MS),
        ("stream_time", states.stream_times, NEVER, TIMESTAMP_MAX_MS),
    ):
        if len(bad := np.flatnonzero((values < least) | (values > most))):
            raise CannotServe(f"{path}: row {states.first_row + bad[0]}: {name} is {values[bad[0]]}, which cannot be")
    if len(bad := np.flatnonzero(~np.isfinite(states.rows).all(axis=1))):
        raise CannotServe(f"{path}: row {states.first_row + bad[0]}: its state is not finite; the file is damaged")


class _JsonStates:
    """A StateFile of JSON lines."""

    def __init__(self, path: Path, card: Card) -> None:
        self.count: int | None = None
        self._path = path
        self._card = card

    def read(self, chunk_rows: int) -> Iterator[FileStates]:
        """See StateFile."""
        lines: list[bytes] = []
        row = 1
        try:
            with self._path.open("rb") as file:
                for line in file:
                    lines.append(line)
                    if len(lines) >= min(chunk_rows, _CHUNK_LINES):
                        yield self._chunk(row, lines)
                        row, lines = row + len(lines), []
        except OSError as error:
            raise CannotServe(f"{self._path}: cannot be read ({error.strerror or error})") from error
        if lines:
            yield self._chunk(row, lines)

    def _chunk(self, first_row: int, lines: list[bytes]) -> FileStates:
        size = self._card.state.size
        numbers = np.empty((len(lines), 5), np.int64)
        rows = np.empty((len(lines), size), np.float32)
        keys, identities = [], set()
        for i, line in enumerate(lines):
            try:
                state = orjson.loads(line)
                keys.append(_key(state))
                numbers[i] = (
                    _whole_or(UNNAMED, state.get("partition")),
                    timestamp_ms(state["timestamp"], "timestamp"),
                    NEVER if (time := state.get("stream_time")) is None else timestamp_ms(time, "stream_time"),
                    _whole(state["steps"]),
                    _whole_or(0, state.get("failures")),
                )
                identities.add(state.get("identity"))
                rows[i] = self._row(state["parts"])
            except (ValueError, TypeError, AttributeError, OverflowError, BadRecord) as error:
                raise CannotServe(f"{self._path}: line {first_row + i}: is not a state: {error}") from error
            except KeyError as error:
                raise CannotServe(f"{self._path}: line {first_row + i}: has no {error.args[0]}") from error
        partitions, timestamps, stream_times, steps, failures = numbers.T
        owners = list(identities)
        return FileStates(first_row, owners, keys, partitions, timestamps, stream_times, steps, failures, rows)

    def _row(self, parts: dict[str, Any]) -> Floats:
        spec = self._card.state
        row = np.empty(spec.size, np.float32)
        for part in spec.parts:
            with np.errstate(over="ignore"):  # infinity is refused later
                values = np.asarray(parts[part.name], np.float32)
            if values.shape != part.shape:
                raise ValueError(f"part {part.name!r} has the shape {list(values.shape)}, not {list(part.shape)}")
            row[part.offset : part.offset + values.size] = values.ravel()
        return row


def _key(state: dict[str, Any]) -> bytes | None:
    if (text := state.get("key_base64")) is not None:  # tables have both columns, and a null in one of them
        return b64decode(text, validate=True)
    key = state["key"]
    return None if key is None else str.encode(key)


def _whole_or(default: int, value: Any) -> int:
    return default if value is None else _whole(value)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r} is not a whole number")
    return value
