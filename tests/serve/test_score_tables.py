"""`lstmstream score` over CSV and Parquet: the bytes are the daemon's, whatever the file."""

from __future__ import annotations

import gzip
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import FROM_FILE
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.tables import open_table, table_events
from lstmstream.serve import score
from tests.serve.scoring import BASE_MS, MODEL, expected, rows, run, run_as_is, without_source, write_jsonl

OTHERS = "merchant.risk,channel,device.id"  # what the model reads beside the amount; a row may end before them


def files(folder: Path, data: list[dict[str, Any]]) -> dict[str, Path]:
    """The same events as JSON lines, CSV and Parquet."""
    found = {kind: folder / f"events.{kind}" for kind in ("jsonl", "csv", "parquet")}
    write_jsonl(found["jsonl"], data)
    frame = pl.DataFrame(data, infer_schema_length=None)
    frame.write_csv(found["csv"])
    frame.write_parquet(found["parquet"])
    return found


def test_any_file_gives_the_bytes_of_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(300)
    monkeypatch.setattr(score, "BATCH_EVENTS", 64)
    for kind, path in files(tmp_path, data).items():
        out = tmp_path / f"{kind}.out"
        assert run(MODEL, path, "--key", "id", "--timestamp", "at", "--out", out) == 0
        sources = [json.loads(line)["source"] for line in out.read_bytes().splitlines()]
        assert sources == [{"file": str(path), "row": i} for i in range(len(data))]
        assert without_source(out.read_bytes()) == without_source(expected(data))


def test_a_broken_table_is_exit_2(tmp_path: Path, capfd: Any) -> None:
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR1 no")
    assert run(MODEL, broken) == 2
    assert "cannot be read as parquet" in capfd.readouterr().err


def test_of_a_column_and_a_column_inside_it_the_name_counts_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("device,device.id,amount\n1,2,3\n")
    assert events_of(path, numbers=("amount",), categories=("device.id",)) == [b'{"amount":3,"device.id":"2"}']
    assert events_of(path, passthrough=("device",)) == [b'{"device":1}']
    path.write_text("device.id,device.os.name\n1,x\n")
    assert events_of(path, passthrough=("device",)) == [b'{"device":{"id":1,"os":{"name":"x"}}}']


def events_of(path: Path, **roles: tuple[str, ...]) -> list[bytes]:
    found = FieldRoles(**roles)
    return list(table_events(open_table(path, FROM_FILE, found.all()), found))


def test_cells_of_csv(tmp_path: Path) -> None:
    """Keys and categories are text, whatever they look like; a column to pass on is of numbers only if it is wholly."""
    path = tmp_path / "x.csv"
    path.write_text(
        "id,amount,n,zip,big,f\n"
        + "7,1,5,00740,1,1.50\n" * 150
        + f"007,2.5,,7,{10**25},-1e3\nabc,inf,6,,,\n,,,,,\n,NaN,7,1,2,0\n"
    )
    found = events_of(
        path, keys=("id", "not there"), numbers=("amount",), passthrough=("n", "zip", "big", "f", "amount")
    )
    assert found[0] == b'{"id":"7","amount":1,"n":5,"zip":"00740","big":1,"f":1.50}'
    assert found[150:] == [
        b'{"id":"007","amount":2.5,"zip":"7","big":10000000000000000000000000,"f":-1e3}',
        b'{"id":"abc","amount":1e400,"n":6}',
        b"",
        b'{"n":7,"zip":"1","big":2,"f":0}',
    ]


def test_cells_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame(
        {
            "f": pl.Series([0.1, float("nan"), float("-inf")], dtype=pl.Float32),
            "d": [Decimal("1.50"), Decimal("2.00"), None],
            "t": [datetime(2026, 1, 5, 10, 31, 7, 123_000), None, None],
            "z": pl.Series([datetime(2026, 1, 5, 10, 31, 7)] * 3, dtype=pl.Datetime("ms", "Europe/Berlin")),
            "u": pl.Series([2**64 - 1, None, None], dtype=pl.UInt64),
            "i": pl.Series([2**70, -(2**70), 1], dtype=pl.Int128),
            "s": [{"a": Decimal(2**70), "b": [1.5, float("inf")]}, None, {"a": None, "b": []}],
            "x": [b"x", b"\xff", None],
            "e": pl.Series([10**15, -(10**17), None]).cast(pl.Datetime("ms")),
            "y": [date(2026, 1, 5), None, date(1, 1, 1)],
        }
    ).write_parquet(path)
    assert events_of(path, passthrough=("f", "d", "t", "z", "u")) == [
        b'{"f":0.10000000149011612,"d":1.50,"t":"2026-01-05T10:31:07.123000Z","z":"2026-01-05T11:31:07+01:00","u":%d}'
        % (2**64 - 1),
        b'{"d":2,"z":"2026-01-05T11:31:07+01:00"}',
        b'{"f":-1e400,"z":"2026-01-05T11:31:07+01:00"}',
    ]
    assert events_of(path, passthrough=("i", "s", "x", "e", "y")) == [
        b'{"i":%d,"s":{"a":%d,"b":[1.5,1e400]},"x":"x","e":1000000000000000,"y":"2026-01-05"}' % (2**70, 2**70),
        b'{"i":%d,"e":-100000000000000000}' % -(2**70),
        b'{"i":1,"s":{"a":null,"b":[]},"y":"0001-01-01"}',
    ]


