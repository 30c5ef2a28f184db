"""Files and pipes are read as what they are, whatever their names."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import zstandard

from lstmstream.errors import CannotServe
from lstmstream.formats import decompression, files
from lstmstream.formats.files import DataFile, table_kind
from lstmstream.formats.json_splitting import LineSplitter, ObjectSplitter

EVENTS: list[dict[str, Any]] = [
    {"id": f"c{i % 3}", "amount": i, "note": 'é "quoted" {[,]} \\', "device": {"id": "x", "tags": [{"a": 1}]}}
    for i in range(50)
]
LINES = b"".join(json.dumps(event).encode() + b"\n" for event in EVENTS)
INDENTED = b"\n".join(json.dumps(event, indent=2, ensure_ascii=False).encode() for event in EVENTS)
TEXT = LINES.decode()
CSV = b"id,amount\n" + b"".join(b"c%d,%d\n" % (i % 3, i) for i in range(50))

JSON_FORMS = {
    "lines": LINES,
    "lines, CRLF": LINES.replace(b"\n", b"\r\n"),
    "lines, CR": LINES.replace(b"\n", b"\r"),
    "lines, blank ones between": LINES.replace(b"\n", b"\n\n \r\n"),
    "lines, the last without an end": LINES.rstrip(),
    "lines, BOM": b"\xef\xbb\xbf" + LINES,
    "gzip": gzip.compress(LINES),
    "gzip, several members": gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]),
    "gzip, padded": gzip.compress(LINES) + b"\0" * 512,
    "gzip twice": gzip.compress(gzip.compress(LINES)),
    "gzip of BOM": gzip.compress(b"\xef\xbb\xbf" + LINES),
    "bzip2": bz2.compress(LINES),
    "bzip2, two streams": bz2.compress(LINES[:100]) + bz2.compress(LINES[100:]),
    "xz": lzma.compress(LINES),
    "zstd": zstandard.compress(LINES),
    "zstd, two frames": zstandard.compress(LINES[:100]) + zstandard.compress(LINES[100:]),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16LE without mark": TEXT.encode("utf-16-le"),
    "UTF-16BE without mark": TEXT.encode("utf-16-be"),
    "UTF-32": TEXT.encode("utf-32"),
    "UTF-32BE without mark": TEXT.encode("utf-32-be"),
    "gzip of UTF-16": gzip.compress(TEXT.encode("utf-16")),
    "array on one line": json.dumps(EVENTS).encode(),
    "array, indented": json.dumps(EVENTS, indent=4).encode(),
    "array of lines": b"[" + LINES.strip().replace(b"\n", b",\n") + b"]\n",
    "array of lines, brackets alone": b"[\n" + LINES.strip().replace(b"\n", b",\n") + b"\n]\n",
    "arrays, one to a line": b"".join(b"[%b]\n" % line for line in LINES.splitlines()),
    "array with BOM": b"\xef\xbb\xbf" + json.dumps(EVENTS).encode(),
    "indented objects": INDENTED,
    "indented objects, UTF-16": INDENTED.decode().encode("utf-16"),
    "objects without separators": LINES.replace(b"\n", b""),
    "RFC 7464": b"".join(b"\x1e%b\n" % line for line in LINES.splitlines()),
    "RFC 7464, indented": b"".join(b"\x1e%b\n" % json.dumps(event, indent=1).encode() for event in EVENTS),
}


def read(path: Path | None, limit: int = 7) -> list[Any]:
    file = DataFile(path)
    assert file.kind == "jsonl"
    lists = list(file.batches(limit))
    assert all(0 < len(items) <= limit for items in lists)
    return [json.loads(item) for items in lists for item in items]


@pytest.fixture(params=[1, 7, 1 << 20], ids="chunks of {}".format)
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    monkeypatch.setattr(files, "_CHUNK_BYTES", size)
    monkeypatch.setattr(decompression, "_UNPACKED_BYTES", max(size, 3))
    return size


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x", "x.txt", "x.csv", "x.jsonl.gz"])
def test_json_in_any_form_is_read_under_any_name(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(JSON_FORMS[form])
    assert read(path) == EVENTS


@pytest.mark.parametrize("form", JSON_FORMS)
@pytest.mark.usefixtures("chunk_bytes")
def test_the_form_does_not_depend_on_how_the_bytes_come(tmp_path: Path, form: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(JSON_FORMS[form])
    assert read(path) == EVENTS


def through_a_pipe(tmp_path: Path, content: bytes) -> list[Any]:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = Thread(target=fifo.write_bytes, args=(content,))
    writer.start()
    try:
        return read(fifo)
    finally:
        writer.join(120)


@pytest.mark.parametrize("form", JSON_FORMS)
def test_a_pipe_holds_what_a_file_may_hold(tmp_path: Path, form: str) -> None:
    assert through_a_pipe(tmp_path, JSON_FORMS[form]) == EVENTS


def test_standard_input_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(LINES))))
    assert read(None) == EVENTS


NOTES: dict[str, dict[str, str | None]] = {
    "x.jsonl": {
        "array, indented": "x.jsonl: holds a JSON array; each object is read as one event",
        "indented objects": "x.jsonl: holds JSON objects that are not one per line; each object is read as one event",
        "gzip": "x.jsonl: is compressed by gzip, despite its name; it is read as such",
        "UTF-16": "x.jsonl: is UTF-16 text; it is read as such",
        "lines": None,
        "lines, BOM": None,
    },
    "x.csv": {"lines": "x.csv: is JSON, despite its name; it is read as such"},
    "x.json": {"array, indented": None},
    "x.jsonl.gz": {"gzip": None, "lines": None},
    "x": {"gzip": None, "array, indented": None},
}


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in NOTES.items() for form in forms])
def test_one_line_says_what_contradicts_the_name(tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / name).write_bytes(JSON_FORMS[form])
    file = DataFile(tmp_path / name)
    file.close()
    expected = NOTES[name][form]
    assert file.notes == ([] if expected is None else [f"{tmp_path}/{expected}"])


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("x.csv", CSV, "csv"),
        ("x.txt", CSV, "csv"),
        ("x", CSV, "csv"),
        ("x.jsonl", CSV, "csv"),
        ("x.parquet", CSV, "csv"),
        ("x.csv.gz", gzip.compress(CSV, mtime=0), "csv"),
        ("x.csv", gzip.compress(CSV, mtime=0), "csv"),
        ("x.csv.zst", zstandard.compress(CSV), "csv"),
        ("x.csv", b"\xef\xbb\xbf" + CSV, "csv"),
        ("x.csv", b"amount\n1\n", "csv"),
        ("x.csv", b"amount\n", "csv"),
        ("x.csv", b"", "csv"),
        ("x.csv", CSV.decode().encode("utf-16"), "csv"),
        ("x.tsv", CSV.replace(b",", b"\t"), "csv"),
        ("x.csv", b"n\xe9,amount\n1,2\n", "csv"),
        ("x.parq", b"PAR1" + b"\0" * 40 + b"PAR1", "parquet"),
        ("x.csv", b"PAR1" + b"\0" * 40 + b"PAR1", "parquet"),
        ("x.feather", b"ARROW1\0\0" + b"\0" * 40, "arrow"),
    ],
)
def test_a_table_is_left_to_polars(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert DataFile(path).kind == kind
    assert table_kind(path) == kind


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"Obj\x01\x04\x14avro.codec" + b"\0" * 40, "is an Avro container file; only JSON lines, CSV and Parquet"),
        (b"ORC\x08\x03" + b"\1" * 40, "is ORC"),
        (b"PK\x03\x04" + b"\0" * 40, "is a zip archive (as Excel workbooks are)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 40, "is an Excel workbook in the old format"),
        (b"SQLite format 3\0" + b"\0" * 40, "is an SQLite database"),
        (b"\x80\x04\x95\x10" + b"\0" * 40, "is a Python pickle"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 40, "is HDF5"),
        (b"\x93NUMPY\1\0" + b"\0" * 40, "is a NumPy array"),
        (b"\xff\xff\xff\xff\x10\0\0\0" + b"\0" * 40, "is an Arrow IPC stream"),
        (b"PARE" + b"\0" * 40, "is encrypted Parquet"),
        (b"\0\0\0\0\x2a\x06abc" + b"\xff" * 40, "is a message of a schema registry (schema id 42)"),
        (bytes(range(8, 60)) * 3, "is binary data, not text"),
        (b"caf\xe9 and more", "is binary data, not text"),
        (b"x.jsonl" + b"\0" * 250 + b"ustar\0" + b"00" + b"\0" * 40, "is a tar archive"),
        (gzip.compress(b"x.jsonl" + b"\0" * 250 + b"ustar\0" + b"\0" * 40, mtime=0), "is a tar archive"),
        # a tar archive of lines, of which each but the first looks like an event
        (
            gzip.compress(b"x.jsonl" + b"\0" * 250 + b"ustar\0" + b"\0" * 300 + b'{"a":1}\n{"a":2}\n', mtime=0),
            "is a tar archive",
        ),
        (zlib.compress(LINES), "is zlib data"),
        (lzma.compress(LINES, format=lzma.FORMAT_ALONE), "is data in the old LZMA format (.lzma)"),
        (b"\n<HTML><body>404</body></HTML>\n", "is HTML or XML"),
        (b"<events><event/></events>\n", "is HTML or XML"),
        (b"%PDF-1.7\n" + b"\0" * 40, "is a PDF document"),
        (b"<!DOCTYPE html><html>not found</html>" * 3, "is HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer, not the file itself"),
        (gzip.compress(b"PAR1" + b"\0" * 40, mtime=0), "is Parquet compressed by gzip; decompress it (gunzip)"),
        (bz2.compress(CSV), "is CSV compressed by bzip2; decompress it (bunzip2)"),
        (lzma.compress(CSV), "is CSV compressed by xz; decompress it (unxz)"),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.bin"])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CannotServe) as caught:
        DataFile(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {what}")


@pytest.mark.parametrize(
    "line",
    [
        b'data: {"a": 1, "b": 2}', b'key\t{"a": 1, "b": 2}', b'2026-01-05 INFO {"a": 1, "b": 2}',
        b'"{\\"a\\": 1, \\"b\\": 2}"',
    ],
)  # fmt: skip
def test_lines_with_json_inside_are_no_csv(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "x.jsonl").write_bytes((line + b"\n") * 3)
    assert list(DataFile(tmp_path / "x.jsonl").batches(7)) == [[line] * 3]


@pytest.mark.parametrize("content", [b"[]", b" [\n]\n"])
def test_an_empty_array_holds_no_events(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert list(DataFile(tmp_path / "x.json").batches(7)) == []


@pytest.mark.parametrize(("content", "what"), [(CSV, "CSV"), (b"PAR1" + b"\0" * 99, "Parquet")])
def test_a_table_in_a_pipe_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(CannotServe, match=f"is {what}, and a pipe must hold JSON lines; give the path of a file"):
        through_a_pipe(tmp_path, content)


def test_a_folder_and_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="is a folder; give one file in it"):
        DataFile(tmp_path)
    with pytest.raises(CannotServe, match="no such file"):
        DataFile(tmp_path / "none")


RANDOM = random.Random(1).randbytes(200_000).hex()
LONG = b"".join(b'{"a":"%b"}\n' % RANDOM[i : i + 100].encode() for i in range(0, len(RANDOM), 100))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_a_cut_or_damaged_file_is_an_error_and_not_the_end(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(LONG)
    for content, what in (
        (packed[: len(packed) // 2], "end too early"),
        (packed[: len(packed) // 2] + b"\x55" * 999 + packed[len(packed) // 2 :], "data are damaged"),
    ):
        (tmp_path / "x.jsonl").write_bytes(content)
        with pytest.raises(CannotServe, match=what):
            list(DataFile(tmp_path / "x.jsonl").batches(100))


def test_a_small_file_does_not_fill_the_memory(tmp_path: Path) -> None:
    """A gigabyte of blanks in a few kilobytes: never more than some megabytes at once."""
    path = tmp_path / "x.bz2"
    path.write_bytes(bz2.compress(b'{"a":1}\n') + bz2.compress(b" " * 200_000_000) + bz2.compress(b'\n{"a":2}\n'))
    chunks = decompression.decompress(iter([path.read_bytes()]), "bzip2", "x")
    assert max(map(len, chunks)) <= decompression._UNPACKED_BYTES


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a":1}\ngarbage\n{"a":2}\n', [b'{"a":1}', b"garbage", b'{"a":2}']),
        (b'garbage\n{"a":2}\n', [b"garbage", b'{"a":2}']),
        (b'{"a":1\n{"a":2}\n', [b'{"a":1', b'{"a":2}']),
        (b'{\n{"a":2}\n', [b"{", b'{"a":2}']),
        (b'{"a":NaN}\n{"a":NaN}\n', [b'{"a":NaN}', b'{"a":NaN}']),
        (b'\xff\n{"a":2}\n', [b"\xff", b'{"a":2}']),
        (b"[1,2]\n[3,4]\n", [b"[1,2]", b"[3,4]"]),
        (b"hello\n", [b"hello"]),
        (b"\n\n", []),
        (b"", []),
        (b'[{"a":1}, garbage, {"a":2}, {"a":', [b'{"a":1}', b"garbage", b'{"a":2}', b'{"a":']),
        (b'[{"a":1},{"b":"not closed},\n{"a":2}]', [b'{"a":1}', b'{"b":"not closed}', b'{"a":2}']),
    ],
)
def test_broken_json_is_never_lost(tmp_path: Path, content: bytes, expected: list[bytes]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    assert [item for items in DataFile(path).batches(100) for item in items] == expected


@pytest.mark.parametrize("make", [LineSplitter, ObjectSplitter])
def test_splitters_do_not_care_where_chunks_end(make: Callable[[], Any]) -> None:
    for size in (1, 2, 3, 10, 1000):
        splitter = make()
        found = [item for i in range(0, len(LINES), size) for item in splitter.feed(LINES[i : i + size])]
        assert [json.loads(item) for item in found + splitter.finish()] == EVENTS


@pytest.mark.parametrize("first", [b'{"a":0}\n', b'{"number":0}\n', b"garbage\n{}\n", b"garbage\ngarbage\n"])
def test_lines_of_a_slow_pipe_come_at_once(first: bytes) -> None:
    """The writer waits for each answer, so a reader that waited for more would wait for ever."""
    read_end, write_end = os.pipe()
    os.write(write_end, first)
    file = DataFile(Path(f"/dev/fd/{read_end}"))
    assert file.live
    batches = file.batches(4096)
    assert next(batches) == first.splitlines()
    os.write(write_end, b'{"a":1}\n{"b":')
    assert next(batches) == [b'{"a":1}']
    os.write(write_end, b"2}\n")
    assert next(batches) == [b'{"b":2}']
    os.write(write_end, b'{"c":3}')
    os.close(write_end)
    assert list(batches) == [[b'{"c":3}']]
    os.close(read_end)


def test_gzip_in_a_slow_pipe(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as sink:
        packer = gzip.GzipFile(fileobj=sink, mode="wb")
        packer.write(b'{"a":1,"b":"long enough to be seen"}\n')
        packer.flush()
        sink.flush()
        batches = DataFile(Path(f"/dev/fd/{read_end}")).batches(4096)
        assert len(next(batches)) == 1
        packer.close()
    assert list(batches) == []
    os.close(read_end)


def test_process_substitution(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(LINES))
    code = """if True:
        import pathlib, sys
        from lstmstream.formats.files import DataFile
        print(sum(map(len, DataFile(pathlib.Path(sys.argv[1])).batches(9))))
    """
    (tmp_path / "count.py").write_text(code)
    for command in (f"{sys.executable} count.py <(zcat x.gz)", f"{sys.executable} count.py /dev/stdin < x.gz"):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )
        assert (done.stdout, done.stderr) == ("50\n", "")
