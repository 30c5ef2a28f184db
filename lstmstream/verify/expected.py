"""What each event should have become: docs/semantics.md, lines 2 to 16, one event after the other.

It keeps books of its own and shares no code with the engine, so that a mistake of one is not a mistake of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.model import Card, Feature, Model
from lstmstream.records import Floats, UnreadableValue
from lstmstream.transport.partitioner import partition_of
from lstmstream.verify.alerts import AlertBooks, AlertDecision, Rules
from lstmstream.verify.envelopes import Event
from lstmstream.verify.erasures import Erased, KeyNames
from lstmstream.verify.model import RowModel, RowOutput
from lstmstream.verify.values import (
    ABSENT,
    MAX_MS,
    Refused,
    TooLarge,
    canonical,
    carried_text,
    find,
    iso_text,
    read_category,
    read_key,
    read_number,
    read_numbers,
    read_object,
    read_time,
)

_NAN = float("nan")


class Settings(NamedTuple):
    """What decides, besides the model, what an event becomes."""

    key: str | None = None
    timestamp: str | None = None
    include: Sequence[str] = ()
    output_key: str | None = None
    ttl_ms: int | None = None
    late: str = "apply"
    threshold: float | None = None
    reasons: int = 0  # that an alert has at most
    reset_after: int = 10
    max_bytes: int = 10_000_000
    max_future_ms: int = 365 * 86_400_000
    sample: float = 1.0  # fraction of the keys
    silent: tuple[str, str] | None = None  # field and value of events without a prediction
    max_lateness_ms: int | None = None
    max_keys: int | None = None


def settings_of(config: Config, card: Card, *, sample: float = 1.0) -> Settings:
    """Those of a daemon's configuration."""
    ttl, threshold = config.state.ttl, config.output.threshold
    return Settings(
        key=config.input.key,
        timestamp=config.input.timestamp,
        include=tuple(config.output.include),
        output_key=config.output.key,
        ttl_ms=None if ttl is None else round(ttl * 1000),
        late=config.input.late,
        threshold=card.threshold if threshold is None else threshold,
        reasons=config.output.reasons,
        reset_after=config.state.reset_after_failures,
        max_bytes=config.input.max_bytes,
        max_future_ms=round(config.input.max_future * 1000),
        sample=sample,
        silent=config.input.silent.mark,
        max_lateness_ms=None if config.input.max_lateness is None else round(config.input.max_lateness * 1000),
        max_keys=config.state.max_keys,
    )


class Expected(NamedTuple):
    """A prediction, or a dead letter of `stage`, or nothing known of an event outside the sample.

    `silent`: no prediction. Of an event outside the sample, or answered with other settings, it may be a dead letter.
    """

    stage: str | None = None
    sampled: bool = True
    with_value: bool = True  # of a dead letter
    silent: bool = False
    key: bytes | None = None  # entity key, where it is known
    record_key: bytes | None = None  # of the prediction
    time_ms: int = 0
    score: float = _NAN
    prediction: Floats | None = None
    alert: bool = False
    reasons: bytes | None = None  # JSON text of those of an alert; None: it has none
    steps: int = 0
    event: bytes | None = None  # JSON text of the fields that are carried along
    held_back: str | None = None  # why the alert is not published
    ended: bytes = b""  # JSON members of an end record beside the alerts; empty: there is none
    summary: bytes = b""  # JSON text of the hours in a summary; likewise

    @property
    def published_alert(self) -> bool:
        """Whether there is a record of it in the topic of the alerts."""
        return self.alert and self.held_back is None


class _KeyState:
    """What is kept of one key."""

    __slots__ = ("failures", "last_ms", "state", "steps")

    def __init__(self, state: Floats) -> None:
        self.state = state
        self.steps = 0
        self.last_ms = 0
        self.failures = 0  # events in a row that failed because of the state


