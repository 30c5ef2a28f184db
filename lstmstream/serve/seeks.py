"""Where the client was told to read on, and whether it does: a seek that is lost must neither skip nor repeat records.

A client that goes on before its position gives records a second time, which their offsets show. One that goes on behind
it gives none of those between, and neither does a gap that compaction, control records or aborted transactions have
left. So the first offset after each seek is looked at, and where it lies further on, the stretch between is read once
more, outside the group.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from lstmstream.errors import TryAgain
from lstmstream.transport.ports import Transport

READ_S = 0.5  # of one call
MAX_READ_S = 10.0  # of one look: the member must be heard by its group meanwhile


class Seeks:
    """`resume` in place of the transport's, then `check` after each poll."""

    def __init__(self, transport: Transport, topic: str, clock: Callable[[], float]) -> None:
        """`topic`: the input."""
        self._transport = transport
        self._topic = topic
        self._clock = clock
        self._sought: dict[int, int] = {}  # partition → offset, until the client is seen to have gone there
        self._empty: dict[int, tuple[int, int]] = {}  # partition → offsets (the end not included) without a record

    def resume(self, partition: int, offset: int) -> None:
        """See GroupMember."""
        self._sought[partition] = offset
        self._transport.resume(partition, offset)

    def check(
        self,
        first_offsets: Mapping[int, int],
        positions: Mapping[int, int],
        processed: Mapping[int, int],
        running: Collection[int],
    ) -> None:
        """Raises TryAgain where records come again, or were skipped; there is nothing to be processed then.

        By partition: `first_offsets` of the records that were polled, the client's `positions` after that poll, and
        `processed`, the offsets before which all is processed, of those that gave records.
        """
        for partition, offset in first_offsets.items():
            if offset < processed[partition]:
                raise TryAgain(
                    f"{self._topic}[{partition}] returned offset {offset} again,"
                    f" although its position was {processed[partition]}"
                )
        for partition in self._sought.keys() & running:
            sought = self._sought[partition]
            reached = first_offsets.get(partition, positions.get(partition, sought))
            if reached > sought:
                self._check_empty(partition, sought, reached)
            if reached > sought or partition in first_offsets:
                del self._sought[partition]

    def _check_empty(self, partition: int, start: int, end: int) -> None:
        """Raises TryAgain if a record lies from `start` to before `end`, or if that cannot be found out in time."""
        known_start, known_end = self._empty.get(partition, (start, start))
        position = known_end if known_start <= start <= known_end else start
        if position >= end:
            return
        give_up_s = self._clock() + MAX_READ_S
        reader = self._transport.open_reader(self._topic, partition, position, end)
        try:
            while reader.position < end:
                records = reader.next(READ_S)
                if len(records):
                    first = records.first_offsets()[partition]
                    raise TryAgain(
                        f"{self._topic}[{partition}] skipped offset {first}: it returned {end} after {start}"
                    )
                self._empty[partition] = (start, reader.position)  # for the next look, if this one takes too long
                if self._clock() > give_up_s:
                    raise TryAgain(
                        f"{self._topic}[{partition}] returned {end} after {start}; what lies between is still read,"
                        f" at {reader.position}"
                    )
        finally:
            reader.close()
