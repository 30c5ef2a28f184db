"""What a data file or a pipe holds, by its first bytes, and the JSON events in it, as they come.

Names of files are not trusted: they decide only where the bytes leave a choice. JSON is read as lines, as one array,
or as objects one after the other; compressed by gzip, bzip2, xz or zstd; in UTF-8, UTF-16 or UTF-32. Tables (CSV,
Parquet, Arrow) are named, for polars to read. All that is known and cannot be read is an error that says what it is.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Literal

from lstmstream.errors import CannotServe
from lstmstream.formats.decompression import DAMAGED, DECOMPRESSORS, decompress
from lstmstream.formats.framing import (
    ARROW,
    BZIP2,
    GZIP,
    PARQUET,
    XZ,
    ZSTD,
    compression,
    file_format,
    is_binary,
    text_encoding,
)
from lstmstream.formats.json_splitting import LineSplitter, ObjectSplitter, first_object, is_object

Kind = Literal["jsonl", "csv", "parquet", "arrow"]
Chunks = Iterator[bytes]

JSONL_SUFFIXES = {".jsonl", ".ndjson", ".json"}
STANDARD_INPUT = "standard input"
_KIND_OF_SUFFIX: dict[str, Kind] = {
    **dict.fromkeys(JSONL_SUFFIXES, "jsonl"), ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".feather": "arrow", ".arrow": "arrow",
}  # fmt: skip
_KIND_NAMES: dict[Kind, str] = {"jsonl": "JSON", "csv": "CSV", "parquet": PARQUET, "arrow": ARROW}
_TEXT_SUFFIXES = {".csv", ".tsv", ".tab", ".txt"}
_PACKED_SUFFIXES = {".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd"}
_UNPACK = {GZIP: "gunzip", BZIP2: "bunzip2", XZ: "unxz", ZSTD: "unzstd"}
_EMPTY_ARRAY = re.compile(rb"\s*\[\s*\]\s*")
_JSON_INSIDE = re.compile(rb'\{\s*\\?"')
_SEPARATORS = (b",", b";", b"\t", b"|")

_CHUNK_BYTES = 1 << 20
_PEEK_BYTES = 1 << 16  # of text, until its form must be known
_ENCODING_BYTES = 8  # that `text_encoding` needs
_MAGIC_BYTES = 34  # the longest that `framing` knows
_LISTED_LINES = 20
_WAIT_MS = 20  # until a pipe counts as idle


class DataFile:
    """An opened file or pipe of events, whose kind is known. Close it, or read it to its end."""

    def __init__(self, path: Path | None) -> None:
        """`path` None is standard input. Raises CannotServe, also for what cannot be read."""
        self.path = path
        self.name = STANDARD_INPUT if path is None else str(path)
        self.kind: Kind = "jsonl"
        self.notes: list[str] = []  # what the user should know of the file's form: one line each
        self._input = _Input(path, self.name)
        self._splitter: LineSplitter | ObjectSplitter = LineSplitter()
        self._chunks: Chunks = iter(())
        try:
            self._recognise()
        except BaseException:
            self.close()
            raise

    @property
    def live(self) -> bool:
        """Whether this is a pipe or a terminal, whose lines may come slowly."""
        return self._input.live

    @property
    def size(self) -> int | None:
        """Bytes of the file as it lies there; None for a pipe."""
        return self._input.size

    @property
    def position(self) -> int:
        """Bytes that were read so far."""
        return self._input.position

    def close(self) -> None:
        """Closes the file."""
        self._input.close()

    def batches(self, limit: int) -> Iterator[list[bytes]]:
        """The events of JSON in lists of 1 to `limit`, fewer than that at the end and where a pipe is idle.

        Raises CannotServe for damaged data.
        """
        waiting: list[bytes] = []
        for chunk in self._chunks:
            if chunk:
                waiting += self._splitter.feed(chunk)
            start = 0
            while len(waiting) - start >= limit:
                yield waiting[start : start + limit]
                start += limit
            del waiting[:start]
            if waiting and not chunk:
                yield waiting
                waiting = []
        waiting += self._splitter.finish()
        for start in range(0, len(waiting), limit):
            yield waiting[start : start + limit]
        self.close()

    def _recognise(self) -> None:
        suffixes = [] if self.path is None else [part.lower() for part in self.path.suffixes]
        packed_name = bool(suffixes) and suffixes[-1] in _PACKED_SUFFIXES
        suffix = next(iter(suffixes[-2:-1] if packed_name else suffixes[-1:]), "")
        packed, head, chunks = self._unpacked(self._input.chunks(), suffix)
        found = file_format(head)
        if found in {PARQUET, ARROW}:
            self.kind = "parquet" if found == PARQUET else "arrow"
        elif found is not None:
            raise CannotServe(f"{self.name}: is {found}; only JSON lines, CSV and Parquet can be read: convert it")
        elif not head and suffix in _KIND_OF_SUFFIX:
            self.kind = _KIND_OF_SUFFIX[suffix]
            return None
        else:
            self._recognise_text(head, chunks, suffix)
        return self._check_table(packed, suffix, packed_name=packed_name)

    def _unpacked(self, chunks: Chunks, suffix: str) -> tuple[str | None, bytes, Chunks]:
        """The outermost compression, the first bytes below all compressions, and all bytes below them."""
        outermost = None
        for _ in range(4):
            head, chunks = _peek(chunks, _MAGIC_BYTES)
            packed = compression(head)
            if packed is None:
                break
            outermost = outermost or packed
            chunks = decompress(chunks, packed, self.name)
        return outermost, head, chunks

    def _recognise_text(self, head: bytes, chunks: Chunks, suffix: str) -> None:
        encoding = text_encoding(head)
        if encoding is not None:
            chunks = _transcode(chunks, encoding, self.name)
        head, chunks, form = _peek_form(chunks, suffix)
        found = file_format(head[:_PEEK_BYTES])  # there are more bytes now
        if form == "binary" or found is not None:
            what = found or "binary data, not text"
            raise CannotServe(f"{self.name}: is {what}; only JSON lines, CSV and Parquet can be read: convert it")
        if form == "csv":
            self.kind = "csv"
            return
        if form == "lines" and _KIND_OF_SUFFIX.get(suffix) in {"parquet", "arrow"} and b"{" not in head:
            raise CannotServe(
                f"{self.name}: cannot be read as {suffix[1:]}: it does not start like one; write it again"
            )
        if form == "objects":
            self._splitter = ObjectSplitter()
            if suffix in {".jsonl", ".ndjson"}:
                what = "a JSON array" if head.lstrip()[:1] == b"[" else "JSON objects that are not one per line"
                self.notes.append(f"{self.name}: holds {what}; each object is read as one event")
        if encoding not in {None, "utf-8-sig"}:
            self.notes.append(f"{self.name}: is {encoding[:6].upper() if encoding else ''} text; it is read as such")
        self._chunks = chunks

    def _check_table(self, packed: str | None, suffix: str, *, packed_name: bool) -> None:
        """Notes what contradicts the file's name. Raises CannotServe for tables that polars cannot read as they are."""
        form = _KIND_NAMES[self.kind]
        if self.kind != "jsonl":
            if self.live or self.path is None:
                raise CannotServe(f"{self.name}: is {form}, and a pipe must hold JSON lines; give the path of a file")
            if packed is not None and (self.kind != "csv" or packed not in {GZIP, ZSTD}):
                raise CannotServe(f"{self.name}: is {form} compressed by {packed}; decompress it ({_UNPACK[packed]})")
            self.close()
        if self.path is None:
            return
        if _KIND_OF_SUFFIX.get(suffix, self.kind) != self.kind:
            self.notes.append(f"{self.name}: is {form}, despite its name; it is read as such")
        elif packed is not None and suffix and not packed_name:
            self.notes.append(f"{self.name}: is compressed by {packed}, despite its name; it is read as such")


