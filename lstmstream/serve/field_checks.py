"""Fields that the model or the configuration names and the events never have: said once, with numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmstream.formats.field_names import listed, names_of, similar_name
from lstmstream.formats.json_documents import ABSENT, Document, locate
from lstmstream.model import Card
from lstmstream.serve.observers import Observer

if TYPE_CHECKING:
    from lstmstream.serve.checkpoint import CheckpointPlan
    from lstmstream.serve.engine import Result

WINDOW_EVENTS = 1_000  # in a row without the field
FEW_EVENTS, FEW_AFTER_S = 20, 60.0  # or fewer, where they come slowly
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

    def on_commit(self, result: Result, plan: CheckpointPlan, duration_s: float | None) -> None:
        """Note what its events have."""
        decoded, now_s = result.decoded, self._clock()
        events = len(decoded.observations.index)
        if not events:
            return
        counts = decoded.field_counts
        for place, feature in enumerate(self._features):
            missing, unknown = int(counts.missing[place]), int(counts.unknown[place])
            if self._note(self._missing[place], missing == events, events, now_s):
                self._warn_missing(feature.name, "the model reads it", self._missing[place], decoded.documents)
            if feature.kind == "category" and feature.vocabulary is not None and missing < events:
                here = self._unknown[place]
                if self._note(here, unknown == events - missing, events - missing, now_s):
                    log.warning(
                        "field %r: none of the last %d events has a value that the model knows; it counts as unknown,"
                        " and predictions may be less accurate. Compare the spelling with the values in the model"
                        " (lstmstream model inspect --json MODEL), or train again",
                        feature.name,
                        here.events,
                    )
        for name, absence in self._carried.items():
            absent = not any(locate(document, name) is not ABSENT for document in decoded.documents)
            if self._note(absence, absent, events, now_s):
                self._warn_missing(name, "output.include or output.key names it", absence, decoded.documents)

    def _note(self, absence: _Absence, absent: bool, events: int, now_s: float) -> bool:  # noqa: FBT001
        """Count it; whether to warn now."""
        if not absent:
            if absence.warned:
                absence.quiet_until_s = now_s + QUIET_S
            absence.events, absence.warned = 0, False
            return False
        if not absence.events:
            absence.since_s = now_s
        absence.events += events
        long = absence.events >= WINDOW_EVENTS
        slow = absence.events >= FEW_EVENTS and now_s - absence.since_s >= FEW_AFTER_S
        if absence.warned or not (long or slow) or now_s < absence.quiet_until_s:
            return False
        absence.warned = True
        return True

    def _warn_missing(self, name: str, why: str, absence: _Absence, documents: Iterable[Document]) -> None:
        names = names_of(documents)
        similar = similar_name(name, names)
        hint = f"; did you mean {similar!r}?" if similar is not None else ""
        log.warning(
            "field %r: none of the last %d events has it, and %s; they have %s%s",
            name,
            absence.events,
            why,
            listed(names, none="no fields"),
            hint,
        )
