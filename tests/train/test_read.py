"""What training reads of a file is what the daemon would make of the same events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import FIELDS, NESTED, ROW, csv, jsonl, line, refused, rows

from lstmstream.card import Card, Feature, StateSpec
from lstmstream.serve.decode import Decoder
from lstmstream.serve.records import RecordBatch
from lstmstream.train.history import read as reading
from lstmstream.train.history.read import Fields, read, resolve

VOCABULARY = ("a", "b", "7", "", "é")


def decoded(lines: list[str], fields: Fields) -> tuple[list[tuple[Any, ...]], list[str]]:
    """The daemon's (key, ms, numbers, codes) and its dead letters' messages."""
    features = [Feature(name, "number") for name in fields.numbers]
    features += [Feature(name, "category", vocabulary=VOCABULARY) for name in fields.categories]
    card = Card("m", "1", "classify", tuple(features), StateSpec(1, (0.0,), ()), ())
    count = len(lines)
    columns, letters = Decoder(card, key=fields.key, timestamp=fields.timestamp).decode(
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
        assert message.endswith("; mend it, or leave the row out")
    else:
        assert coded(jsonl(tmp_path, *lines, there, fields=fields)) == expected


def test_an_absent_field_is_missing_but_not_where_no_row_has_it(tmp_path: Path) -> None:
    bare = '{"k": "b", "t": 2}'
    assert jsonl(tmp_path, line(), bare)[1] == ("b", 2000, [None], [None])
    assert jsonl(tmp_path, line(n=None, c=None)) == [("a", 1000, [None], [None])]  # null: there, and missing
    message = refused("x.jsonl: there is no field 'n'; it has 'k', 't'; name one", jsonl, tmp_path, bare)
    assert "there is no field 'c'" in message
    other = tmp_path / "other.jsonl"
    other.write_text(line())
    assert len(list(read([tmp_path / "x.jsonl", other], FIELDS))) == 2  # one file has it


def test_of_two_fields_of_one_name_the_last_counts(tmp_path: Path) -> None:
    assert jsonl(tmp_path, '{"k": "a", "t": 1, "n": 1, "n": 2, "c": "a"}') == [("a", 1000, [2.0], ["a"])]


def test_a_path_goes_into_objects_and_not_to_a_name_with_dots(tmp_path: Path) -> None:
    both = '{"u": {"k": 1, "c": "a"}, "m": {"n": 3}, "m.n": 4, "t": 1}'
    assert jsonl(tmp_path, both, fields=NESTED) == [("1", 1000, [3.0], ["a"])]
    refused("no field 'm.n'", jsonl, tmp_path, '{"u": {"k": 1, "c": "a"}, "m.n": 4, "t": 1}', fields=NESTED)


def test_texts_and_numbers_that_look_like_times_keep_their_own_meaning(tmp_path: Path) -> None:
    found = jsonl(tmp_path, line(t="20180401"), line(t=20180401), line(t=1.001), line(t=-1.5))
    assert [row[1] for row in found] == [1522540800000, 20180401000, 1001, -1500]


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
        (line(c=3.0), "field 'c' is a number, neither a string nor an integer"),
        (line(c=2**53 + 1), "field 'c' is an integer beyond 2^53"),
        (line(k=2**53 + 1), "field 'k' is an integer beyond 2^53"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str | bytes, what: str) -> None:
    message = refused(f"x.jsonl: row 2: {what}", jsonl, tmp_path, line(), "", line(), bad, line())
    assert "mend it, or leave the row out" in message


def test_blank_lines_and_windows_ends(tmp_path: Path) -> None:
    assert len(jsonl(tmp_path, line() + "\r", "", "  ", line() + "\r")) == 2


def test_labels_may_be_more_than_categories(tmp_path: Path) -> None:
    labels = [True, False, 1, 1.0, "1", "fraud", None, -0.0]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(line(y=label) + "\n" for label in labels))
    (part,) = read([file], Fields("k", "t", (), (), label="y"))
    assert part.label == ["1", "0", "1", "1", "1", "fraud", None, "0"]
    for bad, what in ((0.5, "neither text nor a whole number"), ([1], "neither text"), (2**60, "beyond 2^53")):
        file.write_text(line(y=1) + "\n" + line(y=bad))
        refused(
            f"row 1: field 'y' is {what}" if what[0] == "n" else what,
            list,
            read([file], Fields(None, None, (), (), "y")),
        )


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
    fields = Fields("k", "t", ("n", "i"), ("c", "w"), label="y", part="part")
    found = [next(iter(read([tmp_path / f"x.{kind}"], fields))) for kind in ("parquet", "csv", "jsonl")]
    for part in found:
        assert part.keys == ["007", "b", "é,\n", "b"]
        assert part.timestamp.tolist() == [1522540800000, 1522540801000, -5000, 1522540800123]
        assert part.timestamp.dtype == np.int64
        assert part.x.dtype == np.float32
        np.testing.assert_array_equal(part.x, found[0].x)
        assert part.categories == [["x", None, "1.0", "true"], ["7", None, "-7", str(2**53)]]
        assert part.label == ["0", "1", None, "1"]
        assert part.part == ["train", None, "test", "validation"]
        assert part.first_row == 0
    expected = np.array([[0.1, 2.0**53], [np.nan, -(2.0**63)], [-1.75e38, 0], [16777216, np.nan]])
    np.testing.assert_array_equal(found[0].x, expected.astype(np.float32))


def test_without_key_and_time_rows_are_one_sequence_a_second_apart(tmp_path: Path) -> None:
    files = []
    for place, kind in enumerate(("csv", "jsonl", "parquet")):
        files.append(tmp_path / f"{place}.{kind}")
        frame = pl.DataFrame({"n": [1, 2]})
        {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](files[-1])
    parts = list(read(files, Fields(None, None, ("n",), ())))
    assert [part.first_row for part in parts] == [0, 2, 4]
    assert [key for part in parts for key in part.keys] == [""] * 6
    assert [time for part in parts for time in part.timestamp.tolist()] == [0, 1000, 2000, 3000, 4000, 5000]


def test_types_may_differ_from_file_to_file(tmp_path: Path) -> None:
    pl.DataFrame(ROW | {"n": [1], "c": [7]}).write_parquet(tmp_path / "1.parquet")
    pl.DataFrame(ROW | {"n": [1.5], "c": ["x"]}).write_parquet(tmp_path / "2.parquet")
    pl.DataFrame(ROW | {"n": [None], "c": [None]}).write_parquet(tmp_path / "3.parquet")
    (tmp_path / "4.csv").write_text("k,t,n,c,extra\na,1,,,\n")
    found = rows(list(read(resolve(["*"], tmp_path), FIELDS)))
    assert [row[2:] for row in found] == [([1.0], ["7"]), ([1.5], ["x"]), ([None], [None]), ([None], [None])]


def test_many_parts_keep_the_order_and_count_rows_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BATCH_ROWS", 7)
    monkeypatch.setattr(reading, "_LINES", 5)
    frame = pl.DataFrame({"k": ["a"] * 40, "t": list(range(40)), "n": [float(i) for i in range(39)] + [1e39], "c": "a"})
    for kind in ("parquet", "csv", "jsonl"):
        file = tmp_path / f"x.{kind}"
        good = tmp_path / f"good.{kind}"
        write = {"csv": "write_csv", "jsonl": "write_ndjson", "parquet": "write_parquet"}[kind]
        getattr(frame, write)(file)
        getattr(frame.head(39), write)(good)
        parts = list(read([good, good], FIELDS))
        assert np.concatenate([part.x[:, 0] for part in parts]).tolist() == [*range(39), *range(39)]
        assert [part.first_row for part in parts] == np.cumsum([0, *map(len, parts)])[:-1].tolist()
        refused(f"x.{kind}: row 39: field 'n' is not finite", list, read([good, file], FIELDS))


# --- files -----


def test_missing_columns_are_all_told_at_once_with_those_there_are(tmp_path: Path) -> None:
    message = refused(
        "x.csv: there is no field 'k'; it has 'key', 't'; name one of these", csv, tmp_path, "key,t\n1,1\n"
    )
    assert message.count("\n") == 2
    assert "no field 'n'" in message
    assert "no field 'c'" in message


def test_files_without_rows(tmp_path: Path) -> None:
    assert csv(tmp_path, "k,t,n,c\n") == []
    assert jsonl(tmp_path) == []
    pl.DataFrame(schema={"k": pl.String, "t": pl.Int64, "n": pl.Int64, "c": pl.String}).write_parquet(
        tmp_path / "x.parquet"
    )
    assert list(read([tmp_path / "x.parquet"], FIELDS)) == []
    refused("x.csv: cannot be read as csv", csv, tmp_path, "")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("nope")
    refused("x.parquet: cannot be read as parquet", list, read([tmp_path / "x.parquet"], FIELDS))
    (tmp_path / "x.txt").write_text("")
    refused("x.txt: is neither .csv, .jsonl nor .parquet; convert it", list, read([tmp_path / "x.txt"], FIELDS))
    refused("none.jsonl: cannot be read: No such file", list, read([tmp_path / "none.jsonl"], FIELDS))
    refused("none.parquet: cannot be read as parquet", list, read([tmp_path / "none.parquet"], FIELDS))
    refused("x.csv: cannot be read as csv", csv, tmp_path, "k,t,n,c\na,1,1,x,too,many\n")


def test_paths_and_patterns(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "[x].csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.csv").mkdir()
    place = [tmp_path / name for name in ("[x].csv", "a.csv", "b.csv")]
    assert resolve(["*.csv"], tmp_path) == place
    assert resolve(["b.csv", str(tmp_path / "?.csv")], tmp_path) == [place[2], place[1]]  # each once
    assert resolve(["[x].csv"], tmp_path) == place[:1]
    refused("data.path: no file matches *.jsonl; check the pattern, it starts from", resolve, ["*.jsonl"], tmp_path)
    refused("none.csv does not exist; relative paths start from", resolve, ["none.csv"], tmp_path)
    refused("folder.csv is no file; write a pattern, such as folder.csv/*.parquet", resolve, ["folder.csv"], tmp_path)