def test_columns_that_nobody_reads_may_hold_anything(tmp_path: Path) -> None:
    data = rows(20)
    wild = pl.DataFrame(data, infer_schema_length=None).with_columns(
        wide=pl.lit(2**70, dtype=pl.Int128),
        exact=pl.lit(Decimal(2**70)),
        inside=pl.struct(a=pl.lit(2**70, dtype=pl.Int128)),
        ends=pl.lit(2**62).cast(pl.Datetime("ms")),
        raw=pl.lit(b"\xff"),
    )
    wild.write_parquet(tmp_path / "x.parquet")
    pl.DataFrame(data, infer_schema_length=None).with_columns(wide=pl.lit("1" * 22), z=pl.lit("x")).write_csv(
        tmp_path / "x.csv"
    )
    for name in ("x.parquet", "x.csv"):
        out = tmp_path / f"{name}.out"
        assert run(MODEL, tmp_path / name, "--key", "id", "--timestamp", "at", "--out", out) == 0
        assert without_source(out.read_bytes()) == without_source(expected(data))


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"amount": [True]}, "field 'amount' is Boolean, not a number; declare it as a category, or write 0 and 1"),
        (
            {"amount": [datetime(2026, 1, 5)]},
            "field 'amount' is Datetime(time_unit='us', time_zone=None), not a number",
        ),
        ({"id": [True]}, "field 'id' is Boolean, neither text nor whole numbers; write it as text"),
        ({"id": [[1]]}, "field 'id' is List(Int64), neither text nor whole numbers"),
        ({"channel": [datetime(2026, 1, 5)]}, "field 'channel' is Datetime"),
        ({"at": [timedelta(1)]}, "field 'at' is Duration(time_unit='us'), not a time; give date and time, or an epoch"),
        ({"id": [b"\xff"]}, "row 0: field 'id' is bytes that are not UTF-8; write it as text"),
    ],
)
def test_columns_of_a_type_that_training_refuses_are_exit_2(
    tmp_path: Path, capfd: Any, columns: dict[str, Any], what: str
) -> None:
    path, out = tmp_path / "x.parquet", tmp_path / "out"
    others = {name: [None] for name in OTHERS.split(",")}
    pl.DataFrame({"id": ["a"], "at": [5], "amount": [1]} | others | columns).write_parquet(path)
    assert run(MODEL, path, "--key", "id", "--timestamp", "at", "--out", out) == 2
    said = capfd.readouterr().err
    assert f"{path}: " in said
    assert what in said


