"""Delimiters and decimals of CSV: found where they are clear, refused where they are not, and alike in every reader."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lstmstream.formats.csv_form import FROM_FILE, CsvOptions, Source, csv_form
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.tables import open_table, table_events
from lstmstream.history.fields import Fields
from lstmstream.history.read import read_chunks
from tests.history.reading import FIELDS, refused, rows
from tests.serve.scoring import MODEL, expected, run, without_source
from tests.serve.scoring import rows as score_rows

COMMA = CsvOptions.of(None, "comma")
EVENT = [("a", 1000, [59.71], ["x"])]


def train(
    path: Path, options: CsvOptions = FROM_FILE, fields: Fields = FIELDS
) -> tuple[list[tuple[Any, ...]], list[str]]:
    """What training reads, numbers to seven digits, and the notes."""
    notes: list[str] = []
    found = rows(list(read_chunks([path], fields, notes, options)))
    rounded = [(key, ms, [None if n is None else round(n, 4) for n in x], texts) for key, ms, x, texts in found]
    return rounded, [note.removeprefix(f"{path}: ") for note in notes]


def events(path: Path, options: CsvOptions = FROM_FILE) -> list[dict[str, Any]]:
    """What scoring reads."""
    roles = FieldRoles(keys=("k",), times=("t",), numbers=("n",), categories=("c",), passthrough=("m",))
    return [json.loads(line or b"{}") for line in table_events(open_table(path, options, roles.all()), roles, options)]


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "x.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        ("k,t,n,c\na,1,59.71,x\n", []),
        ("k;t;n;c\na;1;59,71;x\n", ["is separated by ';' and has decimal commas; it is read as such"]),
        ("k;t;n;c\na;1;59.71;x\n", ["is separated by ';'; it is read as such"]),
        ("k\tt\tn\tc\na\t1\t59.71\tx\n", ["is separated by tabs; it is read as such"]),
        ("k|t|n|c\na|1|59.71|x\n", ["is separated by '|'; it is read as such"]),
        ("sep=;\r\nk;t;n;c\r\na;1;59.71;x\r\n", ["is separated by ';', as its first line says; it is read as such"]),
        (
            "\ufeffsep=,\r\nk,t,n,c\r\na,1,59.71,x\r\n",
            ["is separated by ',', as its first line says; it is read as such"],
        ),
        ("\ufeffk;t;n;c\r\na;1;59,71;x", ["is separated by ';' and has decimal commas; it is read as such"]),
        ('"k";"t";"n";"c"\n"a";"1";"59,71";"x"\n', ["is separated by ';' and has decimal commas; it is read as such"]),
        ('k,t,n,c,"z;y;x;w;v;u"\na,1,59.71,x,\n', []),
        ("k,t,n,c,z;y;x;w;v;u\na,1,59.71,x,\n", []),
        (
            "k;t;n;c;Speed, m/s, mean, of, all\na;1;59,71;x;1\n",
            ["is separated by ';', though its header has ',' too, and has decimal commas; it is read as such"],
        ),
        ("\n\nk;t;n;c\na;1;59,71;x\n", ["is separated by ';' and has decimal commas; it is read as such"]),
    ],
)
def test_what_is_clear_is_read_by_both_readers_and_said(tmp_path: Path, content: str, notes: list[str]) -> None:
    path = write(tmp_path, content)
    found, said = train(path)
    assert found == EVENT
    assert events(path) == [{"k": "a", "t": "1", "n": 59.71, "c": "x"}]
    assert said == notes


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            "# exported\n# v2\nk,t,n,c\na,1,59.71,x\n",
            "the names of the columns are in line 3, and must be in the first one",
        ),
        (
            "Report;2026\n\nk;t;n;c\na;1;59,71;x\n",
            "the names of the columns are in line 3, and must be in the first one",
        ),
        ("a,1,59.71,x\nb,2,1.5,y\n", "its first line must name the columns, and begins with 'a', '1', '59.71', 'x'"),
    ],
)
def test_a_first_line_without_the_names_of_columns_is_named(tmp_path: Path, content: str, what: str) -> None:
    path = write(tmp_path, content)
    for read in (train, events):
        wanted = refused(what, read, path)
        assert wanted.startswith(f"{path}: ")
    assert csv_form(path, FROM_FILE, ()) is not None  # nobody asks for a field


def test_delimiters_and_line_ends_inside_quotes_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, 'k;t;n;c;m\r\n"a;b";1;"1,5";"x\r\ny";"2,5"\r\n\r\n" c ""d""";2;;z;"0,25"')
    assert train(path)[0] == [("a;b", 1000, [1.5], ["x\r\ny"]), (' c "d"', 2000, [None], ["z"])]
    assert events(path) == [
        {"k": "a;b", "t": "1", "n": 1.5, "c": "x\r\ny", "m": 2.5},
        {},
        {"k": ' c "d"', "t": "2", "c": "z", "m": 0.25},
    ]


def test_a_header_that_fits_two_delimiters_is_decided_by_the_fields_then_by_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "k;t,n\n1;2,3\n")
    for wanted, delimiter in (({"n"}, ","), ({"k"}, ";")):
        form, notes = csv_form(path, FROM_FILE, wanted)
        assert form.delimiter == delimiter
        assert notes == [] if wanted == {"n"} else "though its header has ',' too" in notes[0]
    message = refused(
        "its header can be split at ',' into 2 columns and at ';' into 2 columns", csv_form, path, FROM_FILE, {"z"}
    )
    assert message.endswith("say which is meant, such as --delimiter ';'")
    rows_decide = write(tmp_path, "k;t,n;c\n1;2;3\n4;5;6\n")
    assert csv_form(rows_decide, FROM_FILE, {"z"})[0].delimiter == ";"
    assert csv_form(rows_decide, CsvOptions(","), {"z"})[0].delimiter == ","


