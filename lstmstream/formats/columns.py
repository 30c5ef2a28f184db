"""Columns of CSV and Parquet: where a field's column is, and which types it may have for what it is read as.

Scoring and training both ask here, so that neither takes a column that the other refuses. Needs polars.
"""

from __future__ import annotations

from typing import Any, Literal

import polars as pl

ColumnRole = Literal["key", "category", "label", "split", "number", "array", "time"]

_TEXT_ADVICE = "neither text nor whole numbers; write it as text"


def find_column(name: str, schema: pl.Schema) -> pl.Expr | None:
    """The column of that name, or the value at the end of its dots through structs; None where there is neither.

    Names may have dots on every level, as in events: the longest name that leads to the end counts.
    """
    if name in schema:
        return pl.col(name)
    for column, rest in _cuts(name):
        if column in schema and (path := _struct_path(rest, schema[column])) is not None:
            expression = pl.col(column)
            for inner in path:
                expression = expression.struct.field(inner)
            return expression
    return None


def is_repeated(name: str, schema: pl.Schema) -> bool:
    """Whether a CSV header has the column twice: polars gives the second one another name."""
    return f"{name}_duplicated_0" in schema


def repeated_column(where: object, name: str) -> str:
    """The message for a column that a CSV header has twice."""
    return f"{where}: the column {name!r} occurs twice; rename or remove one of them"


def type_problem(kind: pl.DataType, role: ColumnRole, *, csv: bool = False) -> str | None:
    """Why no value of a column of this type can be read in this role; None where the values decide.

    The reason follows "field 'x' is".
    """
    if role == "time":
        allowed = kind.is_numeric() or _is_text(kind) or kind == pl.Date or isinstance(kind, pl.Datetime)
        return None if allowed else f"{_name(kind)}, not a time; give date and time, or an epoch"
    if role == "array":
        if csv:
            return "an array of numbers, which a CSV file cannot hold; convert the file to JSONL or Parquet"
        inner = getattr(kind, "inner", None)
        allowed = kind == pl.Null or (inner is not None and (inner.is_numeric() or inner == pl.Null))
        return None if allowed else f"{_name(kind)}, not an array of numbers"
    if role == "number":
        if kind == pl.Boolean:
            return "Boolean, not a number; declare it as a category, or write 0 and 1"
        allowed = kind.is_numeric() or kind in {pl.Null, pl.String}
        return None if allowed else f"{_name(kind)}, not a number; use the field as a category, or fix the data"
    allowed = kind.is_numeric() or _is_text(kind) or kind == pl.Date or (kind == pl.Boolean and role != "key")
    return None if allowed else f"{_name(kind)}, {_TEXT_ADVICE}"


def _is_text(kind: pl.DataType) -> bool:
    return kind in {pl.String, pl.Binary, pl.Null} or isinstance(kind, pl.Categorical | pl.Enum)


def _name(kind: pl.DataType) -> str:
    return str(kind)


def _cuts(name: str) -> list[tuple[str, str]]:
    """A name parted at each of its dots, the longest beginning first."""
    places = [place for place, sign in enumerate(name) if sign == "."]
    return [(name[:place], name[place + 1 :]) for place in reversed(places)]


def _struct_path(name: str, kind: Any) -> list[str] | None:
    if not isinstance(kind, pl.Struct):
        return None
    fields = {field.name: field.dtype for field in kind.fields}
    if name in fields:
        return [name]
    for first, rest in _cuts(name):
        if first in fields and (path := _struct_path(rest, fields[first])) is not None:
            return [first, *path]
    return None
