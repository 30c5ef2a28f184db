"""The same table as JSONL, CSV and Parquet: the same events for training, whatever its types."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lstmstream.errors import BadRecord
from lstmstream.formats import csv_cells
from lstmstream.formats.csv_form import Source
from lstmstream.formats.timestamps import timestamp_ms
from lstmstream.formats.values import cell_number, text_of
from lstmstream.history import tables as history_tables
from lstmstream.history.events import load_events
from lstmstream.history.fields import Fields
from lstmstream.history.read import read_chunks
from tests.history.reading import refused
from tests.one_table import CATEGORY_KINDS, LABEL_KINDS, NUMBER_KINDS, TEXT_KINDS, TIME_KINDS, Table, tables

FIELDS = Fields("k", "t", ("n", "m.n"), ("c", "m.c"), label="y", split="s")


@settings(max_examples=150, deadline=None)
@given(
    tables(
        k=(TEXT_KINDS, False), t=(TIME_KINDS, False), n=(NUMBER_KINDS, True), m__n=(NUMBER_KINDS, True),
        c=(CATEGORY_KINDS, True), m__c=(CATEGORY_KINDS, True), y=(LABEL_KINDS, True), s=(CATEGORY_KINDS, True),
    )
)  # fmt: skip
def test_the_same_table_gives_the_same_events(table: Table) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = {kind: load_events([file], FIELDS) for kind, file in table.write(Path(folder)).items()}
    events = found.pop("jsonl")
    for kind, other in found.items():
        for name in ("keys", "texts", "classes", "split_names", "sha256"):
            assert getattr(other, name) == getattr(events, name), (kind, name)
        for name in ("starts", "timestamp", "elapsed", "x", "codes", "label", "split"):
            np.testing.assert_array_equal(getattr(other, name), getattr(events, name), err_msg=f"{kind} {name}")


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    pl.String: st.text(max_size=12) | st.sampled_from(["17.0", "True", "20260105", "1.5", "soon", "2026-01-05"]),
    pl.Int64: st.integers(-(2**63), 2**63 - 1) | st.integers(19_000_000, 21_010_000),
    pl.UInt64: st.integers(0, 2**64 - 1),
    pl.Int128: st.integers(-(2**70), 2**70),
    pl.Float64: st.floats() | st.integers(-(2**54), 2**54).map(float),
    pl.Float32: st.floats(width=32),
    pl.Boolean: st.booleans(),
    pl.Binary: st.binary(max_size=4) | st.sampled_from([b"17.0", b"True", b"20260105"]),
    pl.Date: st.dates(),
    pl.Decimal(38, 2): st.decimals(-(10**30), 10**30, places=2),
}


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(list(SCALARS)), st.sampled_from(["key", "category", "label", "split"]))
def test_columns_are_the_scalar_functions(data: st.DataObject, kind: Any, role: Any) -> None:
    """A column as text, and as times, is `text_of` and `timestamp_ms` of each of its values, or the same refusal."""
    values = data.draw(st.lists(SCALARS[kind], min_size=1, max_size=3))
    series = pl.Series("f", values, dtype=kind)
    if not (kind == pl.Boolean and role == "key"):  # refused by its type
        expected = each(values, lambda value: text_of(value, "f", role))
        check(expected, lambda: history_tables._texts(Source(Path("x.parquet")), series, range(len(values)), role))
    if kind not in {pl.Boolean, pl.Date}:
        times = each(values, lambda value: timestamp_ms(value, "f"))
        source = Source(Path("x.parquet"))
        check(times, lambda: history_tables._timestamps(source, series, range(len(values))).tolist())


def each(values: list[Any], read: Any) -> Any:
    try:
        return [read(value) for value in values]
    except BadRecord as bad:
        return bad


def check(expected: Any, read: Any) -> None:
    if isinstance(expected, BadRecord):
        refused("field 'f'", read)
    else:
        assert read() == expected


NUMBER_LIKE = st.text("0123456789+-.eEinfa_ \u0661x", max_size=8) | st.floats().map(str) | st.integers().map(str)


@settings(max_examples=500)
@given(st.lists(NUMBER_LIKE, min_size=1, max_size=20))
@example(["inf", "-Infinity", "+nan", "1_0", "0x1", ".5", "5.", "1e", "1e400", "1e-400", "", " ", "007", "1d5", " 5 "])
def test_a_column_of_cells_is_cell_number_of_each(cells: list[str]) -> None:
    found = csv_cells.parse_numbers(pl.Series(cells)).to_list()
    assert repr(found) == repr([cell_number(cell) for cell in cells])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_names_with_dots_are_found_in_every_format(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"x.{kind}"
    frame = pl.DataFrame({"host.name": ["a"], "cpu.usage": [0.5], "cpu": [1]})
    getattr(frame, {"jsonl": "write_ndjson", "csv": "write_csv", "parquet": "write_parquet"}[kind])(file)
    (chunk,) = read_chunks([file], Fields("host.name", None, ("cpu.usage", "cpu"), ()))
    assert (chunk.keys, chunk.x.tolist()) == (["a"], [[0.5, 1.0]])


def test_names_with_dots_inside_structs(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pl.DataFrame({"a": [{"b.c": 1, "b": {"c": 2}}], "a.b": [{"d": 3}], "e": [{"f": {"g.h": 4}}]}).write_parquet(file)
    (chunk,) = read_chunks([file], Fields(None, None, ("a.b.c", "a.b.d", "e.f.g.h"), ()))
    assert chunk.x.tolist() == [[1, 3, 4]]
    refused("no field 'e.f.g'", list, read_chunks([file], Fields(None, None, ("e.f.g",), ())))


def test_arrays_of_numbers(tmp_path: Path) -> None:
    """In JSONL and Parquet; a cell of CSV cannot hold one."""
    values = [[1.5, 2.5, None], None, [4, 5, 6]]
    frame = pl.DataFrame({"n": [1, 2, 3], "a": values}, schema_overrides={"a": pl.List(pl.Float64)})
    fields = Fields(None, None, ("n", "a"), (), sizes=(1, 3))
    nan = np.nan
    expected = np.array([[1, 1.5, 2.5, nan], [2, nan, nan, nan], [3, 4, 5, 6]], np.float32)
    frame.write_parquet(tmp_path / "1.parquet")
    frame.with_columns(pl.col("a").cast(pl.Array(pl.Float64, 3))).write_parquet(tmp_path / "2.parquet")
    frame.write_ndjson(tmp_path / "3.jsonl")
    digests = set()
    for name in ("1.parquet", "2.parquet", "3.jsonl"):
        events = load_events([tmp_path / name], fields)
        np.testing.assert_array_equal(events.x, expected)
        digests.add(events.sha256)
    assert len(digests) == 1
    pl.DataFrame({"n": [1, 2], "a": [[1, 2, 3], [1, 2]]}).write_parquet(tmp_path / "4.parquet")
    wrong = Fields(None, None, ("a",), (), sizes=(3,))
    refused("row 1: field 'a' is an array of 2, not of 3 numbers", list, read_chunks([tmp_path / "4.parquet"], wrong))
    pl.DataFrame({"a": [[1.0, 2.0, 3.0], [1.0, float("inf"), 2.0]]}).write_parquet(tmp_path / "5.parquet")
    refused("row 1: field 'a' is not finite in float32", list, read_chunks([tmp_path / "5.parquet"], wrong))
    (tmp_path / "6.csv").write_text('a\n"[1, 2, 3]"\n')
    refused(
        "field 'a' is an array of numbers, which a CSV file cannot hold", list, read_chunks([tmp_path / "6.csv"], wrong)
    )
    (tmp_path / "7.jsonl").write_text('{"a": 1}\n')
    refused("row 0: field 'a' is a number, not an array of 3 numbers", list, read_chunks([tmp_path / "7.jsonl"], wrong))
