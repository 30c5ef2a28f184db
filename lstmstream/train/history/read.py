"""Files to batches of plain columns: CSV, JSONL or Parquet, a part at a time, so that a file may exceed the memory.

Knows field names and types, and gives a value the meaning that the daemon gives it in an event: a line of JSONL goes
through the daemon's own decoder, and what would be a dead letter there is refused here. Knows nothing of keys' order,
parts or scaling.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from lstmstream.card import Card, Feature, StateSpec
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.serve import csv_files
from lstmstream.serve.decode import (
    EXACT_INTEGER_MAX,
    SECONDS_BELOW,
    TIMESTAMP_MAX_MS,
    TIMESTAMP_MIN_MS,
    Decoder,
    timestamp_ms,
)
from lstmstream.serve.records import RecordBatch

BATCH_ROWS = 131_072
_LINES = 16_384  # of JSONL at once: as objects they are larger than in the file
_JSONL = {".jsonl", ".ndjson", ".json"}
_SHOWN = 30  # names of fields in an error
_ABSENT = object()
_BLANK = "\0blank"  # a column's name that no file has
_CODE = re.compile(r"\s*[+-]?0\d|.*_")  # no number, though Python would take it for one
_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Fields:
    """Which fields of an event are read."""

    key: str | None
    timestamp: str | None
    numbers: tuple[str, ...]
    categories: tuple[str, ...]
    label: str | None = None
    part: str | None = None  # says train, validation or test

    def all(self) -> tuple[str, ...]:
        """Each once, in the order above."""
        one = [field for field in (self.key, self.timestamp, self.label, self.part) if field is not None]
        return tuple(dict.fromkeys([*one, *self.numbers, *self.categories]))


@dataclass(frozen=True, slots=True)
class Part:
    """M rows of the files, in their order. Texts are None where the field is missing."""

    first_row: int  # its place in all rows but blank ones, from 0
    keys: list[str]  # [M]
    timestamp: Ints  # [M] ms since 1970 UTC
    x: Floats  # [M, F] NaN where missing
    categories: list[list[str | None]]  # C lists of M
    label: list[str | None] | None  # [M]
    part: list[str | None] | None  # [M]

    def __len__(self) -> int:
        return len(self.timestamp)


def resolve(paths: Sequence[str], folder: Path) -> list[Path]:
    """The files that `paths` name, each once, patterns filled in by name. Raises CannotServe."""
    files: list[Path] = []
    for entry in paths:
        place = folder / entry
        if place.is_file():  # whatever is in its name
            files.append(place)
        elif any(char in entry for char in "*?["):
            found = [path for path in map(Path, sorted(glob.glob(str(place)))) if path.is_file()]  # noqa: PTH207 -- the pattern may be absolute
            if not found:
                raise CannotServe(f"data.path: no file matches {entry}; check the pattern, it starts from {folder}")
            files += found
        elif place.exists():
            raise CannotServe(f"data.path: {place} is no file; write a pattern, such as {entry.rstrip('/')}/*.parquet")
        else:
            raise CannotServe(f"data.path: {place} does not exist; relative paths start from {folder}")
    return list(dict.fromkeys(files))


def read(files: Sequence[Path], fields: Fields) -> Iterator[Part]:
    """The rows of the files, in parts. Raises CannotServe, naming file, field and the row in the file, from 0."""
    row = 0
    lines = _Lines(fields)
    for file in files:
        for part in lines.read(file, row) if file.suffix.lower() in _JSONL else _table(file, fields, row):
            yield part
            row += len(part)
    if problems := lines.absent(files[0] if len(files) == 1 else "data.path"):
        raise CannotServe(*problems)


def _no_field(where: object, name: str, there: Iterable[str]) -> str:
    known = ", ".join(map(repr, islice(there, _SHOWN)))
    return f"{where}: there is no field {name!r}; it has {known}; name one of these, or bring data that have it"


# --- JSONL -----------------------------------------------------------------------------------------------------------


class _Lines:
    """Rows of JSON objects. A field may be absent from rows and from whole files, but not from all."""

    def __init__(self, fields: Fields) -> None:
        features = [Feature(name, "number") for name in fields.numbers]
        features += [Feature(name, "category", buckets=1) for name in fields.categories]
        card = Card("train", "1", "classify", tuple(features), StateSpec(1, (0.0,), ()), ())
        self._decoder = Decoder(card, key=fields.key, timestamp=fields.timestamp)
        self._fields = fields
        self._unseen = set(fields.all())
        self._empty = True
        self._names: dict[str, None] = {}  # some of those there are

    def read(self, file: Path, first: int) -> Iterator[Part]:
        """The rows of one file; the first of them has the place `first` among all."""
        row = 0
        try:
            with file.open("rb") as opened:
                filled = (line.rstrip(b"\r\n") for line in opened if line.strip())
                while values := list(islice(filled, _LINES)):
                    yield self._part(file, values, row, first)
                    row += len(values)
        except OSError as error:
            raise CannotServe(f"{file}: cannot be read: {error.strerror}") from error

    def absent(self, where: object) -> list[str]:
        """A sentence for each field that no row has, where there are rows."""
        if self._empty:
            return []
        return [_no_field(where, name, self._names) for name in self._fields.all() if name in self._unseen]

    def _part(self, file: Path, values: list[bytes], row: int, first: int) -> Part:
        count = len(values)
        self._empty = False
        columns, letters = self._decoder.decode(
            RecordBatch(
                topic=str(file),
                partitions=np.zeros(count, np.int64),
                offsets=np.arange(row, row + count),
                timestamps=np.arange(first + row, first + row + count) * 1000,
                keys=[b""] * count,
                values=list(values),
                headers=[()] * count,
            )
        )
        if letters:
            where, what = row + letters[0].index, letters[0].message
            raise CannotServe(f"{file}: row {where}: {what}; mend it, or leave the row out")
        documents = [_object(value) for value in values]
        if len(self._names) < _SHOWN:
            self._names |= dict.fromkeys(name for document in documents[:_SHOWN] for name in document)
        for name in list(self._unseen):
            if any(_at(document, name) is not _ABSENT for document in documents):
                self._unseen.discard(name)

        rows = range(row, row + count)

        def texts(name: str) -> list[str | None]:
            return _each((_at(document, name) for document in documents), lambda value: _text(value, name), file, rows)

        fields = self._fields
        return Part(
            first_row=first + row,
            keys=[(key or b"").decode() for key in columns.keys],
            timestamp=columns.timestamps,
            x=columns.x,
            categories=[texts(name) for name in fields.categories],
            label=None if fields.label is None else texts(fields.label),
            part=None if fields.part is None else texts(fields.part),
        )


def _object(value: bytes) -> dict[str, Any]:
    """A line that the decoder has accepted."""
    try:
        document: dict[str, Any] = orjson.loads(value)
    except orjson.JSONDecodeError:  # 1e400 in a field that nobody wants
        document = json.loads(value)
    return document


def _at(document: Any, path: str) -> Any:
    """What lies at the end of the path; a path through something that is no object finds nothing."""
    for name in path.split("."):
        if type(document) is not dict or name not in document:
            return _ABSENT
        document = document[name]
    return document


def _text(value: Any, name: str) -> str | None:
    """A category's or a label's text. The decoder has refused what no category may be; labels may be more."""
    if value is None or value is _ABSENT or type(value) is str:
        return value if type(value) is str else None
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        if abs(value) <= EXACT_INTEGER_MAX:
            return str(int(value))
        raise BadRecord("validate", f"field {name!r} is an integer beyond 2^53; write such ids as text")
    raise BadRecord("validate", f"field {name!r} is neither text nor a whole number")


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(file: Path, fields: Fields, first: int) -> Iterator[Part]:
    """Rows of CSV or Parquet; blank rows of CSV are left out."""
    row = 0  # in this file
    try:
        scan = _scan(file, fields)
        columns = _columns(file, scan, fields)
        if _is_csv(file):
            columns.append(pl.all_horizontal(pl.all().is_null()).alias(_BLANK))
        for frame in scan.select(columns).collect_batches(maintain_order=True, chunk_size=BATCH_ROWS):
            rows: Sequence[int] = range(row, row + len(frame))
            row += len(frame)
            if _is_csv(file) and frame[_BLANK].any():
                rows = [rows[place] for place in (~frame[_BLANK]).arg_true()]
                frame = frame.filter(~pl.col(_BLANK))  # noqa: PLW2901 -- the same rows
            if rows:
                yield _part(file, frame, fields, rows, first)
                first += len(rows)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise csv_files.unreadable(file, error) from error


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _scan(file: Path, fields: Fields) -> pl.LazyFrame:
    if file.suffix.lower() == ".parquet":
        return pl.scan_parquet(file)
    if _is_csv(file):  # all as it is written: 007 is not 7
        csv_files.refuse_other_formats(file, fields.all())
        return pl.scan_csv(file, infer_schema=False)
    raise CannotServe(f"{file}: is neither .csv, .jsonl nor .parquet; convert it, or rename it")


def _columns(file: Path, scan: pl.LazyFrame, fields: Fields) -> list[pl.Expr]:
    """One expression for each field, under the field's own name."""
    schema = scan.collect_schema()
    expressions, problems = [], []
    for name in fields.all():
        expression = _find(name, schema)
        if expression is None:
            problems.append(_no_field(file, name, schema.names()))
        else:
            expressions.append(expression.alias(name))
    if problems:
        raise CannotServe(*problems)
    return expressions


