"""One table of typed values written as JSONL, CSV and Parquet, as each of them spells its types. Needs polars."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from hypothesis import strategies as st

KINDS = ("jsonl", "csv", "parquet")
Column = tuple[pl.DataType | type[pl.DataType], list[Any]]

TEXTS = st.sampled_from(
    ["web", "app", "7", "17", "17.0", "17.5", "-0.0", "007", "1e5", "+5", " A", "True", "false", "TRUE", "", "é", "nan",
     "null", "1.70e1", "2018-04-01", 'a,"b"', "9007199254740993.0"]
) | st.text("abZ09.-+eE ", max_size=6)  # fmt: skip
INTS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 20) | st.sampled_from([2**53 + 1, -(2**53) - 1])
LARGE_INTS = st.integers(0, 2**64 - 1) | st.sampled_from([2**64 - 1, 2**63])
WHOLE = (st.integers(-(2**53), 2**53) | st.integers(-3, 20)).map(float)
DECIMALS = (st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 20)).map(Decimal)
DATES = st.dates(date(1900, 1, 1), date(2100, 12, 31))
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 12, 31)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
)

TEXT_KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pl.String, TEXTS), (pl.Int64, INTS), (pl.UInt64, LARGE_INTS), (pl.Float64, WHOLE), (pl.Decimal(38, 0), DECIMALS),
]  # fmt: skip
CATEGORY_KINDS = [*TEXT_KINDS, (pl.Boolean, st.booleans()), (pl.Date, DATES)]
NUMBER_KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pl.Int64, INTS),
    (pl.UInt64, LARGE_INTS),
    (pl.Float64, st.floats(-3e38, 3e38)),
    (pl.Decimal(38, 3), st.integers(-(10**20), 10**20).map(lambda number: Decimal(number) / 1000)),
]
TIME_KINDS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (pl.String, MOMENTS.map(lambda moment: moment.isoformat())),
    (pl.String, DATES.map(lambda day: day.strftime("%Y%m%d"))),
    (pl.Int64, st.integers(-(10**10), 10**13) | DATES.map(lambda day: int(day.strftime("%Y%m%d")))),
    (pl.Int64, MOMENTS.map(lambda moment: int(moment.strftime("%Y%m%d%H%M%S")))),
    (pl.Float64, st.integers(-(10**9), 2 * 10**12).map(lambda ms: ms / 1000)),
    (pl.Float64, MOMENTS.map(lambda moment: float(moment.strftime("%Y%m%d%H%M")))),
    (pl.Decimal(38, 6), st.integers(0, 2 * 10**12).map(lambda ms: Decimal(ms) / 1000)),
    (pl.Datetime("us"), MOMENTS),
    (pl.Datetime("ns"), st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1))),
    (pl.Date, DATES),
]
LABEL_KINDS = [*TEXT_KINDS, (pl.Boolean, st.booleans())]


class Table(NamedTuple):
    """Columns by their names, and whether JSONL has a name with dots as it is or nested, row by row."""

    columns: dict[str, Column]
    nested: list[bool]

    def write(self, folder: Path) -> dict[str, Path]:
        """The files by their kind."""
        files = {kind: folder / f"table.{kind}" for kind in KINDS}
        names = list(self.columns)
        rows = list(zip(*(values for _, values in self.columns.values()), strict=True))
        files["jsonl"].write_text(
            "".join(
                _json_line(dict(zip(names, row, strict=True)), nested=nested) + "\n"
                for row, nested in zip(rows, self.nested, strict=True)
            )
        )
        lines = [",".join(names), *(",".join(map(_cell, row)) for row in rows)]
        files["csv"].write_text("".join(line + "\n" for line in lines))
        pl.DataFrame(
            {name: pl.Series(values, dtype=kind) for name, (kind, values) in self.columns.items()}
        ).write_parquet(files["parquet"])
        return files


@st.composite
def tables(draw: st.DrawFn, /, **columns: tuple[list[tuple[Any, st.SearchStrategy[Any]]], bool]) -> Table:
    """A table of some rows. Each column has a list of possible types with their values, and whether cells may be empty.

    In the columns' names `__` stands for a dot.
    """
    count = draw(st.integers(1, 6))
    made: dict[str, Column] = {}
    for name, (kinds, may_be_missing) in columns.items():
        kind, values = draw(st.sampled_from(kinds))
        cells = st.none() | values if may_be_missing else values
        made[name.replace("__", ".")] = kind, draw(st.lists(cells, min_size=count, max_size=count))
    return Table(made, draw(st.lists(st.booleans(), min_size=count, max_size=count)))


def _json_line(row: dict[str, Any], *, nested: bool) -> str:
    event: dict[str, Any] = {}
    for name, value in row.items():
        outer, _, last = name.rpartition(".")
        (event.setdefault(outer, {}) if outer and nested else event)[last if nested else name] = _json_type(value)
    return json.dumps(event)


def _json_type(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return value.isoformat() if isinstance(value, date) else value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return '"' + value.replace('"', '""') + '"'
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
