"""confluent-kafka reads the metadata of committed offsets beyond their end."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import pytest

from lstmstream.transport.clients.confluent import ConfluentAdmin
from lstmstream.transport.clients.offset_metadata import up_to_end, with_end
from lstmstream.transport.ports import CommittedOffset

NONCE = "lstmstream:0123456789abcdef:41:of4"


class Offset:
    """A TopicPartition, with the bytes that its metadata are read from."""

    error = None
    partition = 3
    offset = 7

    def __init__(self, memory: bytes | None) -> None:
        self._memory = memory

    @property
    def metadata(self) -> str | None:
        """As the library: text, or an error."""
        return None if self._memory is None else self._memory.decode()


@pytest.mark.parametrize("behind", [b"", b"\x05\r\x10\x12\x7f", b"7", b"\xc5\x01", b";", b"1;\xff"])
def test_what_stands_behind_the_metadata_is_not_read(behind: bytes) -> None:
    assert committed(with_end(NONCE).encode() + behind) == {3: CommittedOffset(7, NONCE)}


@pytest.mark.parametrize("memory", [b"", None])
def test_metadata_may_be_empty(memory: bytes | None) -> None:
    assert committed(memory) == {3: CommittedOffset(7, "")}


@pytest.mark.parametrize("memory", [b"somebody", b"somebody\xff"])
def test_metadata_of_another_program_are_no_error(memory: bytes) -> None:
    assert committed(memory)[3].metadata.startswith("somebody")


def test_the_other_client_cuts_at_the_same_place() -> None:
    assert up_to_end(with_end(NONCE)) == NONCE
    assert up_to_end("somebody") == "somebody"


def committed(memory: bytes | None) -> dict[int, CommittedOffset]:
    class Consumer:
        def committed(self, _partitions: object, timeout: float) -> list[Offset]:
            return [Offset(memory)]

    admin = ConfluentAdmin(cast("Any", None), lambda: cast("Any", Consumer()), lambda: nullcontext(cast("Any", None)))
    return admin.committed("in", [3], 1.0)
