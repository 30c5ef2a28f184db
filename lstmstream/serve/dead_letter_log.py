"""Dead letters in the log: a line for each kind, once a minute at most, with the place of one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lstmstream.formats.field_names import listed, names_of
from lstmstream.logs import message_kind
from lstmstream.serve.failure_log import FailureLog
from lstmstream.serve.observers import Observer

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result

INTERVAL_S = 60.0
MAX_KINDS = 50  # of them that are told apart: a message may name a field
NOTHING_ELSE_EVENTS = 100


log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    topic: str
    partition: int
    offset: int
    message: str


@dataclass(slots=True)
class _Kind:
    sample: _Sample
    logged_s: float
    count: int = 0  # since the last line


class DeadLetterLog(Observer):
    """Messages are of one kind if they differ in numbers only. They never repeat a value of the event."""

    def __init__(self, clock: Callable[[], float], topic: str) -> None:
        """`clock`: monotonic seconds. `topic`: where the dead letters are."""
        self._clock = clock
        self._topic = topic
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._next_s = 0.0
        self._in_a_row = 0  # dead letters without a prediction between them
        self._warned = False
        self._failures = FailureLog(log, clock)

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Note its dead letters; the first of a kind is logged at once."""
        records = result.records
        now_s = self._clock()
        for letter in result.dead_letters:
            name = (letter.stage, message_kind(letter.message))
            if name not in self._kinds and len(self._kinds) >= MAX_KINDS:
                name = (letter.stage, "")
            at = letter.index
            sample = _Sample(records.topic, int(records.partitions[at]), int(records.offsets[at]), letter.message)
            kind = self._kinds.get(name)
            if kind is None:
                self._kinds[name] = _Kind(sample, now_s)
                self._log(letter.stage, sample, 1)
            else:
                kind.sample = sample if not kind.count else kind.sample
                kind.count += 1
        self._note_share(result)
        if result.resets:
            self._failures.note(
                "states had grown until the model's output was no longer finite; their keys start with fresh states",
                f"{result.resets} in a batch",
            )

    def on_loop(self) -> None:
        """Log the kinds that came again, each a minute after its last line."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + 1
        for name, kind in list(self._kinds.items()):
            if now_s - kind.logged_s < INTERVAL_S:
                continue
            if not kind.count:
                del self._kinds[name]
                continue
            self._log(name[0], kind.sample, kind.count)
            kind.logged_s, kind.count = now_s, 0

    def _log(self, stage: str, sample: _Sample, count: int) -> None:
        log.warning(
            "dead letters: %s",
            sample.message,
            extra={
                "stage": stage,
                "count": count,
                "topic": sample.topic,
                "partition": sample.partition,
                "offset": sample.offset,
            },
        )

    def _note_share(self, result: Result) -> None:
        """Warn once where nothing but dead letters comes."""
        if len(result.predictions.score):
            if self._warned:
                log.info("events are scored again")
            self._in_a_row, self._warned = 0, False
            return
        self._in_a_row += len(result.dead_letters)
        if self._in_a_row >= NOTHING_ELSE_EVENTS and not self._warned:
            self._warned = True
            log.warning(
                "none of the last %d events could be scored: all became dead letters. Compare the events with what"
                " the model reads (lstmstream model inspect MODEL) and with input.key and input.timestamp; topic %s has"
                " them, with the reason in their headers. The last ones have the fields %s",
                self._in_a_row,
                self._topic,
                listed(names_of(result.decoded.documents), none="(none)"),
            )
