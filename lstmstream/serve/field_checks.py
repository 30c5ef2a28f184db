"""Fields that the model or the configuration names and the events never have: said once, with numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lstmstream.formats.field_names import listed, names_of, same_name, similar_name
from lstmstream.formats.json_documents import ABSENT, Document, locate
from lstmstream.formats.json_types import a_json_type
from lstmstream.model import Card
from lstmstream.serve.observers import Observer

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result

WINDOW_EVENTS = 1_000  # in a row without the field
FEW_EVENTS, FEW_AFTER_S = 20, 60.0  # or fewer, where they come slowly
LOOK_S = 1.0
DOCUMENTS = 20  # are kept
LOOK_DOCUMENTS = 200  # of a batch, for names that are nearly those of the features
QUIET_S = 3_600.0  # a field that comes and goes is said once an hour at most

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Absence:
    """How long one field has not come, or a category had no known value."""

    events: int = 0
    since_s: float = 0.0
    warned: bool = False
    quiet_until_s: float = 0.0


class FieldChecks(Observer):
    """Looks at the committed events' fields; the metrics by field are counted in MetricsObserver."""

    def __init__(self, card: Card, carried: Sequence[str], clock: Callable[[], float]) -> None:
        """`carried`: the fields that `output.include` and `output.key` name. `clock`: monotonic seconds."""
        self._features = card.features
        self._clock = clock
        self._missing = [_Absence() for _ in card.features]
        self._unknown = [_Absence() for _ in card.features]
        self._carried = {name: _Absence() for name in carried}
        self._documents: Sequence[Document] = ()  # of the newest events, to name the fields that there are
        self._next_look_s = 0.0
        self._next_rename_look_s = 0.0
        self._renamed_quiet_until_s: dict[str, float] = {}  # by the name of the feature

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Note what its events have."""
        decoded, now_s = result.decoded, self._clock()
        events = len(decoded.observations.index)
        if not events:
            return
        self._documents = decoded.documents[:DOCUMENTS]
        counts = decoded.field_counts
        for place, feature in enumerate(self._features):
            missing, unknown = int(counts.missing[place]), int(counts.unknown[place])
            _note(self._missing[place], missing == events, events, now_s)
            if feature.kind == "category" and feature.vocabulary is not None and missing < events:
                _note(self._unknown[place], unknown == events - missing, events - missing, now_s)
        for name, absence in self._carried.items():
            absent = not any(locate(document, name) is not ABSENT for document in decoded.documents)
            _note(absence, absent, events, now_s)
        if now_s >= self._next_rename_look_s:
            self._next_rename_look_s = now_s + LOOK_S
            self._look_for_other_names(result, now_s)
        self._warn(now_s)

    def on_loop(self) -> None:
        """Events that came in a burst, with none after them, count as slow ones."""
        now_s = self._clock()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_S
            self._warn(now_s)

    def _warn(self, now_s: float) -> None:
        for place, feature in enumerate(self._features):
            if _is_due(self._missing[place], now_s):
                self._warn_missing(feature.name, "the model reads it", self._missing[place])
            if _is_due(self._unknown[place], now_s):
                log.warning(
                    "field %r: none of the last %d events has a value that the model knows; it counts as unknown,"
                    " and predictions may be less accurate. Compare the spelling with the values in the model"
                    " (lstmstream model inspect --json MODEL), or train again",
                    feature.name,
                    self._unknown[place].events,
                )
        for name, absence in self._carried.items():
            if _is_due(absence, now_s):
                self._warn_missing(name, "output.include or output.key names it", absence)

    def _warn_missing(self, name: str, why: str, absence: _Absence) -> None:
        there = _in_its_place(name, self._documents)
        log.warning("field %r: none of the last %d events has it, and %s; %s", name, absence.events, why, there)

    def _look_for_other_names(self, result: Result, now_s: float) -> None:
        """A part of the producers may have renamed a field: then some events have it, and others a similar name."""
        documents, missing = result.decoded.documents, result.decoded.field_counts.missing
        for place in np.flatnonzero(missing).tolist():
            name, quiet_until_s = self._features[place].name, self._renamed_quiet_until_s
            if self._missing[place].events or now_s < quiet_until_s.get(name, 0.0):  # all lack it: said elsewhere
                continue
            for number, document in enumerate(documents[:LOOK_DOCUMENTS]):
                if locate(document, name) is ABSENT and (other := same_name(name, document)) is not None:
                    quiet_until_s[name] = now_s + QUIET_S
                    log.warning(
                        "field %r: some events have %r instead, which the model does not read; let all producers use"
                        " one name",
                        name,
                        other,
                        extra={
                            "topic": result.records.topic,
                            "partition": int(result.records.partitions[number]),
                            "offset": int(result.records.offsets[number]),
                        },
                    )
                    break


def _in_its_place(name: str, documents: Sequence[Document]) -> str:
    """What the events have where a field should be."""
    if any(locate(document, name) is None for document in documents):
        return "it is null"
    parent = name.rpartition(".")[0]
    inner = [value for document in documents if parent and (value := locate(document, parent)) not in (ABSENT, None)]
    objects = [value for value in inner if isinstance(value, dict)]
    if inner and not objects:
        return f"their {parent!r} is {a_json_type(inner[0])}, not an object"
    names = [f"{parent}.{child}" for child in names_of(objects)] if objects else names_of(documents)
    similar = similar_name(name, names)
    hint = f"; did you mean {similar!r}?" if similar is not None else ""
    return f"they have {listed(names, none='no fields')}{hint}"


def _note(absence: _Absence, absent: bool, events: int, now_s: float) -> None:  # noqa: FBT001
    """Count events that lack it; one that has it ends the count."""
    if not absent:
        if absence.warned:
            absence.quiet_until_s = now_s + QUIET_S
        absence.events, absence.warned = 0, False
        return
    if not absence.events:
        absence.since_s = now_s
    absence.events += events


def _is_due(absence: _Absence, now_s: float) -> bool:
    """Whether to warn now; True once."""
    long = absence.events >= WINDOW_EVENTS
    slow = absence.events >= FEW_EVENTS and now_s - absence.since_s >= FEW_AFTER_S
    if absence.warned or not (long or slow) or now_s < absence.quiet_until_s:
        return False
    absence.warned = True
    return True
