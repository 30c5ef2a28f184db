"""The metadata of committed offsets, with an end that can be seen.

confluent-kafka takes them for a text with a zero byte at its end, which librdkafka does not always give it: it reads
on in memory, and finds other characters, or bytes that are no text (seen with 2.16.1). So what we write ends with a
character that it has nowhere else, and what is read is cut there, whichever library wrote it.
"""

from __future__ import annotations

from typing import Any

_END = ";"


def with_end(metadata: str) -> str:
    """The metadata as they are committed."""
    return metadata + _END


def up_to_end(metadata: str) -> str:
    """The metadata as they were before they were committed; what has no end, as other programs write it, is left."""
    return metadata.partition(_END)[0]


def metadata_of(offset: Any) -> str:
    """The metadata of a TopicPartition of confluent-kafka, without what was read behind them."""
    try:
        return up_to_end(offset.metadata or "")
    except UnicodeDecodeError as error:
        return up_to_end(bytes(error.object).decode("utf-8", "replace"))
