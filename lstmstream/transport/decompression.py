"""What kafka-python may unpack. Its own decoders have no limit: 300 MB of zeros in a 300 kB gzip batch took 900 MB.

They are replaced by bounded ones, for the whole process; snappy is left alone, since its format cannot grow by more
than 21. How much one poll unpacks is bounded too: clients/kafka_python_records.py.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from typing import IO, Any

import kafka.errors as kerr
import lz4.frame
import zstandard
from kafka.record import default_records, legacy_records

UNPACKED_MAX_BYTES = 128 << 20


class BatchTooLargeError(kerr.KafkaError):  # type: ignore[misc]
    """A compressed batch that would unpack to more than the bound."""


def limit_decompression() -> None:
    """Put the bound in place; a second call changes nothing."""
    for module in (default_records, legacy_records):
        module.gzip_decode = _gzip
        module.lz4_decode = _lz4
    default_records.zstd_decode = _zstd


def _bounded(reader: Callable[[IO[bytes]], Any]) -> Callable[[bytes | memoryview], bytes]:
    def decode(payload: bytes | memoryview) -> bytes:
        with reader(io.BytesIO(payload)) as unpacking:
            unpacked: bytes = unpacking.read(UNPACKED_MAX_BYTES + 1)
        if len(unpacked) > UNPACKED_MAX_BYTES:
            raise BatchTooLargeError(
                f"it is too large to unpack: {len(payload)} bytes unpack to more than {UNPACKED_MAX_BYTES}"
            )
        return unpacked

    return decode


_gzip = _bounded(lambda packed: gzip.GzipFile(fileobj=packed))
_lz4 = _bounded(lz4.frame.LZ4FrameFile)
_zstd = _bounded(lambda packed: zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True))