@pytest.mark.parametrize(
    ("numbers", "what"),
    [
        (("1,234", "12,500"), "x.csv:2: row 0: field 'n' is '1,234': it is not clear whether the comma is decimal"),
        (("59,71", "3.5"), "x.csv:2: row 0: field 'n' is '59,71' and "),
        (("7", "59,71", "1.234"), "x.csv:3: row 1: field 'n' is '59,71' and "),
    ],
)
def test_commas_that_may_be_of_thousands_are_refused_until_an_option_decides(
    tmp_path: Path, numbers: tuple[str, ...], what: str
) -> None:
    path = write(tmp_path, "k;t;n;c\n" + "".join(f"a;1;{number};x\n" for number in numbers))
    for read in (train, events):
        message = refused(what, read, path)
        assert message.endswith("; say so, by --decimal comma or point")
    named = CsvOptions.of(None, None, ("data.csv.delimiter:", "data.csv.decimal:"))
    refused("say so, by data.csv.decimal: comma or point", train, path, named)
    refused("write decimals with a point", train, path, CsvOptions.of(None, "point"))


@pytest.mark.parametrize("number", ["0,125", "12345,678", "-0,5", "1,25", ",5", "1,2345", "1,5e3", " 2,5 "])
def test_one_number_that_cannot_have_thousands_shows_the_decimal_comma(tmp_path: Path, number: str) -> None:
    path = write(tmp_path, f"k;t;n;c\na;1;1,250;x\na;1;{number};x\na;1;;x\n")
    value = float(number.replace(",", "."))
    assert [row[2] for row in train(path)[0]] == [[1.25], [pytest.approx(value)], [None]]
    assert [event.get("n") for event in events(path)] == [1.25, value, None]


def test_an_option_gives_decimal_commas_to_other_files(tmp_path: Path) -> None:
    path = write(tmp_path, 'k,t,n,c,m\na,1,"1,234",x,"-2,5"\na,2,7,"1,5",12\n')
    assert train(path, COMMA)[0] == [("a", 1000, [1.234], ["x"]), ("a", 2000, [7], ["1,5"])]
    assert [(event["n"], event["c"], event["m"]) for event in events(path, COMMA)] == [
        (1.234, "x", -2.5),
        (7, "1,5", 12),
    ]
    message = refused("x.csv:2: row 0: field 'n' is '1,234', not a number; write decimals with a point", train, path)
    assert message.endswith("or say that the comma is decimal: --decimal comma")
    tabs = write(tmp_path, "k\tt\tn\tc\na\t1\t59,71\tx\n")
    refused("not a number", train, tabs)
    assert train(tabs, COMMA)[0] == EVENT


@pytest.mark.parametrize("number", ["1.234", "1.234,5", "1,234,5", "59.71"])
def test_with_decimal_commas_a_point_is_no_number(tmp_path: Path, number: str) -> None:
    path = write(tmp_path, f"k;t;n;c\na;1;1,5;x\na;1;{number};x\n")
    message = refused(
        f"x.csv:3: row 1: field 'n' is '{number}', not a number; write decimals with a comma", train, path, COMMA
    )
    assert message.endswith("and thousands without a separator")
    assert [event["n"] for event in events(path, COMMA)] == [1.5, number]


def test_the_line_of_a_row_is_that_of_an_editor(tmp_path: Path) -> None:
    content = 'sep=;\r\n\r\n"k";t;n;c\r\na;1;1;"x\r\ny\r\n"\r\n\r\nb;2;oops;z\r\n'
    path = write(tmp_path, content)
    form, _ = csv_form(path, FROM_FILE, FIELDS.all())
    assert [Source(path, form).row(row) for row in (0, 1, 2, 3)] == [
        f"{path}:4: row 0",
        f"{path}:7: row 1",
        f"{path}:8: row 2",
        f"{path}: row 3",
    ]
    refused("x.csv:8: row 2: field 'n' is 'oops', not a number", train, path)
    refused(
        "x.csv: cannot be read as csv: line 3 has 5 cells, and the header 4; put quotes around text that holds a semi",
        train,
        write(tmp_path, "k;t;n;c\na;1;2;x\nb;1;2;x;y\n"),
    )


def test_scores_of_a_file_with_semicolons_are_those_of_the_engine(tmp_path: Path, capfd: Any) -> None:
    data = score_rows(60)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=";")
    writer.writerow(data[0])
    for row in data:
        cells = {
            name: str(value).replace(".", ",") if isinstance(value, float) else value for name, value in row.items()
        }
        writer.writerow(cells.values())
    path, out = write(tmp_path, text.getvalue()), tmp_path / "out"
    assert run(MODEL, path, "--key", "id", "--timestamp", "at", "--out", out) == 0
    assert without_source(out.read_bytes()) == without_source(expected(data))
    said = capfd.readouterr().err
    assert "is separated by ';'" in said
    assert "has decimal commas" in said
    assert (
        run(MODEL, path, "--key", "id", "--timestamp", "at", "--out", out, "--delimiter", ";", "--decimal", "comma")
        == 0
    )
    assert without_source(out.read_bytes()) == without_source(expected(data))
    assert "separated" not in capfd.readouterr().err
