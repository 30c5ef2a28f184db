"""What the log says of a restore that goes on, though something is not as it should be."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from lstmstream.serve.state_records import StateIdentity

log = logging.getLogger(__name__)


class RestoreWarnings(NamedTuple):
    """Of one partition's restore."""

    partition: int
    said: set[str]  # what was said once and holds for all partitions

    def of_reset(self, ours: StateIdentity, others: Iterable[StateIdentity]) -> None:
        """Once for all partitions."""
        text = f"starting with empty states (on_model_change: reset): {ours} has none"
        text += "".join(f"; the state topic has those of {other}" for other in others)
        if text not in self.said:
            self.said.add(text)
            log.warning("%s", text)

    def of_rebuild(self, ours: StateIdentity, origin: int, committed: int) -> None:
        """The events from the origin to the group's offset are read again."""
        log.warning(
            "rebuilding the states from the input (on_model_change: replay): %s has none",
            ours,
            extra={"partition": self.partition, "first": origin, "last": committed - 1},
        )

    def of_moving_back(self, first: int, end: int) -> None:
        """`end` is a lower bound after a crash: the floor record may be older than the last predictions."""
        log.warning(
            "the group's offset was moved back, and not by lstmstream: the events at these offsets were answered"
            " before, and are answered again",
            extra={"partition": self.partition, "first": first, "last": end - 1},
        )

    def of_gap(self, first: int, end: int, states: str) -> None:
        """`states`: whether these events are in the states."""
        log.warning(
            "the group's offset was moved forward, and not by lstmstream: these offsets have no prediction; %s",
            states,
            extra={"partition": self.partition, "first": first, "last": end - 1},
        )
