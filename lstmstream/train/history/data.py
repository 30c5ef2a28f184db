"""History as training and evaluation want it: every key's events together, in order of time.

`gather` takes parts of rows as they were read and sorts them; what is larger than `RAM_BYTES` goes through files, a
share of the keys at a time, and stays on disk as a memory map. Knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from lstmstream.card import Card, Feature
from lstmstream.train.history.read import Fields, Floats, Ints, Part, read

RAM_BYTES = 1_000_000_000  # of sorted rows; more goes to disk
_BUCKETS = 64  # of keys, on disk: one at a time is sorted in memory
CHUNK_ROWS = 262_144  # rows that are looked at at once where all are looked at


@dataclass(frozen=True, slots=True)
class Events:
    """N events of K keys: each key's together, in order of time (then of rows). The arrays may lie on disk."""

    keys: list[str]  # [K]
    starts: Ints  # [K + 1] rows of key k are starts[k]:starts[k + 1]
    timestamp: Ints  # [N] ms since 1970 UTC
    elapsed: Floats  # [N] s since the key's previous event, NaN on its first
    x: Floats  # [N, F] raw numbers, NaN where missing
    codes: Ints  # [N, C] 0 where unknown or missing; else, after `gather`, 1 + place in `texts`, then by the features
    label: Ints  # [N] class, -1 where there is none; [0] without a label field
    part: Ints  # [N] as the data say: 1 + place in `parts`, 0 where it says nothing; [0] where nothing is said
    texts: list[list[str]] = field(default_factory=list)  # C lists: the values found, before `encode_categories`
    classes: tuple[str, ...] = ()  # the label's values
    parts: tuple[str, ...] = ()
    unsorted: str = ""  # the first key whose rows were not in order of time, and the row
    timed: bool = True  # whether the data say when; else rows count as a second apart
    sha256: str = ""  # of what was read, in the order it was read
    scratch: tempfile.TemporaryDirectory[str] | None = None  # goes with the events

    def __len__(self) -> int:
        return len(self.timestamp)

    @property
    def lengths(self) -> Ints:
        """[K] Events of each key."""
        return np.diff(self.starts)

    def sequence(self) -> Ints:
        """[N] The key, by its index, of each row."""
        return np.repeat(np.arange(len(self.keys), dtype=np.int64), self.lengths)


def load(files: Sequence[Path], fields: Fields, *, ram_bytes: int | None = None) -> Events:
    """Reads and sorts. Raises CannotServe for what cannot be read."""
    return gather(read(files, fields), fields, ram_bytes=RAM_BYTES if ram_bytes is None else ram_bytes)


def load_for_card(
    files: Sequence[Path], card: Card, *, key: str | None, timestamp: str | None, target: str | None
) -> Events:
    """The events as a model wants them: numbers and codes by its card. `target` names the label's field."""
    numbers, categories = ([feature.name for feature in group] for group in (card.numbers, card.categories))
    events = load(files, Fields(key, timestamp, tuple(numbers), tuple(categories), label=target))
    return encode_categories(events, card.categories)


def encode_categories(events: Events, features: Sequence[Feature]) -> Events:
    """The events with codes as serving makes them: by vocabulary or buckets. Changes `events` in place."""
    for column, feature in enumerate(features):
        known = {text: place for place, text in enumerate(feature.vocabulary or (), start=1)}
        codes = np.zeros(len(events.texts[column]) + 1, np.int64)  # 0 stays 0: missing
        for place, text in enumerate(events.texts[column], start=1):
            codes[place] = known.get(text, 0) if feature.buckets is None else 1 + crc32(text.encode()) % feature.buckets
        for chunk in chunks(len(events)):
            events.codes[chunk, column] = codes[events.codes[chunk, column]]
    return replace(events, texts=[])


def order_classes(events: Events, wanted: Sequence[str]) -> Events:
    """The events with labels by the place of their text in `wanted`; other texts count as no label. In place."""
    if not len(events.label):
        return replace(events, classes=tuple(wanted))
    known = {text: place for place, text in enumerate(wanted)}
    codes = np.array([*(known.get(text, -1) for text in events.classes), -1], np.int64)  # the last is for -1
    for chunk in chunks(len(events)):
        events.label[chunk] = codes[events.label[chunk]]
    return replace(events, classes=tuple(wanted))


def chunks(rows: int) -> Iterable[slice]:
    """Slices that cover `rows` rows."""
    return (slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS))