def test_a_column_that_is_there_twice_is_exit_2(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,amount,amount\na,1,2\n")
    assert run(MODEL, path, "--out", tmp_path / "out") == 2
    assert f"{path}: the column 'amount' occurs twice; rename or remove one of them" in capfd.readouterr().err
    path.write_text(f"id,amount,x,x,{OTHERS}\na,1,2,3,,,\n")
    assert run(MODEL, path, "--out", tmp_path / "out") == 0


def test_an_odd_cell_of_csv_spoils_its_own_row_only(tmp_path: Path) -> None:
    path, out, letters = tmp_path / "x.csv", tmp_path / "out", tmp_path / "letters"
    odd = ["1", "abc", " 2", "nan", '""', "", "1e400", "0.5", "true"]
    path.write_text(f"id,at,amount,{OTHERS}\n" + "".join(f"007,{BASE_MS + i},{cell}\n" for i, cell in enumerate(odd)))
    options = ("--key", "id", "--timestamp", "at", "--out", out, "--dead-letters", letters)
    assert run(MODEL, path, *options) == 0
    found = [json.loads(line) for line in letters.read_bytes().splitlines()]
    assert [one["__streams.errors.offset"] for one in found] == ["1", "6", "8"]
    assert "field 'amount' is a string" in found[0]["__streams.errors.message"]
    assert "field 'amount' is not finite" in found[1]["__streams.errors.message"]
    answers = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert {answer["key"] for answer in answers} == {"007"}
    lines = tmp_path / "x.jsonl"
    numbers = [1, 2, None, None, None, 0.5]
    times = [BASE_MS + i for i in (0, 2, 3, 4, 5, 7)]
    events = [{"id": "007", "at": at, "amount": number} for at, number in zip(times, numbers, strict=True)]
    lines.write_text("".join(json.dumps(event) + "\n" for event in events))
    as_json = tmp_path / "out.jsonl"
    assert run(MODEL, lines, "--key", "id", "--timestamp", "at", "--out", as_json) == 0
    assert without_source(out.read_bytes()) == without_source(as_json.read_bytes())


def test_cells_of_csv_that_should_be_numbers(tmp_path: Path) -> None:
    """Each by itself, as it is written."""
    path = tmp_path / "x.csv"
    path.write_text(f'id,n\n7,1\n7, 2 \n7,3.0\n7,x \n7,1e3\n7,+5\n7,NaN\n7,""\n7,{2**70}\n7,+{2**70}\n7,007\n')
    assert events_of(path, keys=("id",), numbers=("n", "not there")) == [
        b'{"id":"7","n":1}', b'{"id":"7","n":2}', b'{"id":"7","n":3.0}', b'{"id":"7","n":"x "}',
        b'{"id":"7","n":1000.0}', b'{"id":"7","n":5}', b'{"id":"7"}', b'{"id":"7"}', b'{"id":"7","n":%d}' % 2**70,
        b'{"id":"7","n":%d}' % 2**70, b'{"id":"7","n":7}',
    ]  # fmt: skip


def test_epochs_and_texts_may_stand_in_one_column_of_times(tmp_path: Path, capfd: Any) -> None:
    path, out = tmp_path / "x.csv", tmp_path / "out"
    path.write_text(f"at,amount,{OTHERS}\n1522540800,1\n2018-04-01T00:00:01Z,2\n1.4.2018,3\n1522540802.5,4\n")
    assert run(MODEL, path, "--timestamp", "at", "--out", out) == 0
    times = [json.loads(line)["timestamp"][-7:-1] for line in out.read_bytes().splitlines()]
    assert times == ["00.000", "01.000", "02.500"]
    assert "row 2, line 4: field 'at' is not an ISO 8601 time" in capfd.readouterr().err


def test_blank_rows_of_csv_are_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr(score, "BATCH_EVENTS", 2)
    path, out = tmp_path / "x.csv", tmp_path / "out"
    path.write_text(f"id,amount,{OTHERS}\na,1\n\na,2\n\n\n\na,3\n\n")
    for options in ((), ("--key", "id")):
        assert run(MODEL, path, *options, "--out", out) == 0
        assert [json.loads(line)["source"]["row"] for line in out.read_bytes().splitlines()] == [0, 2, 6]
        lines = capfd.readouterr().err.splitlines()
        assert [line for line in lines if "in all 3 it is empty or null" not in line] == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("id,amount\na,1\n".encode("utf-16"), "looks like UTF-16; save it as UTF-8"),
        ("id,amount\na,1\n".encode("utf-16-be"), "looks like UTF-16"),
        (f'id,amount,{OTHERS}\na,1\n"b,2\nc,3\n'.encode(), "close each quote, and write a quote inside quotes twice"),
        (
            b"id,amount,%b\na,1\nb,2,3,4,5,6\n" % OTHERS.encode(),
            "line 3 has 6 cells, and the header 5; put quotes around text that holds a comma",
        ),
        (b"", "empty CSV; its first line must name the columns"),
        (
            b"id,amount,%b\n\xe9,1\n" % OTHERS.encode(),
            "line 2 has the byte 0xe9 ('\u00e9' in Windows-1252)",
        ),
    ],
)
def test_what_is_not_valid_csv_is_one_line(tmp_path: Path, capfd: Any, content: bytes, what: str) -> None:
    path, out = tmp_path / "x.csv", tmp_path / "out"
    path.write_bytes(content)
    assert run(MODEL, path, "--key", "id", "--out", out) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"lstmstream: {path}: ")
    assert what in said
    assert said.count("\n") == 1
    for advice in ("infer_schema_length", "ignore_errors", "truncate_ragged_lines", "null_values"):
        assert advice not in said


