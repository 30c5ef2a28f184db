"""The events of training and evaluation: each key's events together, in order of time.

`sort_events` sorts chunks of rows as they were read. Data larger than `RAM_BYTES` are sorted through files, a share of
the keys at a time, and stay on disk as a memory map.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstmstream.errors import Fatal
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.formats.values import label_text
from lstmstream.history.fields import Chunk, Fields
from lstmstream.history.read import order_note, read_chunks
from lstmstream.model.card import Card, Feature
from lstmstream.records import Bools, Floats, Ints
from lstmstream.serve.decode import category_code

RAM_BYTES = 1_000_000_000  # of sorted rows; more than that is sorted on disk
SLICE_ROWS = 262_144  # rows that a pass over all events processes at a time
REPEATED_SHARE = 0.001  # of the events, from which on repeated ones are noted
_BUCKETS = 64  # of keys, on disk; one bucket at a time is sorted in memory


@dataclass(frozen=True, slots=True)
class Events:
    """N events of K keys: each key's events together, in order of time, then of rows. The arrays may lie on disk."""

    keys: list[str]  # [K]
    starts: Ints  # [K + 1] the rows of key k are starts[k]:starts[k + 1]
    timestamp: Ints  # [N] milliseconds since 1970 UTC
    elapsed: Floats  # [N] seconds since the key's previous event, NaN on its first
    x: Floats  # [N, F] raw numbers, NaN where missing
    codes: Ints  # [N, C] 0 where unknown or missing; after `sort_events` 1 + index in `texts`, then as serving codes it
    label: Ints  # [N] index of the class, -1 where unknown; [0] without a label field
    split: Ints  # [N] 1 + index in `split_names`, 0 where the field is empty; [0] without a split field
    texts: list[list[str]] = field(default_factory=list)  # C lists of category values, until `encode_categories`
    classes: tuple[str, ...] = ()  # values of the label
    split_names: tuple[str, ...] = ()  # values of the split field
    silent: Bools | None = None  # [N] events without a prediction; None: there are none
    first_unsorted: str = ""  # key and row of the first row that is older than its key's latest; empty if none is
    timed: bool = True  # whether the data have timestamps; else rows count as a second apart
    notes: tuple[str, ...] = ()  # what the user should know of the files, one line each
    sha256: str = ""  # of the rows in the order they were read
    statistics: Floats | None = None  # [N, H] of the key's earlier events, where the model's inputs include them
    scratch: tempfile.TemporaryDirectory[str] | None = None  # the folder of arrays on disk; owned by the events

    def __len__(self) -> int:
        return len(self.timestamp)

    @property
    def lengths(self) -> Ints:
        """[K] Number of events of each key."""
        return np.diff(self.starts)

    def key_indices(self) -> Ints:
        """[N] Index of the key of each row."""
        return np.repeat(np.arange(len(self.keys), dtype=np.int64), self.lengths)


def load_events(
    files: Sequence[Path],
    fields: Fields,
    *,
    csv: CsvOptions = FROM_FILE,
    ram_bytes: int | None = None,
) -> Events:
    """Reads and sorts the files. Raises CannotServe for files and values that cannot be read."""
    notes = [order_note(files)] if fields.timestamp is None and len(files) > 1 else []
    events = sort_events(
        read_chunks(files, fields, notes, csv), fields, ram_bytes=RAM_BYTES if ram_bytes is None else ram_bytes
    )
    repeated = repeated_events(events)
    if repeated > REPEATED_SHARE * len(events):
        notes.append(
            f"{repeated:,} of {len(events):,} events repeat an earlier one, with the same key, time and values; if"
            " exports overlap, remove the repetitions: they count twice, in training and in every metric"
        )
    return replace(events, notes=tuple(notes))


def repeated_events(events: Events) -> int:
    """The number of events that equal an earlier one of their key in time, numbers and categories, whatever the label.

    0 where the data have no times. Repetitions on both sides of a slice of SLICE_ROWS rows are not counted.
    """
    if not events.timed:
        return 0
    is_first = np.zeros(len(events) + 1, np.bool_)  # of its key
    is_first[events.starts] = True
    width = events.x.shape[1] + events.codes.shape[1] + 1
    factors = np.random.default_rng(0).integers(-(2**62), 2**62, width) * 2 + 1
    count = 0
    for rows in row_slices(len(events)):
        time = np.asarray(events.timestamp[rows])
        is_new = np.append(True, np.diff(time) != 0) | is_first[: len(events)][rows]
        group = np.cumsum(is_new)
        several = np.flatnonzero(np.bincount(group)[group] > 1)
        if not len(several):
            continue
        numbers = np.ascontiguousarray(events.x[rows][several]).view(np.int32)
        values = np.column_stack([group[several], numbers, events.codes[rows][several]]).astype(np.int64)
        count += len(several) - len(np.unique((values * factors).sum(axis=1)))  # by a hash of 64 bits
    return count


