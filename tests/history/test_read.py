"""What training reads of a file is what the daemon would make of the same events."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstmstream import row_progress
from lstmstream.history import jsonl as jsonl_reader
from lstmstream.history.fields import Fields
from lstmstream.history.read import read_chunks, resolve_paths
from lstmstream.model.card import Card, Feature, StateSpec
from lstmstream.records import RecordBatch
from lstmstream.serve.decode import Decoder
from tests.history.reading import FIELDS, NESTED, jsonl, line, refused

VOCABULARY = ("a", "b", "7", "", "é")


def decoded(lines: list[str], fields: Fields) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The daemon's (key, ms, numbers, codes) and its dead letters' messages."""
    features = [Feature(name, "number") for name in fields.numbers]
    features += [Feature(name, "category", vocabulary=VOCABULARY) for name in fields.categories]
    card = Card("m", "1", "classify", tuple(features), StateSpec(1, (0.0,), ()), ())
    count = len(lines)
    columns, letters, *_ = Decoder(card, key=fields.key, timestamp=fields.timestamp).decode(
        RecordBatch(
            "in",
            np.zeros(count, np.int64),
            np.arange(count),
            np.arange(count) * 1000,
            [b""] * count,
            [one.encode() for one in lines],
            [()] * count,
        )
    )
    found = [
        ((key or b"").decode(), int(time), [None if np.isnan(v) else v for v in x.tolist()], codes.tolist())
        for key, time, x, codes in zip(columns.keys, columns.timestamps, columns.x, columns.categories, strict=True)
    ]
    return found, [letter.message for letter in letters]


