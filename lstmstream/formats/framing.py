"""What bytes are that should be UTF-8 JSON and are not: by their first bytes. Pure; nothing is decompressed here."""

from __future__ import annotations

import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE

GZIP, ZSTD, BZIP2, XZ = "gzip", "zstd", "bzip2", "xz"
PARQUET, ARROW = "Parquet", "Arrow IPC (Feather)"

COMPRESSIONS = {b"\x1f\x8b\x08": GZIP, b"\x28\xb5\x2f\xfd": ZSTD, b"BZh": BZIP2, b"\xfd7zXZ\0": XZ}
_MAGIC = {  # first bytes of files; none of them can begin JSON
    b"PAR1": PARQUET,
    b"ARROW1": ARROW,
    b"PARE": "encrypted Parquet",
    b"\xff\xff\xff\xff": "an Arrow IPC stream",
    b"FEA1": "Feather version 1",
    b"Obj\x01": "an Avro container file",
    b"ORC": "ORC",
    b"SQLite format 3\0": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive (as Excel workbooks are)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Excel workbook in the old format (.xls)",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\x04\x22\x4d\x18": "LZ4 data",
    b"\xff\x06\0\0sNaPpY": "Snappy data",
    b"\x82SNAPPY\0": "Snappy data",
    b"\x1f\x9d": "data compressed by compress (.Z)",
    b"%PDF-": "a PDF document",
    b"\x78\x9c": "zlib data",
    b"\x78\xda": "zlib data",
    b"\x78\x01": "zlib data",
    b"\x5d\x00\x00": "data in the old LZMA format (.lzma)",
    b"version https://git-lfs.github.com/": "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
}
_MARKUP = re.compile(rb"\s*<[A-Za-z!?]")
_PICKLE = re.compile(rb"\x80[\x02-\x05][^\0]")
_CONTROL = re.compile(rb"[\0-\x08\x0e-\x1d\x1f\x7f]")  # \x1e separates records in RFC 7464
_BOMS = {  # UTF-32's begins with UTF-16's
    BOM_UTF32_LE: "utf-32", BOM_UTF32_BE: "utf-32", BOM_UTF16_LE: "utf-16", BOM_UTF16_BE: "utf-16",
    BOM_UTF8: "utf-8-sig",
}  # fmt: skip
_REGISTRY_HEADER = 5  # bytes: a zero, and the schema's id
_CHECKED_BYTES = 4096


def compression(head: bytes) -> str | None:
    """GZIP, ZSTD, BZIP2 or XZ; None for other bytes. Six bytes are enough."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def file_format(head: bytes) -> str | None:
    """The format of a file that is neither text nor compressed: PARQUET, ARROW, or a name; None for other bytes."""
    if text_encoding(head) is not None:  # UTF-16 has zeros too
        return None
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if _MARKUP.match(head):
        return "HTML or XML"
    if _PICKLE.match(head):
        return "a Python pickle"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return _registry_message(head)


def text_encoding(head: bytes) -> str | None:
    """The codec of text that has a byte order mark, or is UTF-16 or UTF-32 without one; else None: UTF-8, or no text.

    Eight bytes are enough.
    """
    for mark, codec in _BOMS.items():
        if head.startswith(mark):
            return codec
    zeros = [byte == 0 for byte in head[:8]]
    if zeros == [True, True, True, False] * 2:
        return "utf-32-be"
    if zeros == [False, True, True, True] * 2:
        return "utf-32-le"
    if zeros[:4] == [True, False] * 2:
        return "utf-16-be"
    if zeros[:4] == [False, True] * 2:
        return "utf-16-le"
    return None


def is_binary(head: bytes) -> bool:
    """Whether the bytes have control characters that no text has."""
    return _CONTROL.search(head) is not None


def describe_bytes(value: bytes) -> str | None:
    """What a value is that should be UTF-8 JSON, for a message; None where nothing better can be said than that."""
    head = value[:_CHECKED_BYTES]
    if (packed := compression(head)) is not None:
        return f"{packed} data"
    if (found := file_format(head)) is not None:
        return found
    codec = text_encoding(head)
    if codec is not None and codec != "utf-8-sig":
        return f"{codec[:6].upper()} text"
    if codec is None and is_binary(head):
        return "binary data"
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return f"text in an encoding other than UTF-8 (byte 0x{value[error.start]:02x} at {error.start})"
    return None


def _registry_message(head: bytes) -> str | None:
    if len(head) > _REGISTRY_HEADER and head[0] == 0:
        schema = int.from_bytes(head[1:_REGISTRY_HEADER], "big")
        if 0 < schema < 2**24:
            return f"a message of a schema registry (schema id {schema}): Avro, Protobuf or JSON Schema, not plain JSON"
    return None