def load_events_for_card(
    files: Sequence[Path],
    card: Card,
    *,
    key: str | None,
    timestamp: str | None,
    target: str | None,
    silent: tuple[str, str] | None = None,
    csv: CsvOptions = FROM_FILE,
) -> Events:
    """The events with the numbers and category codes of a model's card.

    `target` names the label's field, `silent` the field of events without a prediction and its value there.

    Raises CannotServe.
    """
    numbers, categories = (tuple(feature.name for feature in group) for group in (card.numbers, card.categories))
    sizes = tuple(feature.size for feature in card.numbers)
    fields = Fields(key, timestamp, numbers, categories, label=target, silent=silent, sizes=sizes)
    events = load_events(files, fields, csv=csv)
    return encode_categories(events, card.categories)


def encode_categories(events: Events, features: Sequence[Feature]) -> Events:
    """The events with codes as serving computes them, by vocabulary or buckets. Changes `events.codes` in place."""
    for column, feature in enumerate(features):
        code = category_code(feature)
        codes = np.array([0, *map(code, events.texts[column])], np.int64)  # 0, a missing value, stays 0
        for rows in row_slices(len(events)):
            events.codes[rows, column] = codes[events.codes[rows, column]]
    return replace(events, texts=[])


def order_classes(events: Events, wanted: Sequence[str]) -> Events:
    """The events with labels as indices into `wanted`; a class that is not in it counts as unknown, -1. In place."""
    if not len(events.label):
        return replace(events, classes=tuple(wanted))
    indices = {label_text(text): index for index, text in enumerate(wanted)}  # a class may be named True, for 1
    indices |= {text: index for index, text in enumerate(wanted)}
    codes = np.array([*(indices.get(text, -1) for text in events.classes), -1], np.int64)  # the last is for -1
    for rows in row_slices(len(events)):
        events.label[rows] = codes[events.label[rows]]
    return replace(events, classes=tuple(wanted))


def row_slices(rows: int) -> Iterable[slice]:
    """Slices of at most SLICE_ROWS rows that together cover `rows` rows."""
    return (slice(start, min(start + SLICE_ROWS, rows)) for start in range(0, rows, SLICE_ROWS))


def sort_events(chunks: Iterable[Chunk], fields: Fields, *, ram_bytes: int = RAM_BYTES) -> Events:
    """Sorts rows by key and time. The result does not depend on whether `ram_bytes` sends the rows through files.

    `elapsed` is computed in float64 and rounded to float32, as in serving.
    """
    kind = _row_type(fields)
    encoder = _RowEncoder(fields)
    digest = hashlib.sha256()
    held: list[np.ndarray[Any, Any]] = []
    spool: _Spool | None = None
    try:
        for chunk in chunks:
            rows = encoder.rows(chunk, kind)
            digest.update(_without_split(rows).tobytes())  # by row: file format and chunk size do not matter
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
    for texts in encoder.all_texts():  # codes mean nothing without the texts
        digest.update(repr(texts).encode())
    starts = np.append(np.flatnonzero(np.append(True, np.diff(rows["key"]) != 0)[: len(rows)]), len(rows))
    names = list(encoder.keys)
    return Events(
        keys=[names[code] for code in rows["key"][starts[:-1]].tolist()],
        starts=starts.astype(np.int64),
        timestamp=rows["timestamp"],
        elapsed=rows["elapsed"],
        x=rows["x"],
        codes=rows["codes"],
        label=rows["label"] if fields.label is not None else np.empty(0, np.int64),
        split=rows["split"] if fields.split is not None else np.empty(0, np.int64),
        texts=[list(texts) for texts in encoder.categories],
        classes=tuple(encoder.labels),
        split_names=tuple(encoder.splits),
        silent=rows["silent"] if fields.silent is not None else None,
        first_unsorted=encoder.first_unsorted,
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
            ("x", np.float32, (sum(fields.widths),)),
            ("codes", np.int64, (len(fields.categories),)),
            ("label", np.int64),
            ("split", np.int64),
            *([] if fields.silent is None else [("silent", np.bool_)]),
        ]
    )


