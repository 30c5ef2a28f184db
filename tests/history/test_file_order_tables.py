"""In which order files are read, that it is said where it matters, and that their names do not decide what they are."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl
import pytest

from lstmstream.history.events import load_events
from lstmstream.history.fields import Fields
from lstmstream.history.read import order_note, read_chunks, resolve_paths
from tests.history.reading import refused

FIELDS = Fields("k", None, ("n",), ())


def names_of(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize(
    "names",
    [
        [f"part-{i}.csv" for i in range(1, 12)],
        ["1.csv", "2.csv", "10.csv", "a.csv"],
        ["2026-1-9.csv", "2026-1-10.csv", "2026-12-1.csv"],
        ["part-01.csv", "part-1.csv", "part-2.csv"],
        ["p2-1.csv", "p2-a.csv", "p10-1.csv"],
        ["x.csv", "x1.csv", "x2.csv", "x_1.csv"],
        ["app.1.csv", "app.2.csv", "app.10.csv", "app.csv"],
        ["a²9.csv", "a²10.csv"],
    ],
)
def test_numbers_in_names_sort_as_numbers(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert names_of(resolve_paths(["*.csv"], tmp_path)) == names


def test_folders_of_a_pattern_sort_by_their_numbers_too(tmp_path: Path) -> None:
    for day in (1, 2, 10):
        (tmp_path / f"day={day}").mkdir()
        (tmp_path / f"day={day}" / "x.csv").touch()
    found = resolve_paths(["day=*/*.csv"], tmp_path)
    assert [path.parent.name for path in found] == ["day=1", "day=2", "day=10"]


def test_files_in_a_list_keep_its_order_and_a_second_naming_is_said(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    notes: list[str] = []
    found = resolve_paths(["b.csv", "a.csv", "b.csv", "link.csv", str(tmp_path / "." / "a.csv")], tmp_path, notes)
    assert names_of(found) == ["b.csv", "a.csv"]
    assert notes == [
        f"data.path: {tmp_path}/b.csv is named twice and read once",
        f"data.path: {tmp_path}/link.csv is named twice (as {tmp_path}/a.csv) and read once",
        f"data.path: {tmp_path}/a.csv is named twice and read once",
    ]


def jsonl(path: Path, *numbers: int, **more: Any) -> Path:
    path.write_text("".join(json.dumps({"k": "a", "n": number, **more}) + "\n" for number in numbers))
    return path


def test_without_times_the_order_of_the_files_is_said(tmp_path: Path) -> None:
    files = [jsonl(tmp_path / f"p{i}.jsonl", i, t=100 - i) for i in range(1, 9)]
    events = load_events(files, FIELDS)
    assert events.x[:, 0].tolist() == list(range(1, 9))
    (note,) = events.notes
    assert note.startswith(
        "there is no timestamp field, so the rows of the 8 files are taken in this order: p1.jsonl, "
    )
    assert "p3.jsonl, ..., p6.jsonl, p7.jsonl, p8.jsonl; if that is not chronological" in note
    assert load_events(files[:1], FIELDS).notes == ()
    timed = load_events(files, Fields("k", "t", ("n",), ()))
    assert timed.notes == ()
    assert timed.x[:, 0].tolist() == list(range(8, 0, -1))
    assert timed.first_unsorted == "key 'a', row 1"


def test_files_of_one_name_are_told_apart() -> None:
    assert "order: x/1.csv, y/1.csv;" in order_note([Path("x/1.csv"), Path("y/1.csv")])


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt", "x", "x.parquet"])
@pytest.mark.parametrize("form", ["lines", "gzip", "array", "bom", "csv", "csv in gzip", "parquet", "feather"])
def test_a_file_is_read_as_what_it_is(tmp_path: Path, name: str, form: str) -> None:
    plain = jsonl(tmp_path / "plain", 1, 2, 3)
    frame, text, path = pl.DataFrame({"k": ["a"] * 3, "n": [1, 2, 3]}), plain.read_bytes(), tmp_path / name
    csv = frame.write_csv().encode()
    if form == "parquet":
        frame.write_parquet(path)
    elif form == "feather":
        frame.write_ipc(path)
    else:
        path.write_bytes(
            {
                "lines": text,
                "gzip": gzip.compress(text),
                "array": b"[" + b",\n".join(text.splitlines()) + b"]",
                "bom": b"\xef\xbb\xbf" + text,
                "csv": csv,
                "csv in gzip": gzip.compress(csv),
            }[form]
        )
    chunks = list(read_chunks([path], FIELDS))
    assert [number for chunk in chunks for number in chunk.x[:, 0].tolist()] == [1, 2, 3]


def test_what_contradicts_a_name_is_a_note_of_the_events(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.csv", 1, 2)
    assert load_events([path], FIELDS).notes == (f"{path}: is JSON, despite its name; it is read as such",)


def test_a_pipe_is_read_and_a_folder_is_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = Thread(target=fifo.write_bytes, args=(b'{"k":"a","n":7}\n',))
    writer.start()
    events = load_events(resolve_paths(["fifo"], tmp_path), FIELDS)
    writer.join(120)
    assert events.x[:, 0].tolist() == [7]
    refused("is not a file; for a folder write a pattern", resolve_paths, ["."], tmp_path)


def test_lines_that_end_in_cr_are_named_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"k,n\ra,1\ra,2\r")
    refused("its lines end in CR only; save it with LF or CRLF", list, read_chunks([path], FIELDS))


@pytest.mark.parametrize(("sign", "name"), [(b";", "';'"), (b"\t", "tabs"), (b"|", "'|'")])
@pytest.mark.parametrize("packed", [True, False])
def test_other_delimiters_are_found_also_in_gzip(tmp_path: Path, sign: bytes, name: str, packed: bool) -> None:
    path = tmp_path / "x.data"
    text = b"k,n\na,1\n".replace(b",", sign)
    path.write_bytes(gzip.compress(text) if packed else text)
    notes: list[str] = []
    (chunk,) = read_chunks([path], FIELDS, notes)
    assert (chunk.keys, chunk.x[:, 0].tolist()) == (["a"], [1])
    assert f"{path}: is separated by {name}; it is read as such" in notes