def table_kind(path: Path) -> Kind:
    """csv, parquet or arrow, by the first bytes of a file that holds a table; by its name where it cannot be read."""
    head = b""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(_MAGIC_BYTES)
    found = file_format(head)
    if found == PARQUET:
        return "parquet"
    if found == ARROW:
        return "arrow"
    return "csv" if head else _KIND_OF_SUFFIX.get(path.suffix.lower(), "csv")


def text_start(path: Path, most_bytes: int) -> bytes:
    """The first bytes of a text file that may be compressed, at most `most_bytes` or so. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(most_bytes)
    packed = compression(head)
    if packed is not None:
        with suppress(*DAMAGED):
            head = DECOMPRESSORS[packed]().decompress(head, most_bytes)
    return head


class _Input:
    """The bytes of a file, of a pipe or of standard input."""

    def __init__(self, path: Path | None, name: str) -> None:
        self.size: int | None = None
        self.live = False
        self.position = 0
        self._name = name
        self._fd: int | None = None
        self._owned = path is not None
        self._read: Callable[[int], bytes]
        try:
            if path is None:
                try:
                    self._fd = sys.stdin.fileno()
                except (OSError, AttributeError):  # replaced by a stream in memory
                    self._read = sys.stdin.buffer.read if sys.stdin is not None else lambda _: b""
                    return
            else:
                if path.is_dir():
                    raise CannotServe(f"{name}: is a folder; give one file in it")
                self._fd = os.open(path, os.O_RDONLY)
            status = os.fstat(self._fd)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            raise CannotServe(
                f"{name}: no such file" if missing else f"{name}: cannot be read: {error.strerror}"
            ) from error
        if stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        else:
            self.live = True
        self._read = lambda size: os.read(self._fd, size) if self._fd is not None else b""

    def chunks(self) -> Chunks:
        """The bytes as they come; b"" wherever nothing is waiting, before the next are waited for."""
        poll = select.poll() if self.live else None
        if poll is not None and self._fd is not None:
            poll.register(self._fd, select.POLLIN)
        while True:
            if poll is not None and not poll.poll(_WAIT_MS):
                yield b""
            try:
                chunk = self._read(_CHUNK_BYTES)
            except OSError as error:
                raise CannotServe(f"{self._name}: cannot be read: {error.strerror}") from error
            if not chunk:
                return
            self.position += len(chunk)
            yield chunk

    def close(self) -> None:
        if self._owned and self._fd is not None:
            os.close(self._fd)
        self._fd = None


def _peek(chunks: Chunks, size: int) -> tuple[bytes, Chunks]:
    """The first `size` bytes or more, fewer where there are no more; and all chunks again."""
    head = b""
    while len(head) < size:
        chunk = next(chunks, None)
        if chunk is None:
            break
        head += chunk
        if len(head) >= _ENCODING_BYTES and b"\n" in head and not is_binary(head):  # a line of text need not wait
            break
    return head, chain([head], chunks)


def _peek_form(chunks: Chunks, suffix: str) -> tuple[bytes, Chunks, str]:
    """The first bytes of text, all chunks again, and its form: lines, objects, csv or binary."""
    head = b""
    while True:
        chunk = next(chunks, None)
        head += chunk or b""
        if form := _text_form(head, suffix, ended=chunk is None or len(head) >= _PEEK_BYTES):
            return head, chain([head], chunks), form


def _text_form(head: bytes, suffix: str, *, ended: bool) -> str:
    """The form of text that begins with `head`; empty where more must be seen. `ended`: more will not be seen."""
    lines = head.split(b"\n", _LISTED_LINES)
    lines = [line.strip() for line in (lines if ended else lines[:-1]) if line.strip()]
    if not lines:
        return "lines" if ended else ""
    first = lines[0]
    if is_object(first):
        return "lines"
    if first[:1] in {b"{", b"[", b"\x1e"}:
        return _json_form(head, lines, ended=ended)
    if len(lines) == 1 and not ended:
        return ""
    return "lines" if any(line[:1] == b"{" for line in lines) else _other_form(head, first, suffix)


def _json_form(head: bytes, lines: list[bytes], *, ended: bool) -> str:
    """The form of text whose first line begins as JSON and is not an object."""
    if ended and _EMPTY_ARRAY.fullmatch(head):
        return "objects"
    found = first_object(head)
    if found is not None:
        return "objects" if is_object(found) else "lines"
    broken = lines[0][:1] == b"{" and len(lines) > 1 and is_object(lines[1])
    return "lines" if broken or ended else ""


def _other_form(head: bytes, first: bytes, suffix: str) -> str:
    """The form of a file none of whose first lines begins as a JSON object."""
    if is_binary(head[:_PEEK_BYTES]):
        return "binary"
    if _JSON_INSIDE.search(first):  # a key or a log's prefix before it, or a string of JSON: not a header of CSV
        return "lines"
    if suffix in _TEXT_SUFFIXES or any(separator in first for separator in _SEPARATORS):
        return "csv"
    try:
        first.decode()
    except UnicodeDecodeError:
        return "binary"
    return "lines"


def _transcode(chunks: Chunks, encoding: str, name: str) -> Chunks:
    """The text as UTF-8, without a byte order mark. Raises CannotServe for invalid text."""
    if encoding == "utf-8-sig":
        head, rest = _peek(chunks, len(codecs.BOM_UTF8))
        del head
        yield next(rest)[len(codecs.BOM_UTF8) :]
        yield from rest
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise CannotServe(f"{name}: is not valid {encoding[:6].upper()} text: {error}; save it as UTF-8") from error