def _find(name: str, schema: pl.Schema) -> pl.Expr | None:
    """A column of that name, or what lies at the end of that path through objects."""
    if name in schema:
        return pl.col(name)
    first, *rest = name.split(".")
    here: Any = schema.get(first)
    expression = pl.col(first)
    for inner in rest:
        if not isinstance(here, pl.Struct):
            return None
        here = {field.name: field.dtype for field in here.fields}.get(inner)
        expression = expression.struct.field(inner)
    return None if here is None else expression


def _part(file: Path, frame: pl.DataFrame, fields: Fields, rows: Sequence[int], first: int) -> Part:
    """`rows` are the frame's in the file; `first` is the place of the first among all that are kept."""

    def texts(name: str, *, label: bool = False) -> list[str | None]:
        return _texts(file, frame[name], rows, label=label)

    if fields.key is None:
        keys = [""] * len(frame)
    else:
        found = texts(fields.key)
        if None in found:
            where = rows[found.index(None)]
            raise CannotServe(f"{file}: row {where}: field {fields.key!r}, the key, is missing; leave such rows out")
        keys = [key for key in found if key is not None]
    if fields.timestamp is None:
        timestamp = np.arange(first, first + len(frame), dtype=np.int64) * 1000
    else:
        timestamp = _times(file, frame[fields.timestamp], rows)
    x = np.empty((len(frame), len(fields.numbers)), np.float32)
    for column, name in enumerate(fields.numbers):
        x[:, column] = _numbers(file, frame[name], rows)
    return Part(
        first_row=first,
        keys=keys,
        timestamp=timestamp,
        x=x,
        categories=[texts(name) for name in fields.categories],
        label=None if fields.label is None else texts(fields.label, label=True),
        part=None if fields.part is None else texts(fields.part),
    )


