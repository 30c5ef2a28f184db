"""Compressed bytes to bytes, as they come: gzip, bzip2, xz and zstd behind the interface of bz2 and lzma."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from lstmstream.errors import CannotServe
from lstmstream.formats.framing import BZIP2, GZIP, XZ, ZSTD

_UNPACKED_BYTES = 4 << 20  # at once, whatever the compression promises


class _Gzip:
    """zlib's decompressor with the methods of bz2's and lzma's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstd:
    """The same for the package zstandard, which has no bound for its output."""

    needs_input = True

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor().decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        del max_length
        return bytes(self._inner.decompress(data))


DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError, ValueError)  # what they raise
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    GZIP: _Gzip, BZIP2: bz2.BZ2Decompressor, XZ: lzma.LZMADecompressor, ZSTD: _Zstd,
}  # fmt: skip


def decompress(chunks: Iterator[bytes], packed: str, name: str) -> Iterator[bytes]:
    """The decompressed bytes of one or more streams, one after the other. Raises CannotServe for damaged data."""
    make = DECOMPRESSORS[packed]
    stream = make()
    begun = False
    try:
        for chunk in chunks:
            if not chunk:
                yield b""
            data = chunk
            while data or not stream.needs_input:
                if stream.eof:  # another stream may follow, or zeros that fill a block
                    data = (data or b"").lstrip(b"\0")
                    if not data:
                        break
                    stream = make()
                begun = True
                unpacked = stream.decompress(data, _UNPACKED_BYTES)
                data = stream.unused_data if stream.eof else b""
                if unpacked:
                    yield unpacked
                if stream.eof and not data:
                    begun = False
                    break
    except DAMAGED as error:
        raise CannotServe(f"{name}: its {packed} data are damaged: {error}; fetch the file again") from error
    if begun and not stream.eof:
        raise CannotServe(f"{name}: its {packed} data end too early; the file was cut off: fetch it again")