def test_a_compressed_table_that_was_cut_off_is_one_line(tmp_path: Path, capfd: Any) -> None:
    text = "key,n,c\n" + "".join(f"k,{i * 7919 % 1000},a\n" for i in range(20_000))
    for share in (2, 10):
        content = gzip.compress(text.encode())
        (tmp_path / "x.csv.gz").write_bytes(content[: len(content) // share])
        assert run_as_is(MODEL, tmp_path / "x.csv.gz", "--key", "key", "--no-timestamp") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.endswith("unexpected end of file; the file was cut off: fetch it again")


def test_other_signs_in_a_header_with_commas_do_no_harm(tmp_path: Path) -> None:
    path, out = tmp_path / "x.csv", tmp_path / "out"
    path.write_text(f'a;b;c;d,"amount",x,{OTHERS}\n1,2,3\n')
    assert run(MODEL, path, "--out", out) == 0
    assert out.read_bytes().count(b"\n") == 1


def test_an_infinite_cell_is_a_dead_letter_not_a_missing_number(tmp_path: Path) -> None:
    path, letters = tmp_path / "x.csv", tmp_path / "letters"
    path.write_text(f"amount,{OTHERS}\n1.5\ninf\n")
    assert run(MODEL, path, "--out", tmp_path / "out", "--dead-letters", letters) == 0
    assert json.loads(letters.read_bytes())["lstmstream.stage"] == "validate"


def test_arrays_come_from_lists_and_not_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    lists = [[1.5, None], None, [2.0, float("inf")], [float("nan"), 3.0]]
    pl.DataFrame({"a": lists, "b": [[1, 2]] * 4}, schema_overrides={"b": pl.Array(pl.Int64, 2)}).write_parquet(path)
    assert events_of(path, arrays=("a", "b")) == [
        b'{"a":[1.5,null],"b":[1,2]}', b'{"b":[1,2]}', b'{"a":[2.0,1e400],"b":[1,2]}', b'{"a":[null,3.0],"b":[1,2]}',
    ]  # fmt: skip
    csv = tmp_path / "x.csv"
    csv.write_text('a\n"[1, 2]"\n')
    with pytest.raises(
        CannotServe, match="field 'a' is an array of numbers, which a CSV file cannot hold; convert the"
    ):
        events_of(csv, arrays=("a",))
    pl.DataFrame({"a": [1.0]}).write_parquet(path)
    with pytest.raises(CannotServe, match="field 'a' is Float64, not an array of numbers"):
        events_of(path, arrays=("a",))


def test_the_shards_of_a_table_together_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "BATCH_EVENTS", 64)
    for kind, path in files(tmp_path, rows(300)).items():
        options = ("--key", "id", "--timestamp", "at", "--out")
        assert run(MODEL, path, *options, tmp_path / "whole") == 0
        lines = []
        for number in (1, 2, 3):
            assert run(MODEL, path, *options, tmp_path / "out", "--shard", f"{number}/3") == 0
            lines += (tmp_path / "out").read_bytes().splitlines()
        lines.sort(key=lambda line: int(json.loads(line)["source"]["row"]))
        assert lines == (tmp_path / "whole").read_bytes().splitlines(), kind


def test_a_refused_row_of_csv_is_named_with_its_line(tmp_path: Path, capfd: Any) -> None:
    """Blank lines are rows, and a row with a line break in quotes is one; the line is that of an editor."""
    data, letters = tmp_path / "x.csv", tmp_path / "letters"
    data.write_text('id,at,amount\na,1,1\n\nb,2,x\n"c\nd",3,2\n\ne,4,y\nf,,3\n')
    options = ("--key", "id", "--timestamp", "at", "--out", tmp_path / "out")
    assert run("builtin:anomaly:amount", data, *options) == 0
    said = capfd.readouterr().err
    assert f"{data}, row 2, line 4: field 'amount' is a string" in said
    assert f"{data}, row 6, line 9: field 'at', the timestamp, is missing" in said
    assert run("builtin:anomaly:amount", data, *options, "--dead-letters", letters) == 0
    rows = [json.loads(line)["__streams.errors.offset"] for line in letters.read_text().splitlines()]
    assert rows == ["2", "5", "6"]
    assert "(2 rows, the first is row 2, line 4)" in capfd.readouterr().err