def gather(parts: Iterable[Part], fields: Fields, *, ram_bytes: int = RAM_BYTES) -> Events:
    """Sorts rows by key and time: the same events whether or not `ram_bytes` sends them through files.

    `elapsed` is computed in float64 and rounded to float32, as in serving.
    """
    kind = _row_type(fields)
    codes = _Codes(fields)
    digest = hashlib.sha256()
    held: list[np.ndarray[Any, Any]] = []
    spool: _Spool | None = None
    try:
        for part in parts:
            rows = codes.rows(part, kind)
            digest.update(_unsplit(rows).tobytes())  # by row: the format and the parts it was read in do not matter
            held.append(rows)
            if spool is None and sum(map(len, held)) * kind.itemsize > ram_bytes:
                spool = _Spool(kind)
            if spool is not None:
                spool.add(held)
                held = []
        if spool is None:
            rows = np.concatenate([np.empty(0, kind), *held])
            held.clear()
            rows = _sorted(rows)
        else:
            rows = spool.sorted()
    except BaseException:
        if spool is not None:
            spool.folder.cleanup()
        raise
    for texts in codes.found():  # codes mean nothing without the texts
        digest.update(repr(texts).encode())
    starts = np.append(np.flatnonzero(np.append(True, np.diff(rows["key"]) != 0)[: len(rows)]), len(rows))
    names = list(codes.keys)
    return Events(
        keys=[names[place] for place in rows["key"][starts[:-1]].tolist()],
        starts=starts.astype(np.int64),
        timestamp=rows["timestamp"],
        elapsed=rows["elapsed"],
        x=rows["x"],
        codes=rows["codes"],
        label=rows["label"] if fields.label is not None else np.empty(0, np.int64),
        part=rows["part"] if fields.part is not None else np.empty(0, np.int64),
        texts=[list(texts) for texts in codes.categories],
        classes=tuple(codes.labels),
        parts=tuple(codes.parts),
        unsorted=codes.unsorted,
        timed=fields.timestamp is not None,
        sha256=digest.hexdigest(),
        scratch=None if spool is None else spool.folder,
    )


def _row_type(fields: Fields) -> np.dtype[Any]:
    return np.dtype(
        [
            ("key", np.int64),
            ("timestamp", np.int64),
            ("row", np.int64),
            ("elapsed", np.float32),
            ("x", np.float32, (len(fields.numbers),)),
            ("codes", np.int64, (len(fields.categories),)),
            ("label", np.int64),
            ("part", np.int64),
        ]
    )


class _Codes:
    """Texts to whole numbers, in the order they are met."""

    def __init__(self, fields: Fields) -> None:
        self.keys: dict[str, int] = {}
        self.categories: list[dict[str, int]] = [{} for _ in fields.categories]
        self.labels: dict[str, int] = {}
        self.parts: dict[str, int] = {}
        self.unsorted = ""
        self._latest: list[int] = []  # timestamp by key

    def found(self) -> list[list[str]]:
        return [list(texts) for texts in (self.keys, *self.categories, self.labels)]

    def rows(self, part: Part, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
        rows = np.zeros(len(part), kind)
        rows["key"] = [self.keys.setdefault(key, len(self.keys)) for key in part.keys]
        rows["timestamp"] = part.timestamp
        rows["x"] = np.where(np.isnan(part.x), np.float32(np.nan), part.x)  # one NaN, whoever wrote it
        rows["row"] = np.arange(part.first_row, part.first_row + len(part))
        for column, (texts, known) in enumerate(zip(part.categories, self.categories, strict=True)):
            rows["codes"][:, column] = _coded(texts, known)
        rows["label"] = _coded(part.label or [None] * len(part), self.labels) - 1
        rows["part"] = _coded(part.part or [None] * len(part), self.parts)
        self._look_at_order(part, rows["key"])
        return rows

    def _look_at_order(self, part: Part, keys: Ints) -> None:
        """Notes the first row that is older than its key's latest."""
        if self.unsorted:
            return
        self._latest += [-(2**62)] * (len(self.keys) - len(self._latest))
        latest = self._latest
        for place, (key, time) in enumerate(zip(keys.tolist(), part.timestamp.tolist(), strict=True)):
            if time < latest[key]:
                self.unsorted = f"key {part.keys[place]!r}, row {part.first_row + place}"
                return
            latest[key] = time


def _unsplit(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The same data, however they are divided."""
    if not rows["part"].any():
        return rows
    rows = rows.copy()
    rows["part"] = 0
    return rows


def _coded(texts: Sequence[str | None], known: dict[str, int]) -> Ints:
    """1 + the place of each text, 0 for none."""
    return np.array([0 if text is None else 1 + known.setdefault(text, len(known)) for text in texts], np.int64)


def _sorted(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = rows[np.lexsort((rows["row"], rows["timestamp"], rows["key"], rows["key"] % _BUCKETS))]
    if len(rows):
        elapsed = np.append(np.nan, np.diff(rows["timestamp"]) / 1000)
        elapsed[1:][np.diff(rows["key"]) != 0] = np.nan
        rows["elapsed"] = elapsed.astype(np.float32)
    return rows


class _Spool:
    """Rows on disk, in buckets of keys."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="lstmstream-")
        self._kind = kind

    def _file(self, bucket: int) -> Path:
        return Path(self.folder.name) / f"bucket-{bucket}"

    def add(self, held: list[np.ndarray[Any, Any]]) -> None:
        for rows in held:
            bucket = rows["key"] % _BUCKETS
            order = np.argsort(bucket, kind="stable")
            bounds = np.searchsorted(bucket[order], np.arange(_BUCKETS + 1))
            for one in np.flatnonzero(np.diff(bounds)).tolist():
                with self._file(one).open("ab") as file:
                    file.write(rows[order[bounds[one] : bounds[one + 1]]].tobytes())

    def sorted(self) -> np.ndarray[Any, Any]:
        whole = Path(self.folder.name) / "rows"
        with whole.open("wb") as out:
            for bucket in range(_BUCKETS):
                if self._file(bucket).exists():
                    _sorted(np.fromfile(self._file(bucket), self._kind)).tofile(out)
                    self._file(bucket).unlink()
        return np.memmap(whole, self._kind, mode="r+")