class Recomputation:
    """The states of the keys of one partition; `expect` takes its events in the order of their offsets."""

    def __init__(
        self,
        model: RowModel,
        card: Card,
        settings: Settings,
        alert_rules: Sequence[tuple[int, Rules]] = (),
        salt: str = "",
    ) -> None:
        """`alert_rules`: the policies for alerts, by the offset from which on they were in force.

        `salt`: of the names in erasures, the id of the input topic.
        """
        self._names = KeyNames(salt)
        self._books = AlertBooks(alert_rules)
        self._model = model
        self._settings = settings
        self._threshold: np.float32 | None = None
        self._initial = model.initial
        self._numbers = [(feature.name, feature.size) for feature in card.numbers]
        self._categories = [(feature.name, _Codes(feature)) for feature in card.categories]
        self._occluded = _features_by_name(card) if settings.reasons else {}
        self._states: dict[bytes | None, _KeyState] = {}
        self.newest_ms: int | None = None  # of the partition's events so far
        self.outside_times: list[tuple[int, int]] = []  # (offset, time) of events of elsewhere, that are still to come
        self.moves: list[tuple[int, int, int]] = []  # (offset, our number, partitions) where keys leave; likewise

    @property
    def needs_all_states(self) -> bool:
        """Whether a state is known only where those of all keys are.

        With `state.max_keys` it matters which events were seen, and with `late: drop` a late one is not: of a key whose
        last event is not known nobody can tell.
        """
        return self._settings.max_keys is not None and self._settings.late == "drop"

    def add_erasures(self, erased: Sequence[Erased]) -> None:
        """Keys that start over at offsets that are still to come."""
        self._names.add(erased, self._states)

    def expect(self, timestamp_ms: int, key: bytes | None, value: Event, offset: int = 0) -> Expected:
        """What the record at `offset` becomes; the state of its key goes on."""
        for erased in self._names.forgotten_at(offset):
            self._states.pop(erased, None)
            self._books.forget(erased)
        self._pass_outside_times(offset)
        self._pass_moves(offset)
        threshold = self._books.threshold_at(offset, self._settings.threshold)
        self._threshold = None if threshold is None else np.float32(threshold)
        by_record = self._settings.key is None
        if by_record and self._settings.max_lateness_ms is None and not self._is_sampled(key):
            return self.expect_unknown(key, value)._replace(sampled=False)
        entity: bytes | None = None
        try:
            fields = self._read(key, value)
            entity = key if self._settings.key is None else read_key(find(fields, self._settings.key))
            time_ms = self._time_ms(timestamp_ms, fields)
            self._read_features(fields)
            silent = self._is_silent(fields)
            self._pass_time(time_ms)
            if not self._is_sampled(entity):
                return Expected(sampled=False, key=entity, silent=silent)
            output, steps, reasons = self._step(entity, time_ms)
        except Refused as refused:
            return Expected(stage=refused.stage, key=entity, with_value=not isinstance(refused, TooLarge))
        verdict = None if silent else self._books.judge(offset, entity, time_ms, float(output.score))
        if verdict is None:
            verdict = AlertDecision(self._is_alert(output))
        return Expected(
            silent=silent,
            key=entity,
            record_key=self._record_key(fields, entity),
            time_ms=time_ms,
            score=output.score,  # type: ignore[arg-type]  # a float32, so that its text is that of one
            prediction=output.prediction,
            alert=verdict.alert,
            held_back=verdict.held_back,
            ended=verdict.ended,
            summary=verdict.summary,
            reasons=reasons,
            steps=steps,
            event=self._carried(fields) if self._settings.include else None,
        )

    def expect_unknown(self, key: bytes | None, value: Event) -> Expected:
        """What is known of a record without the state of its key: whether it may be without an answer."""
        silent = False
        if self._settings.silent is not None:
            with suppress(Refused):
                silent = self._is_silent(self._read(key, value))
        return Expected(key=key, silent=silent)

    def _is_silent(self, fields: dict[str, Any]) -> bool:
        if self._settings.silent is None:
            return False
        name, wanted = self._settings.silent
        return read_category(find(fields, name)) == canonical(wanted)

    def _is_sampled(self, key: bytes | None) -> bool:
        return self._settings.sample >= 1 or crc32(b"" if key is None else key) < self._settings.sample * 2**32

    def _read(self, key: bytes | None, value: Event) -> dict[str, Any]:
        if isinstance(value, UnreadableValue):
            raise Refused("decode")
        if isinstance(value, dict):
            return value
        if value is not None and len(value) + len(key or b"") > self._settings.max_bytes:
            raise TooLarge
        return read_object(value)

    def _time_ms(self, timestamp_ms: int, fields: dict[str, Any]) -> int:
        if self._settings.timestamp is None:
            if not 0 <= timestamp_ms <= MAX_MS:
                raise Refused("validate")
            return timestamp_ms
        time_ms = read_time(find(fields, self._settings.timestamp))
        if timestamp_ms >= 0 and time_ms - timestamp_ms > self._settings.max_future_ms:
            raise Refused("validate")
        return time_ms

    def _pass_time(self, time_ms: int) -> None:
        """The event is the partition's newest, or it may be too late."""
        if self._settings.max_lateness_ms is None:
            return
        if self.newest_ms is None or time_ms > self.newest_ms:
            self.newest_ms = time_ms
        elif self.newest_ms - time_ms > self._settings.max_lateness_ms:
            raise Refused("late")

    def _pass_outside_times(self, offset: int) -> None:
        while self.outside_times and self.outside_times[0][0] <= offset:
            _, time_ms = self.outside_times.pop(0)
            self.newest_ms = time_ms if self.newest_ms is None else max(self.newest_ms, time_ms)

    def _pass_moves(self, offset: int) -> None:
        """Keys whose events are in another partition from here on have left."""
        while self.moves and self.moves[0][0] <= offset:
            _, ours, partitions = self.moves.pop(0)
            for key in [key for key in self._states if key is not None and partition_of(key, partitions) != ours]:
                del self._states[key]
                self._books.forget(key)

    def _read_features(self, fields: dict[str, Any]) -> None:
        row, column = self._model.x[0], 0
        for name, size in self._numbers:
            value = fields[name] if name in fields else find(fields, name)
            if size == 1:
                row[column] = read_number(value)
            else:
                row[column : column + size] = read_numbers(value, size)
            column += size
        for column, (name, codes) in enumerate(self._categories):
            text = read_category(fields[name] if name in fields else find(fields, name))
            self._model.categories[0, column] = 0 if text is None else codes.code(text)

    def _step(self, key: bytes | None, time_ms: int) -> tuple[RowOutput, int, bytes | None]:
        """Lines 4 to 13: the output, and `steps` and `reasons` of the prediction."""
        settings, kept = self._settings, self._states.get(key)
        discarded = kept is not None and kept.failures >= settings.reset_after
        known = None if discarded else kept
        state, steps, elapsed, late = self._initial, 0, _NAN, False
        if known is not None:
            gap_ms = time_ms - known.last_ms
            late = gap_ms < 0
            if late and settings.late == "drop":
                raise Refused("late")
            if settings.ttl_ms is None or gap_ms <= settings.ttl_ms:
                state, steps, elapsed = known.state, known.steps, max(0, gap_ms) / 1000
        self._model.timestamp[0] = time_ms
        self._model.elapsed[0] = elapsed
        output = self._model.run(state)
        if not output.finite:
            if known is not None:
                self._model.elapsed[0] = _NAN
                if self._model.run(self._initial).finite:
                    known.failures += 1
                    self._see(key)
            raise Refused("step")
        reasons = self._reasons(state, output)
        if late and settings.late == "score":
            self._see(key)
            return output, steps, reasons
        if kept is None:
            kept = self._states[key] = _KeyState(output.state)
            self._names.on_new_key(key)
        kept.last_ms = max(kept.last_ms, time_ms) if known is not None else time_ms
        kept.state, kept.steps, kept.failures = output.state, steps + 1, 0
        self._see(key)
        return output, steps + 1, reasons

    def _see(self, key: bytes | None) -> None:
        """The key is the most recent one; where there are too many, the least recent one goes."""
        if self._settings.max_keys is None:
            return
        self._states[key] = self._states.pop(key)
        if len(self._states) > self._settings.max_keys:
            oldest = next(iter(self._states))
            del self._states[oldest]
            self._books.forget(oldest)

    def _is_alert(self, output: RowOutput) -> bool:
        return self._threshold is not None and bool(output.score >= self._threshold)

    def _reasons(self, state: Floats, output: RowOutput) -> bytes | None:
        """The features without which this event's score would be lower, and by how much, largest first."""
        if not self._settings.reasons or not self._is_alert(output):
            return None
        model, found = self._model, []
        x, categories, elapsed = model.x.copy(), model.categories.copy(), model.elapsed.copy()
        for name, (numbers, codes) in self._occluded.items():
            model.x[0, numbers] = _NAN
            model.categories[0, codes] = 0
            if name == "elapsed":
                model.elapsed[0] = _NAN
            with np.errstate(over="ignore", invalid="ignore"):
                size = output.score - model.run(state).score
            if np.isfinite(size) and size > 0:
                found.append((name, size))
            model.x[:], model.categories[:], model.elapsed[:] = x, categories, elapsed
        found.sort(key=lambda one: one[1], reverse=True)
        named = [{"feature": name, "size": size} for name, size in found[: self._settings.reasons]]
        return orjson.dumps(named, option=orjson.OPT_SERIALIZE_NUMPY)

    def _record_key(self, fields: dict[str, Any], key: bytes | None) -> bytes | None:
        if self._settings.output_key is None:
            return key
        try:
            return read_key(find(fields, self._settings.output_key))
        except Refused:
            return None

    def _carried(self, fields: dict[str, Any]) -> bytes:
        members = []
        for name in self._settings.include:
            value = find(fields, name)
            text = None if value is ABSENT else carried_text(value)
            if text is not None:
                members.append(orjson.dumps(name) + b":" + text)
        return b"{%b}" % b",".join(members)