def _texts(file: Path, series: pl.Series, rows: Sequence[int], *, label: bool = False) -> list[str | None]:
    """Text, and whole numbers by their decimal text; of a table also whole floats: ids are, where some are missing.

    As a `label`, true and false are 1 and 0, which the daemon takes neither for a key nor for a category; and CSV's 1.0
    is 1, as in any other file.
    """
    kind = series.dtype
    if label and kind == pl.Boolean:
        series = series.cast(pl.Int8)
    elif label and _is_csv(file):
        known = {text: label_text(text) for text in series.unique()}
        return [known[text] for text in series]
    elif kind.is_integer():
        bounds = [abs(int(bound)) for bound in (series.min(), series.max()) if isinstance(bound, int)]
        if max(bounds, default=0) > EXACT_INTEGER_MAX:
            raise CannotServe(f"{file}: field {series.name!r} has integers beyond 2^53; write such ids as text")
    elif kind.is_float() or kind.is_decimal():
        series = series.cast(pl.Float64).fill_nan(None)
        wrong = (series != series.round()) | (series.abs() > EXACT_INTEGER_MAX)
        if wrong.any():
            place = int(wrong.fill_null(value=False).arg_true()[0])
            raise CannotServe(
                f"{file}: row {rows[place]}: field {series.name!r} is {series[place]}, and neither text nor a whole"
                " number up to 2^53, as a key, a category and a label must be; name it under features.numbers, or"
                " write text"
            )
        series = series.cast(pl.Int64)
    elif kind not in {pl.String, pl.Null} and not isinstance(kind, pl.Categorical | pl.Enum):
        raise CannotServe(f"{file}: field {series.name!r} is {kind}, neither text nor whole numbers; write it as text")
    return series.cast(pl.String).to_list()


