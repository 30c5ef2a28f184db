"""What kafka-python may unpack, and what it says of a record that it cannot read.

It unpacks without limit: 300 MB of zeros in a 300 kB gzip batch took 900 MB of memory. Its decoders are replaced by
bounded ones, for the whole process; snappy is left alone, since its format cannot grow by more than 21. And whatever
goes wrong in decoding is raised with its place.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator
from typing import IO, Any

import kafka.errors as kerr
import lz4.frame
import zstandard
from kafka.consumer.fetcher import Fetcher
from kafka.record import default_records

UNPACKED_MAX_BYTES = 128 << 20


class UnreadableRecordError(kerr.KafkaError):  # type: ignore[misc]
    """A record or a compressed batch that cannot be decoded; the message names its place."""


class BatchTooLargeError(UnreadableRecordError):
    """A compressed batch that would unpack to more than the bound."""


def limit_decompression() -> None:
    """Put the bound in place; a second call changes nothing."""
    records = Fetcher.PartitionRecords
    if records._unpack_records is _unpack_with_place:
        return
    global _unpack_records  # noqa: PLW0603 - what was replaced, for the one that replaces it
    _unpack_records = records._unpack_records
    records._unpack_records = _unpack_with_place
    default_records.gzip_decode = _bounded(lambda packed: gzip.GzipFile(fileobj=packed))
    default_records.lz4_decode = _bounded(lz4.frame.LZ4FrameFile)
    default_records.zstd_decode = _bounded(
        lambda packed: zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    )


_unpack_records: Callable[..., Iterator[Any]]


def _bounded(reader: Callable[[IO[bytes]], Any]) -> Callable[[bytes | memoryview], bytes]:
    def decode(payload: bytes | memoryview) -> bytes:
        with reader(io.BytesIO(payload)) as unpacking:
            unpacked: bytes = unpacking.read(UNPACKED_MAX_BYTES + 1)
        if len(unpacked) > UNPACKED_MAX_BYTES:
            raise BatchTooLargeError(f"{len(payload)} bytes unpack to more than {UNPACKED_MAX_BYTES}")
        return unpacked

    return decode


def _unpack_with_place(self: Any, at: Any, *rest: Any) -> Iterator[Any]:
    """kafka-python's generator of records, with the place in the error."""
    try:
        yield from _unpack_records(self, at, *rest)
    except BatchTooLargeError as error:
        place = f"{at.topic}[{at.partition}]@{self.next_fetch_offset}"
        raise BatchTooLargeError(f"{place}: a compressed batch is too large to unpack: {error}") from error
    except Exception as error:
        place = f"{at.topic}[{at.partition}]@{self.next_fetch_offset}"
        raise UnreadableRecordError(f"{place}: a record cannot be decoded: {error}") from error