class _RowEncoder:
    """Chunks to structured rows; texts become whole numbers in the order in which they first occur."""

    def __init__(self, fields: Fields) -> None:
        self.keys: dict[str, int] = {}
        self.categories: list[dict[str, int]] = [{} for _ in fields.categories]
        self.labels: dict[str, int] = {}
        self.splits: dict[str, int] = {}
        self.first_unsorted = ""
        self._latest: list[int] = []  # timestamp by key

    def all_texts(self) -> list[list[str]]:
        """The texts behind the codes of keys, categories and labels."""
        return [list(texts) for texts in (self.keys, *self.categories, self.labels)]

    def rows(self, chunk: Chunk, kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """[M] of dtype `kind`, with `elapsed` still 0."""
        rows = np.zeros(len(chunk), kind)
        rows["key"] = [self.keys.setdefault(key, len(self.keys)) for key in chunk.keys]
        rows["timestamp"] = chunk.timestamp
        rows["x"] = np.where(np.isnan(chunk.x), np.float32(np.nan), chunk.x)  # one bit pattern of NaN for the digest
        rows["row"] = np.arange(chunk.first_row, chunk.first_row + len(chunk))
        for column, (texts, codes) in enumerate(zip(chunk.categories, self.categories, strict=True)):
            rows["codes"][:, column] = _encode(texts, codes)
        rows["label"] = _encode(chunk.label or [None] * len(chunk), self.labels) - 1
        rows["split"] = _encode(chunk.split or [None] * len(chunk), self.splits)
        if chunk.silent is not None:
            rows["silent"] = chunk.silent
        self._check_order(chunk, rows["key"])
        return rows

    def _check_order(self, chunk: Chunk, keys: Ints) -> None:
        """Notes the first row that is older than its key's latest."""
        if self.first_unsorted:
            return
        self._latest += [-(2**62)] * (len(self.keys) - len(self._latest))
        latest = self._latest
        for index, (key, time) in enumerate(zip(keys.tolist(), chunk.timestamp.tolist(), strict=True)):
            if time < latest[key]:
                self.first_unsorted = f"key {chunk.keys[index]!r}, row {chunk.first_row + index}"
                return
            latest[key] = time


def _without_split(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows with the split set to 0: the digest names the data, not how they are divided."""
    if not rows["split"].any():
        return rows
    rows = rows.copy()
    rows["split"] = 0
    return rows


def _encode(texts: Sequence[str | None], codes: dict[str, int]) -> Ints:
    """[M] 1 + the code of each text, 0 for None; `codes` grows by the new texts."""
    return np.array([0 if text is None else 1 + codes.setdefault(text, len(codes)) for text in texts], np.int64)


def _sorted(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows by bucket, key, time and row, with `elapsed` filled in."""
    rows = rows[np.lexsort((rows["row"], rows["timestamp"], rows["key"], rows["key"] % _BUCKETS))]
    if len(rows):
        elapsed = np.append(np.nan, np.diff(rows["timestamp"]) / 1000)
        elapsed[1:][np.diff(rows["key"]) != 0] = np.nan
        rows["elapsed"] = elapsed.astype(np.float32)
    return rows


@contextmanager
def disk_of(folder: str) -> Iterator[None]:
    """Raises Fatal where a temporary file cannot be written to `folder`, and says where else it could be."""
    try:
        yield
    except OSError as error:
        raise Fatal(
            f"{Path(folder).parent}: the events do not fit there ({error.strerror or error}); make room, or set the"
            " variable TMPDIR to a folder on another disk"
        ) from error


class _Spool:
    """Rows in files, one file for each bucket of keys."""

    def __init__(self, kind: np.dtype[Any]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="lstmstream-")
        self._kind = kind

    def _file(self, bucket: int) -> Path:
        return Path(self.folder.name) / f"bucket-{bucket}"

    def add(self, held: list[np.ndarray[Any, Any]]) -> None:
        """Appends rows to the files of their buckets."""
        for rows in held:
            buckets = rows["key"] % _BUCKETS
            order = np.argsort(buckets, kind="stable")
            bounds = np.searchsorted(buckets[order], np.arange(_BUCKETS + 1))
            for bucket in np.flatnonzero(np.diff(bounds)).tolist():
                with disk_of(self.folder.name), self._file(bucket).open("ab") as file:
                    file.write(rows[order[bounds[bucket] : bounds[bucket + 1]]].tobytes())

    def sorted(self) -> np.ndarray[Any, Any]:
        """All rows sorted, as a writable memory map; the bucket files are removed."""
        result = Path(self.folder.name) / "rows"
        with disk_of(self.folder.name), result.open("wb") as out:
            for bucket in range(_BUCKETS):
                if self._file(bucket).exists():
                    _sorted(np.fromfile(self._file(bucket), self._kind)).tofile(out)
                    self._file(bucket).unlink()
        return np.memmap(result, self._kind, mode="r+")