def label_text(text: str | None) -> str | None:
    """A whole number by its decimal text; what has leading zeros is a code, and stays."""
    try:
        value = float(text or "")
    except ValueError:
        return text
    if text is None or not value.is_integer() or abs(value) > EXACT_INTEGER_MAX or _CODE.match(text):
        return text
    return str(int(value))


def _numbers(file: Path, series: pl.Series, rows: Sequence[int]) -> Floats:
    """[M] float32, NaN where missing."""
    kind = series.dtype
    empty = series.null_count() == len(series)
    if kind == pl.String and (empty or _is_csv(file)):
        wide = csv_files.numbers(series)
        if wrong := csv_files.not_numbers(series, wide):
            place = wrong[0]
            raise CannotServe(
                f"{file}: row {rows[place]}: field {series.name!r} is {series[place][:40]!r}, not a number; leave it"
                " empty where it is missing, or name it under features.categories"
            )
    elif kind == pl.Boolean or not (kind.is_numeric() or kind == pl.Null):
        remedy = "write 0 and 1" if kind == pl.Boolean else "name it under features.categories, or mend the data"
        raise CannotServe(f"{file}: field {series.name!r} is {kind}, not a number; {remedy}")
    else:
        wide = series.cast(pl.Float64)
    with np.errstate(over="ignore"):
        values: Floats = wide.to_numpy().astype(np.float32)
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        where = rows[int(infinite[0])]
        raise CannotServe(
            f"{file}: row {where}: field {series.name!r} is not finite in float32; leave it empty, or mend it"
        )
    return values


def _times(file: Path, series: pl.Series, rows: Sequence[int]) -> Ints:
    """[M] ms since 1970 UTC, as the daemon reads a time. Raises CannotServe, naming the row."""
    mixed: list[Any] | None = None
    if _is_csv(file):
        cells = csv_files.values(series)
        types = set(map(type, cells))
        if types == {int}:
            series = pl.Series(series.name, cells, pl.Int64)
        elif types == {float}:
            series = pl.Series(series.name, cells, pl.Float64)
        else:
            mixed = cells
    kind = series.dtype
    if kind.is_float() or kind.is_decimal():
        series = series.cast(pl.Float64).fill_nan(None)
    missing = series.is_null()
    if missing.any():
        where = rows[int(missing.arg_true()[0])]
        raise CannotServe(f"{file}: row {where}: field {series.name!r}, the timestamp, is missing; leave such rows out")
    times: Ints | None = None
    if isinstance(kind, pl.Datetime):  # with a zone or without, it holds UTC
        times = series.to_physical().to_numpy() // _PER_MS[kind.time_unit]
    elif kind == pl.Date:
        times = series.to_physical().cast(pl.Int64).to_numpy() * 86_400_000
    elif kind.is_integer() and (whole := series.cast(pl.Int64, strict=False)).null_count() == 0:
        given = whole.to_numpy()
        with np.errstate(over="ignore"):
            times = np.where((given > -SECONDS_BELOW) & (given < SECONDS_BELOW), given * 1000, given)
    elif kind.is_temporal():
        raise CannotServe(f"{file}: field {series.name!r} is {kind}, not a time; give date and time, or an epoch")
    if times is None:
        return np.array(_each(mixed or series, lambda value: timestamp_ms(value, series.name), file, rows), np.int64)
    outside = np.flatnonzero((times < TIMESTAMP_MIN_MS) | (times > TIMESTAMP_MAX_MS))
    if len(outside):
        where = rows[int(outside[0])]
        raise CannotServe(f"{file}: row {where}: field {series.name!r} lies outside years 1..9999; mend it")
    return times


def _each(values: Iterable[Any], read_one: Callable[[Any], Any], file: Path, rows: Sequence[int]) -> list[Any]:
    found = []
    for place, value in enumerate(values):
        try:
            found.append(read_one(value))
        except BadRecord as bad:
            raise CannotServe(f"{file}: row {rows[place]}: {bad}; mend it, or leave the row out") from bad
    return found