def coded(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    codes = {text: place for place, text in enumerate(VOCABULARY, start=1)}
    return [(*row[:3], [codes.get(text, 0) for text in row[3]]) for row in found]


# --- JSONL: the daemon's meaning -----

ANY = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 10),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["a", "b", "7", "", "é", "2018-04-01", "2018-04-01T10:00:00.1239+02:00", "20180401", "x"]),
    st.sampled_from([[1], {"n": 1}, {"n": None}, {"k": "z", "c": "a", "n": 2.5}, {}]),
)


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly good events, flat and nested at once, with fields left out or of any kind."""
    event: dict[str, Any] = {"k": "a", "t": draw(st.integers(-(10**12), 10**13)), "n": 1.5, "c": "b"}
    event |= {"u": {"k": "z", "c": "a"}, "m": {"n": 2}}
    for name in draw(st.lists(st.sampled_from(["k", "t", "n", "c", "u", "m"]), max_size=2)):
        event[name] = draw(ANY)
    for name in draw(st.lists(st.sampled_from(["n", "c", "m"]), max_size=1)):
        event.pop(name)
    return event


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(events(), min_size=1, max_size=5), st.sampled_from([FIELDS, NESTED]))
def test_a_line_of_jsonl_means_what_the_daemon_reads_in_it(
    tmp_path: Path, given_events: list[dict[str, Any]], fields: Fields
) -> None:
    lines = [json.dumps(event, ensure_ascii=False) for event in given_events]
    there = json.dumps({"k": "a", "t": 1, "n": 1, "c": "a", "u": {"k": 1, "c": "a"}, "m": {"n": 1}})  # has all fields
    expected, letters = decoded([*lines, there], fields)
    if letters:
        message = refused(letters[0], jsonl, tmp_path, *lines, there, fields=fields)
        assert "x.jsonl: row " in message
        assert message.endswith("; fix the row, or remove it")
    else:
        assert coded(jsonl(tmp_path, *lines, there, fields=fields)) == expected


def test_an_absent_field_is_missing_but_not_where_no_row_has_it(tmp_path: Path) -> None:
    bare = '{"k": "b", "t": 2}'
    assert jsonl(tmp_path, line(), bare)[1] == ("b", 2000, [None], [None])
    assert jsonl(tmp_path, line(n=None, c=None)) == [("a", 1000, [None], [None])]  # null: there, and missing
    message = refused("x.jsonl: no field 'n'; the fields are 'k', 't'; use one of these", jsonl, tmp_path, bare)
    assert "no field 'c'" in message
    other = tmp_path / "other.jsonl"
    other.write_text(line())
    assert len(list(read_chunks([tmp_path / "x.jsonl", other], FIELDS))) == 2  # one file has it


def test_of_two_fields_of_one_name_the_last_counts(tmp_path: Path) -> None:
    assert jsonl(tmp_path, '{"k": "a", "t": 1, "n": 1, "n": 2, "c": "a"}') == [("a", 1000, [2.0], ["a"])]


def test_a_name_with_dots_is_found_as_it_is_and_then_as_a_path(tmp_path: Path) -> None:
    both = '{"u": {"k": 1, "c": "a"}, "m": {"n": 3}, "m.n": 4, "t": 1}'
    nested = '{"u": {"k": 1, "c": "a"}, "m": {"n": 3}, "t": 1}'
    flat = '{"u.k": 1, "u.c": "a", "m.n": 4, "t": 1}'
    assert jsonl(tmp_path, both, nested, flat, fields=NESTED) == [
        ("1", 1000, [4.0], ["a"]),
        ("1", 1000, [3.0], ["a"]),
        ("1", 1000, [4.0], ["a"]),
    ]
    refused("no field 'm.n'", jsonl, tmp_path, '{"u": {"k": 1, "c": "a"}, "m": 4, "t": 1}', fields=NESTED)


def test_digits_mean_the_same_as_text_and_as_a_number(tmp_path: Path) -> None:
    found = jsonl(tmp_path, line(t="20180401"), line(t=20180401), line(t=1.001), line(t=-1.5))
    assert [row[1] for row in found] == [1522540800000, 1522540800000, 1001, -1500]


def test_an_infinite_number_harms_only_where_it_is_wanted(tmp_path: Path) -> None:
    wild = '{"k": "a", "t": 1, "n": 1, "c": "a", "z": 1e400}'
    assert jsonl(tmp_path, wild) == [("a", 1000, [1.0], ["a"])]
    refused("row 1: field 'n' is not finite in float32", jsonl, tmp_path, line(), wild.replace('"n": 1', '"n": 1e400'))
    refused("row 1: field 'n' is not finite in float32", jsonl, tmp_path, line(), line(n=1e39))


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("garbage", "the value is not UTF-8 JSON"),
        ('{"k": NaN}', "the value is not UTF-8 JSON"),
        ("[1]", "the value is a JSON array, not an object"),
        ("null", "the value is a JSON null, not an object"),
        (b'{"k": "\xe9"}', "the value is not UTF-8 JSON"),
        ('{"k": "\\ud83d", "t": 1, "n": 1, "c": "a"}', "the value is not UTF-8 JSON"),
        (line(k=None), "field 'k', the key, is missing"),
        (line(t=None), "field 't', the timestamp, is missing"),
        (line(n=True), "field 'n' is a boolean, not a number"),
        (line(c=3.5), "field 'c' is a number that is not whole; send it as a string, or use the field as a number"),
        (line(c=2**64), "field 'c' is an integer beyond 64 bits"),
        (line(k=-(2**63) - 1), "field 'k' is an integer beyond 64 bits"),
        (line(k=True), "field 'k' is a boolean, neither a string nor an integer"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str | bytes, what: str) -> None:
    message = refused(f"x.jsonl: row 2: {what}", jsonl, tmp_path, line(), "", line(), bad, line())
    assert "fix the row, or remove it" in message


def test_blank_lines_and_windows_ends(tmp_path: Path) -> None:
    assert len(jsonl(tmp_path, line() + "\r", "", "  ", line() + "\r")) == 2


def test_labels_may_be_more_than_categories(tmp_path: Path) -> None:
    labels = [True, False, 1, 1.0, "1", "fraud", None, -0.0, "True", "FALSE", "1.0"]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(line(y=label) + "\n" for label in labels))
    (chunk,) = read_chunks([file], Fields("k", "t", (), (), label="y"))
    assert chunk.label == ["1", "0", "1", "1", "1", "fraud", None, "0", "1", "0", "1"]
    for bad, what in (
        (0.5, "a number that is not whole"),
        ([1], "an array, neither a string, an integer nor a boolean"),
        (2**64, "an integer beyond 64 bits"),
    ):
        file.write_text(line(y=1) + "\n" + line(y=bad))
        refused(f"row 1: field 'y' is {what}", list, read_chunks([file], Fields(None, None, (), (), "y")))


# --- files -----


def test_rows_count_over_all_files_and_are_named_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_reader, "CHUNK_LINES", 5)
    rows_of = {"good": [float(i) for i in range(39)], "bad": [*range(39), 1e39]}
    for name, numbers in rows_of.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(line(t=i, n=n) + "\n" for i, n in enumerate(numbers)))
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    chunks = list(read_chunks([good, good], FIELDS))
    assert [len(chunk) for chunk in chunks] == [5] * 7 + [4] + [5] * 7 + [4]
    assert np.concatenate([chunk.x[:, 0] for chunk in chunks]).tolist() == [*range(39), *range(39)]
    assert [chunk.first_row for chunk in chunks] == np.cumsum([0, *map(len, chunks)])[:-1].tolist()
    refused("bad.jsonl: row 39: field 'n' is not finite", list, read_chunks([good, bad], FIELDS))


def test_without_key_and_time_lines_are_one_sequence_a_second_apart(tmp_path: Path) -> None:
    for name in ("1.jsonl", "2.ndjson"):
        (tmp_path / name).write_text('{"n": 1}\n{"n": 2}\n')
    chunks = list(read_chunks([tmp_path / "1.jsonl", tmp_path / "2.ndjson"], Fields(None, None, ("n",), ())))
    assert [chunk.first_row for chunk in chunks] == [0, 2]
    assert [key for chunk in chunks for key in chunk.keys] == [""] * 4
    assert [time for chunk in chunks for time in chunk.timestamp.tolist()] == [0, 1000, 2000, 3000]


def test_files_without_rows_or_of_another_kind(tmp_path: Path) -> None:
    assert jsonl(tmp_path) == []
    (tmp_path / "x.pdf").write_text("%PDF-1.7 and so on")
    refused("x.pdf: is a PDF document; only JSON lines, CSV", list, read_chunks([tmp_path / "x.pdf"], FIELDS))
    refused("none.jsonl: no such file", list, read_chunks([tmp_path / "none.jsonl"], FIELDS))


@pytest.mark.parametrize("name", ["x.csv", "x.parquet", "X.CSV"])
def test_a_table_without_polars_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    (tmp_path / name).write_text("k,t,n,c\n")
    message = refused(name, list, read_chunks([tmp_path / name], FIELDS))
    assert message == (
        f"{tmp_path / name}: reading CSV or Parquet needs polars; in a clone of lstmstream, run: pip"
        " install '.[tables]',"
        " or convert the file to JSONL"
    )
    assert jsonl(tmp_path, line()) == [("a", 1000, [1.0], ["a"])]


def test_paths_and_patterns(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "[x].csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.csv").mkdir()
    place = [tmp_path / name for name in ("[x].csv", "a.csv", "b.csv")]
    assert resolve_paths(["*.csv"], tmp_path) == place
    assert resolve_paths(["b.csv", str(tmp_path / "?.csv")], tmp_path) == [place[2], place[1]]  # each once
    assert resolve_paths(["[x].csv"], tmp_path) == place[:1]
    refused(
        "data.path: no file matches *.jsonl; check the pattern, it starts from", resolve_paths, ["*.jsonl"], tmp_path
    )
    refused("none.csv does not exist; relative paths start from", resolve_paths, ["none.csv"], tmp_path)
    refused(
        "folder.csv is not a file; for a folder write a pattern, such as folder.csv/*.parquet",
        resolve_paths,
        ["folder.csv"],
        tmp_path,
    )


def test_long_reading_shows_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for file in files:
        file.write_text("".join(line(k="c", t=t) + "\n" for t in range(30)))
    monkeypatch.setattr(jsonl_reader, "CHUNK_LINES", 10)
    fields = Fields("k", "t", (), ())
    list(read_chunks(files, fields))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(row_progress, "LINE_INTERVAL_S", 0)
    list(read_chunks(files, fields))
    lines = capsys.readouterr().err.splitlines()
    assert [text.partition(" rows")[0].rpartition(" ")[2] for text in lines] == ["10", "20", "30", "40", "50", "60"]
    assert lines[0].startswith("lstmstream: reading 2 files: 10 rows, ")
    assert ", 50%, about " in lines[2]
    list(read_chunks(files[:1], fields))
    assert f"lstmstream: reading {files[0]}: 10 rows, " in capsys.readouterr().err