def _features_by_name(card: Card) -> dict[str, tuple[list[int], list[int]]]:
    """Name → columns of `x` and of `categories`; last `elapsed`, which may be a field's name too."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    numbers = categories = 0
    for feature in card.features:
        columns = found.setdefault(feature.name, ([], []))
        if feature.kind == "number":
            columns[0].extend(range(numbers, numbers + feature.size))
            numbers += feature.size
        else:
            columns[1].append(categories)
            categories += 1
    found.setdefault("elapsed", ([], []))
    return found


class _Codes:
    """Text of a category to the number that the model gets."""

    def __init__(self, feature: Feature) -> None:
        self._buckets = feature.buckets
        self._known: dict[str, int] = {}
        for code, text in enumerate(feature.vocabulary or (), start=1):
            self._known.setdefault(canonical(text), code)

    def code(self, text: str) -> int:
        """0 for a text that is not in the vocabulary. `text` is canonical."""
        if self._buckets is not None:
            return 1 + crc32(text.encode()) % self._buckets
        return self._known.get(text, 0)


class Renderer:
    """The bytes of a prediction."""

    def __init__(self, model: Model, topic: str) -> None:
        self._warm_column = model.card.warm_column
        names = orjson.dumps({"model": model.card.name, "version": model.card.version})[1:-1]
        self._after_steps = b"," + names + b',"source":{"topic":' + orjson.dumps(topic) + b',"partition":'

    def render(self, expected: Expected, partition: int, offset: int) -> bytes:
        """The record value that the prediction should have."""
        prediction = b""
        if expected.prediction is not None:
            prediction = b',"prediction":' + orjson.dumps(expected.prediction, option=orjson.OPT_SERIALIZE_NUMPY)
            if self._warm_column is not None:
                prediction += b',"warm":' + (b"true" if expected.prediction[self._warm_column] >= 1 else b"false")
        return b'{%b,"timestamp":"%b","score":%b%b,"alert":%b%b%b,"steps":%d%b%d,"offset":%d}%b}' % (
            _key_member(expected.key),
            iso_text(expected.time_ms).encode(),
            orjson.dumps(expected.score, option=orjson.OPT_SERIALIZE_NUMPY),
            prediction,
            b"true" if expected.alert else b"false",
            b"" if expected.held_back is None else b',"held_back":"%b"' % expected.held_back.encode(),
            b"" if expected.reasons is None else b',"reasons":' + expected.reasons,
            expected.steps,
            self._after_steps,
            partition,
            offset,
            b"" if expected.event is None else b',"event":' + expected.event,
        )

    def render_ended(self, expected: Expected, partition: int, offset: int) -> bytes:
        """The value of the end record that the event should have."""
        time = iso_text(expected.time_ms).encode()
        about = b'{%b,"timestamp":"%b",%b' % (_key_member(expected.key), time, expected.ended)
        return about + self._source(partition, offset)

    def render_summary(self, expected: Expected, partition: int, offset: int) -> bytes:
        """The value of the summary that the event should have."""
        time = iso_text(expected.time_ms).encode()
        about = b'{"timestamp":"%b","summary":{"partition":%d,"hours":%b}' % (time, partition, expected.summary)
        return about + self._source(partition, offset)

    def _source(self, partition: int, offset: int) -> bytes:
        return b'%b%d,"offset":%d}}' % (self._after_steps, partition, offset)


def _key_member(key: bytes | None) -> bytes:
    if key is None:
        return b'"key":null'
    try:
        return b'"key":' + orjson.dumps(key.decode("utf-8"))
    except UnicodeDecodeError:
        from base64 import b64encode  # noqa: PLC0415 - rare

        return b'"key_base64":"%b"' % b64encode(key)
