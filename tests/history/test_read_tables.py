"""CSV and Parquet: what their types mean, which are refused, and that the same rows agree in any format."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lstmstream.history import jsonl as jsonl_reader
from lstmstream.history import tables
from lstmstream.history.events import load_events
from lstmstream.history.fields import Fields
from lstmstream.history.read import read_chunks, resolve_paths
from tests.history.reading import FIELDS, NESTED, ROW, csv, parquet, refused, rows

NUMBER = Fields(None, None, ("n",), ())

# --- CSV -----


def test_texts_of_csv_stay_as_they_are_written_but_for_whole_numbers_and_booleans(tmp_path: Path) -> None:
    assert csv(tmp_path, 'k,t,n,c\n007,1,1,1.0\n7.0,1,1,True\n1e5, 1,1, A\n17.5,1,1,""\n') == [
        ("007", 1000, [1.0], ["1"]),
        ("7", 1000, [1.0], ["true"]),
        ("1e5", 1000, [1.0], [" A"]),
        ("17.5", 1000, [1.0], [""]),
    ]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    twice = "the column 'n' occurs twice; rename or remove one of them"
    refused(twice, csv, tmp_path, "k,t,n,n,c\na,1,1,2,x\n")
    assert csv(tmp_path, "k,t,n,c,z,z,,\na,1,1,x,1,2,,\n") == [("a", 1000, [1.0], ["x"])]  # nobody reads them


def test_empty_cells_of_csv_are_missing(tmp_path: Path) -> None:
    assert csv(tmp_path, "k,t,n,c\na,1,,\nb,2,,x\n") == [("a", 1000, [None], [None]), ("b", 2000, [None], ["x"])]
    assert csv(tmp_path, 'k,t,n,c\na,1,"",x\na,1, 5 ,x\n') == [("a", 1000, [None], ["x"]), ("a", 1000, [5.0], ["x"])]
    assert csv(tmp_path, "k,t,n,c\na,1,NaN,x\na,1,nan,x\n") == [("a", 1000, [None], ["x"])] * 2


def test_numbers_of_csv_in_any_spelling(tmp_path: Path) -> None:
    found = csv(tmp_path, "k,t,n,c\n" + "".join(f"a,1,{text},x\n" for text in ("1E5", "+5", ".5", "5.", '"7"', "-0")))
    assert [row[2][0] for row in found] == [1e5, 5, 0.5, 5, 7, 0]
    assert csv(tmp_path, f"k,t,n,c\na,1,{2**64},x\n")[0][2] == [float(2**64)]


@pytest.mark.parametrize(("text", "shown"), [("abc", "'abc'"), ("true", "'true'"), ("1,5", ""), ("NA", "'NA'")])
def test_a_cell_that_is_not_a_number_is_named(tmp_path: Path, text: str, shown: str) -> None:
    message = refused(
        "x.csv:3: " if shown else "line 3 has 5 cells", csv, tmp_path, f"k,t,n,c\na,1,1,x\na,1,{text},x\n"
    )
    if shown:
        assert f"row 1: field 'n' is {shown}, not a number; leave the cell empty where the value is missing" in message
    refused("row 0: field 'n' is not finite", csv, tmp_path, "k,t,n,c\na,1,inf,x\n")
    refused("row 0: field 'n' is not finite", csv, tmp_path, "k,t,n,c\na,1,1e39,x\n")


def test_the_file_of_the_guide_is_read_as_it_is(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "csv.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0]
    fields = Fields("Machine", "Time", ("Temperature (°C)", "Pressure [bar]"), ("Machine",))
    found = csv(tmp_path, shown, fields=fields)
    assert [(key, ms) for key, ms, *_ in found] == [("M00", 1772406000000), ("M01", 1772406000000)]
    assert [row[2] for row in found] == [pytest.approx([59.71, 4.19]), [pytest.approx(62.03), None]]


@pytest.mark.parametrize("text", ["59,71", "-0,5", " 1.234,5 ", "1,234", "1,234.5", "1,234,567.25"])
def test_a_number_with_commas_in_it_is_said_to_be_one(tmp_path: Path, text: str) -> None:
    message = refused("x.csv:2: ", csv, tmp_path, f'k,t,n,c\na,1,"{text}",x\n')
    assert f"row 0: field 'n' is {text!r}, not a number; write decimals with a point, and thousands" in message


def test_times_of_csv(tmp_path: Path) -> None:
    def times(*texts: str) -> list[int]:
        return [row[1] for row in csv(tmp_path, "k,t,n,c\n" + "".join(f"a,{text},1,x\n" for text in texts))]

    assert times("1522540800", "1522540800123", "-5") == [1522540800000, 1522540800123, -5000]
    assert times("1.001", "1522540800.25") == [1001, 1522540800250]
    assert times("2018-04-01", "2018-04-01T00:00:00.1239+02:00", "2018-04-01 12:00") == [
        1522540800000,
        1522533600123,
        1522584000000,
    ]
    refused("row 1: field 't' is not an ISO 8601 time", times, "2018-04-01", "1.4.2018")
    refused("row 1: field 't', the timestamp, is missing; remove such rows", times, "5", "")
    refused(
        "row 2: field 't' is not an ISO 8601 time such as 2026-01-31T12:00:00Z, nor a number; fix the value",
        times,
        "1522540800",
        "1522540801.5",
        "1.4.2018",
        "x",
    )
    refused("row 1: field 't', the timestamp, is missing", times, "1.5", "nan")
    assert times("1522540800", "2018-04-01T00:00:01Z", " 1522540802.5", "1522540803000") == [
        1522540800000,
        1522540801000,
        1522540802500,
        1522540803000,
    ]


def test_blank_rows_of_csv_are_left_out_and_counted(tmp_path: Path) -> None:
    text = "k,t,n,c\na,1,1,x\n\nb,2,2,y\n,,,\nc,{},3,z\n\n\n"
    assert [row[:2] for row in csv(tmp_path, text.format(3))] == [("a", 1000), ("b", 2000), ("c", 3000)]
    refused("row 4: field 't' is not an ISO 8601 time", csv, tmp_path, text.format("x"))
    refused("row 4: field 't', the timestamp, is missing", csv, tmp_path, text.format(""))
    refused("row 2: field 'n' is 'x', not a number", csv, tmp_path, text.format(3).replace("b,2,2", "b,2,x"))
    refused("row 2: field 'n' is not finite", csv, tmp_path, text.format(3).replace("b,2,2", "b,2,inf"))
    refused("row 2: field 'k', the key, is missing", csv, tmp_path, text.format(3).replace("b,2,2", ",2,2"))


def test_parts_of_a_file_follow_each_other_without_its_blank_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHUNK_ROWS", 2)
    file = tmp_path / "x.csv"
    file.write_text("n,m\n" + "0,0\n\n1,1\n2,2\n\n\n3,3\nx,4\n")
    refused("row 7: field 'n' is 'x'", list, read_chunks([file], NUMBER))
    file.write_text(file.read_text().replace("x,4", "4,4"))
    chunks = list(read_chunks([file], NUMBER))
    assert len(chunks) > 1
    for chunk in chunks:
        assert chunk.x[:, 0].tolist() == list(range(chunk.first_row, chunk.first_row + len(chunk)))


def test_a_row_with_a_cell_in_any_column_is_an_event(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("n,other\n1,\n\n,5\n")
    (tmp_path / "y.csv").write_text("n\n\n7\n")
    chunks = list(read_chunks([tmp_path / "x.csv", tmp_path / "y.csv"], NUMBER))
    assert [chunk.first_row for chunk in chunks] == [0, 2]
    assert [chunk.timestamp.tolist() for chunk in chunks] == [[0, 1000], [2000]]
    assert chunks[0].x[0] == 1
    assert chunks[0].x[1] != chunks[0].x[1]  # missing
    pl.DataFrame({"n": [1.0, None]}).write_parquet(tmp_path / "x.parquet")
    assert sum(map(len, read_chunks([tmp_path / "x.parquet"], NUMBER))) == 2


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("k,t,n,c\na,1,1,x\n".encode("utf-16"), "looks like UTF-16; save it as UTF-8"),
        (b'k,t,n,c\na,1,1,"x\nb,1,1,x\n', "; close each quote, and write a quote inside quotes twice"),
        (b"k,t,n,c\na,1,1,5,x\n", ": line 2 has 5 cells, and the header 4; put quotes around text that holds a comma"),
        (b"", "cannot be read as csv: empty CSV; its first line must name the columns"),
        (
            b'k,t,n,c\n"a\nb",1,1,x\nMichel\xe9,1,1,x\n\xe9,1,1,x\n',
            ": line 4 has the byte 0xe9 ('\u00e9' in Windows-1252), which is not UTF-8; save it as UTF-8 (",
        ),
        (b"k,t,n,c\n\x81,1,1,x\n", ": line 2 has the byte 0x81, which is not UTF-8; save it as UTF-8"),
        (
            gzip.compress(b"k,t,n,c\na,1,1,\xdf\n"),
            ": line 2 has the byte 0xdf ('\u00df' in Windows-1252)",
        ),
        (b"k,t,n,c\na,n/a,1,\xe9\n", ": line 2 has the byte 0xe9 "),
    ],
)
def test_what_is_not_valid_csv_is_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(content)
    message = refused(what, list, read_chunks([file], Fields("k", "t", ("n",), ("c",))))
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for advice in ("infer_schema_length", "ignore_errors", "truncate_ragged_lines", "null_values"):
        assert advice not in message


def test_a_field_may_be_number_and_category_at_once(tmp_path: Path) -> None:
    both = Fields("k", "t", ("n",), ("n",))
    assert csv(tmp_path, "k,t,n\na,1,07\na,1,1e1\n", fields=both) == [
        ("a", 1000, [7.0], ["7"]),
        ("a", 1000, [10.0], ["10"]),
    ]
    refused("row 0: field 'n' is a number that is not whole", csv, tmp_path, "k,t,n\na,1,7.5\n", fields=both)
    assert csv(tmp_path, f"k,t,n\na,1,{2**64 - 1}\n", fields=both)[0][3] == [str(2**64 - 1)]
    assert parquet(tmp_path, both, n=[7]) == [("a", 1000, [7.0], ["7"])]


def test_a_column_with_dots_is_a_nested_field(tmp_path: Path) -> None:
    assert csv(tmp_path, "u.k,t,m.n,u.c\nz,1,2,x\n", fields=NESTED) == [("z", 1000, [2.0], ["x"])]


# --- Parquet -----


def test_categories_of_parquet(tmp_path: Path) -> None:
    def texts(*values: Any, kind: Any = None) -> list[str | None]:
        return [row[3][0] for row in parquet(tmp_path, c=pl.Series(values, dtype=kind))]

    assert texts("x", None, "y", kind=pl.Categorical) == ["x", None, "y"]
    assert texts("x", None, kind=pl.Enum(["y", "x"])) == ["x", None]
    for kind in (pl.Int8, pl.UInt8, pl.Int64, pl.UInt64, pl.Int128):
        assert texts(7, None, kind=kind) == ["7", None]
    assert texts(-128, kind=pl.Int8) == ["-128"]
    assert texts(2**53, -(2**53)) == [str(2**53), str(-(2**53))]
    assert texts(7.0, None, float("nan"), -0.0) == ["7", None, None, "0"]  # as pandas has ids, some of them missing
    assert texts(Decimal("12.0"), Decimal(-(2**63)), None) == ["12", str(-(2**63)), None]
    assert texts(2**53 + 1, -(2**63)) == [str(2**53 + 1), str(-(2**63))]
    for kind in (pl.UInt64, pl.Int128):
        assert texts(2**64 - 1, kind=kind) == [str(2**64 - 1)]
    assert texts(True, None, False) == ["true", None, "false"]
    assert texts("True", "17.0", "x", None, "true") == ["true", "17", "x", None, "true"]
    assert texts("17.0", None, kind=pl.Categorical) == ["17", None]
    assert texts(b"c1", b"17.0", None) == ["c1", "17", None]
    assert texts(dt.date(2018, 4, 1), None) == ["2018-04-01", None]
    assert texts(None, kind=pl.Null) == [None]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (pl.Series([1, 2**64], dtype=pl.Int128), "is an integer beyond 64 bits; send such an id as a string"),
        (pl.Series([1, -(2**63) - 1], dtype=pl.Int128), "is an integer beyond 64 bits"),
        ([Decimal(1), Decimal(2**70)], "is an integer beyond 64 bits"),
        ([Decimal("1.0"), Decimal("1.5")], "is a number that is not whole"),
        ([1.0, 7.5], "is a number that is not whole; send it as a string, or use the field as a number"),
        ([1.0, float("inf")], "is a number that is not whole"),
        ([1.0, 1e300], "is an integer beyond 64 bits, or"),
        ([1.0, 2.0**53 + 2], "is a number with a fraction or exponent beyond 2^53"),
        ([b"x", b"\xff"], "is bytes that are not UTF-8; write it as text"),
        ([["x"]], "is List(String), neither text nor whole numbers; write it as text"),
        ([{"a": 1}], "is Struct({'a': Int64}), neither"),
        ([dt.datetime(2018, 4, 1)], "is Datetime(time_unit='us', time_zone=None), neither"),
        ([dt.time(1)], "is Time, neither"),
        ([dt.timedelta(1)], "is Duration(time_unit='us'), neither"),
    ],
)
def test_values_that_cannot_be_categories_are_named(tmp_path: Path, values: Any, what: str) -> None:
    message = refused(f"field 'c' {what}", parquet, tmp_path, c=values)
    assert "x.parquet: " in message
    assert ("row 1: " in message) == (len(values) == 2)


def test_numbers_of_parquet(tmp_path: Path) -> None:
    def numbers(*values: Any, kind: Any = None) -> list[float | None]:
        return [row[2][0] for row in parquet(tmp_path, n=pl.Series(values, dtype=kind))]

    assert numbers(Decimal("1.50"), None) == [1.5, None]
    assert numbers(2**100, kind=pl.Int128) == [2.0**100]
    assert numbers(2**64 - 1, kind=pl.UInt64) == [2.0**64]
    assert numbers(None, kind=pl.Null) == [None]
    assert numbers(None, kind=pl.String) == [None]  # nothing is of no type
    assert numbers(0.5, float("nan"), kind=pl.Float32) == [0.5, None]
    for values, what in (
        ([True], "field 'n' is Boolean, not a number; declare it as a category, or write 0 and 1"),
        ([b"1"], "field 'n' is Binary, not a number"),
        (["2"], "field 'n' is String, not a number"),  # the daemon takes no text for a number
        ([dt.date(2018, 4, 1)], "field 'n' is Date, not a number"),
        ([1.0, float("-inf")], "row 1: field 'n' is not finite in float32; fix the value, or leave it empty"),
        ([1.0, 1e39], "row 1: field 'n' is not finite in float32"),
    ):
        refused(what, parquet, tmp_path, n=values)


def test_times_of_parquet(tmp_path: Path) -> None:
    def times(values: Any) -> list[int]:
        return [row[1] for row in parquet(tmp_path, t=values)]

    moments = [dt.datetime(2018, 4, 1, 12, 0, 0, 123999), dt.datetime(1969, 12, 31, 23, 59, 59, 999999)]
    for unit in ("ms", "us", "ns"):
        plain = pl.Series(moments).dt.cast_time_unit(unit)
        assert times(plain) == [1522584000123, -1]
        assert times(plain.dt.replace_time_zone("UTC")) == [1522584000123, -1]
        assert times(plain.dt.replace_time_zone("Europe/Berlin")) == [1522584000123 - 7_200_000, -1 - 3_600_000]
    assert times(pl.Series([-1, -1_000_000, -1_000_001, 1]).cast(pl.Datetime("ns"))) == [-1, -1, -2, 0]
    assert times([dt.date(2018, 4, 1), dt.date(1969, 12, 31)]) == [1522540800000, -86_400_000]
    assert times([1.001, 1522540800.25]) == [1001, 1522540800250]
    assert times([Decimal("1.001")]) == [1001]
    assert times(pl.Series([-5], dtype=pl.Int8)) == [-5000]
    assert times([99_999_999_999, 100_000_000_000]) == [99_999_999_999_000, 100_000_000_000]
    assert times(pl.Series(["2018-04-01"], dtype=pl.Categorical)) == [1522540800000]
    for values in (
        [20180401, 5, 21010101], [20180401.0, 5.0, 21010101.0], ["20180401", "5", "21010101"],
        [Decimal("20180401.0"), Decimal(5), Decimal(21010101)], [b"20180401", b"5", b"21010101"],
    ):  # fmt: skip
        assert times(values) == [1522540800000, 5000, 21010101000]
    assert times([20180401081240, 201804010812, 19700101]) == [1522570360000, 1522570320000, 0]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([5, None], "row 1: field 't', the timestamp, is missing; remove such rows"),
        ([5.0, float("nan")], "row 1: field 't', the timestamp, is missing"),
        ([True], "field 't' is Boolean, not a time"),
        *(
            (values, "row 1: field 't' looks like a date from 1900 to 2100, but is not a valid one")
            for values in (
                [20180401, 20181301],
                [20180401.0, 20181301.0],
                ["20180401", "20181301"],
                [b"5", b"20180230"],
                [Decimal(5), Decimal("20180401.5")],
                [5, 201804012460],
            )
        ),
        ([dt.timedelta(1)], "field 't' is Duration(time_unit='us'), not a time"),
        ([5, 10**18], "row 1: field 't' lies outside years 1..9999; it looks like nanoseconds; divide by 1000000"),
        ([5, 10**15], "row 1: field 't' lies outside years 1..9999; it looks like microseconds; divide by 1000; fix"),
        ([5, -(2**63)], "row 1: field 't' lies outside years 1..9999"),
        (pl.Series([2**64 - 1], dtype=pl.UInt64), "row 0: field 't' lies outside years 1..9999"),
        (pl.Series([0, 2**62]).cast(pl.Datetime("ms")), "row 1: field 't' lies outside years 1..9999"),
        ([dt.time(1)], "field 't' is Time, not a time; give date and time, or an epoch"),
    ],
)
def test_values_that_cannot_be_times_are_named(tmp_path: Path, values: Any, what: str) -> None:
    refused(what, parquet, tmp_path, t=values)


def test_nested_fields_of_parquet(tmp_path: Path) -> None:
    u = [{"k": "z", "c": "x"}, {"k": "y", "c": None}]
    assert parquet(tmp_path, NESTED, u=u, m=[{"n": 1.5}, None]) == [
        ("z", 1000, [1.5], ["x"]),
        ("y", 1000, [None], [None]),
    ]
    refused("no field 'm.n'; the fields are 'k'", parquet, tmp_path, NESTED, u=u, m=[{"z": 1}, None])
    refused("row 1: field 'k', the key, is missing; remove such rows", parquet, tmp_path, k=["a", None])


def test_booleans_are_labels(tmp_path: Path) -> None:
    pl.DataFrame({"y": [True, None, False]}).write_parquet(tmp_path / "x.parquet")
    (chunk,) = read_chunks([tmp_path / "x.parquet"], Fields(None, None, (), (), label="y"))
    assert chunk.label == ["1", None, "0"]


# --- the same rows in three formats -----


def test_the_same_rows_in_three_formats(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "k": ["007", "b", "é,\n", "b"],
            "t": [1522540800, 1522540801, -5, 1522540800123],
            "n": [0.1, None, -3.5e38 / 2, 16777217.0],
            "i": [2**53 + 1, -(2**63), 0, None],
            "c": ["x", None, "1.0", "true"],
            "w": [7, None, -7, 2**53],
            "y": [0, 1, None, 1],
            "part": ["train", None, "test", "validation"],
        }
    )
    table.write_parquet(tmp_path / "x.parquet")
    table.write_csv(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dicts()))
    fields = Fields("k", "t", ("n", "i"), ("c", "w"), label="y", split="part")
    found = [next(iter(read_chunks([tmp_path / f"x.{kind}"], fields))) for kind in ("parquet", "csv", "jsonl")]
    for chunk in found:
        assert chunk.keys == ["007", "b", "é,\n", "b"]
        assert chunk.timestamp.tolist() == [1522540800000, 1522540801000, -5000, 1522540800123]
        assert chunk.timestamp.dtype == np.int64
        assert chunk.x.dtype == np.float32
        np.testing.assert_array_equal(chunk.x, found[0].x)
        assert chunk.categories == [["x", None, "1", "true"], ["7", None, "-7", str(2**53)]]
        assert chunk.label == ["0", "1", None, "1"]
        assert chunk.split == ["train", None, "test", "validation"]
        assert chunk.first_row == 0
    expected = np.array([[0.1, 2.0**53], [np.nan, -(2.0**63)], [-1.75e38, 0], [16777216, np.nan]])
    np.testing.assert_array_equal(found[0].x, expected.astype(np.float32))


def test_without_key_and_time_rows_are_one_sequence_a_second_apart(tmp_path: Path) -> None:
    files = []
    for place, kind in enumerate(("csv", "jsonl", "parquet")):
        files.append(tmp_path / f"{place}.{kind}")
        frame = pl.DataFrame({"n": [1, 2]})
        {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](files[-1])
    chunks = list(read_chunks(files, Fields(None, None, ("n",), ())))
    assert [chunk.first_row for chunk in chunks] == [0, 2, 4]
    assert [key for chunk in chunks for key in chunk.keys] == [""] * 6
    assert [time for chunk in chunks for time in chunk.timestamp.tolist()] == [0, 1000, 2000, 3000, 4000, 5000]


def test_types_may_differ_from_file_to_file(tmp_path: Path) -> None:
    pl.DataFrame(ROW | {"n": [1], "c": [7]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame(ROW | {"n": [1.5], "c": ["x"]}).write_parquet(tmp_path / "2.parquet")
    pl.DataFrame(ROW | {"n": [None], "c": [None]}).write_parquet(tmp_path / "3.parquet")
    (tmp_path / "4.csv").write_text("k,t,n,c,extra\na,1,,,\n")
    found = rows(list(read_chunks(resolve_paths(["*"], tmp_path), FIELDS)))
    assert [row[2:] for row in found] == [([1.0], ["7"]), ([1.5], ["x"]), ([None], [None]), ([None], [None])]


def test_many_chunks_keep_the_order_and_count_rows_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)
    monkeypatch.setattr(jsonl_reader, "CHUNK_LINES", 5)
    frame = pl.DataFrame({"k": ["a"] * 40, "t": list(range(40)), "n": [float(i) for i in range(39)] + [1e39], "c": "a"})
    for kind in ("parquet", "csv", "jsonl"):
        file = tmp_path / f"x.{kind}"
        good = tmp_path / f"good.{kind}"
        write = {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}[kind]
        getattr(frame, write)(file)
        getattr(frame.head(39), write)(good)
        chunks = list(read_chunks([good, good], FIELDS))
        assert np.concatenate([chunk.x[:, 0] for chunk in chunks]).tolist() == [*range(39), *range(39)]
        assert [chunk.first_row for chunk in chunks] == np.cumsum([0, *map(len, chunks)])[:-1].tolist()
        refused(
            f"x.{kind}{':41' if kind == 'csv' else ''}: row 39: field 'n' is not finite",
            list,
            read_chunks([good, file], FIELDS),
        )


def test_the_digest_is_of_the_rows_and_not_of_how_they_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame(
        {
            "k": [f"k{i % 7}" for i in range(300)],
            "t": list(range(300)),
            "n": [i / 7 if i % 5 else None for i in range(300)],
        }
    ).with_columns(c=pl.Series([["x", None, "z"][i % 3] for i in range(300)]), y=pl.Series([i % 2 for i in range(300)]))
    frame.write_parquet(tmp_path / "x.parquet")
    frame.write_csv(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in frame.to_dicts()))
    frame.head(100).write_csv(tmp_path / "1.csv")
    frame.tail(200).write_parquet(tmp_path / "2.parquet")
    fields = Fields("k", "t", ("n",), ("c",), label="y")
    digests = set()
    for size in (tables.CHUNK_ROWS, 11):
        monkeypatch.setattr(tables, "CHUNK_ROWS", size)
        monkeypatch.setattr(jsonl_reader, "CHUNK_LINES", size)
        for names in (["x.parquet"], ["x.csv"], ["x.jsonl"], ["1.csv", "2.parquet"]):
            events = load_events([tmp_path / name for name in names], fields)
            digests.add(events.sha256)
            assert (len(events), len(events.keys)) == (300, 7)
    assert len(digests) == 1
    assert len(digests.pop()) == 64


# --- files of tables -----


def test_all_missing_columns_are_named_at_once_with_those_that_exist(tmp_path: Path) -> None:
    message = refused("x.csv: no field 'k'; the fields are 'key', 't'; use one of these", csv, tmp_path, "key,t\n1,1\n")
    assert message.count("\n") == 2
    assert "no field 'n'" in message
    assert "no field 'c'" in message


def test_files_without_rows(tmp_path: Path) -> None:
    assert csv(tmp_path, "k,t,n,c\n") == []
    pl.DataFrame(schema={"k": pl.String, "t": pl.Int64, "n": pl.Int64, "c": pl.String}).write_parquet(
        tmp_path / "x.parquet"
    )
    assert list(read_chunks([tmp_path / "x.parquet"], FIELDS)) == []
    refused("x.csv: cannot be read as csv", csv, tmp_path, "")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("nope")
    refused("x.parquet: cannot be read as parquet", list, read_chunks([tmp_path / "x.parquet"], FIELDS))
    refused("none.parquet: no such file", list, read_chunks([tmp_path / "none.parquet"], FIELDS))
    refused("x.csv: cannot be read as csv", csv, tmp_path, "k,t,n,c\na,1,1,x,too,many\n")
