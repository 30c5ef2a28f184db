"""`lstmstream.Scorer`: the daemon's engine for notebooks and tests: rows in, predictions out, states kept in between.

A row becomes the JSON event that it would be in Kafka and is decoded as such, so that it cannot be read differently.
Values of Python's, numpy's and pandas' own types mean what they mean in a Parquet file.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.config.diagnostics import validate
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.field_names import MAX_LISTED, unknown_fields
from lstmstream.formats.json_documents import ABSENT, Document, locate
from lstmstream.formats.python_values import ValueRole, document, json_event, roles_by_field
from lstmstream.formats.timestamps import format_iso
from lstmstream.model import Card
from lstmstream.records import Floats
from lstmstream.serve import state as engine_state
from lstmstream.serve.factory import load_step_model, make_engine
from lstmstream.serve.identity import state_identity
from lstmstream.serve.score_input import KeyAndTime, bare_config, event_batch, field_roles, with_key_and_time
from lstmstream.serve.state_records import pack_states, unpack_key, unpack_state
from lstmstream.serve.state_view import state_parts
from lstmstream.whole_file import check_replaceable, whole_file

BATCH_ROWS = 4096
_PARTITION = 0
_MAGIC = b"lstmstream states 1\n"
_COLUMNS = ("key", "timestamp", "score", "prediction", "alert", "steps", "error")
_ADVICE = ("give key=FIELD, or no_key=True", "give timestamp=FIELD, or no_timestamp=True")
_LOG = logging.getLogger(__name__)


class KeyState(NamedTuple):
    """What the model remembers of one key."""

    steps: int  # events that the state has seen
    last_timestamp: str  # the largest event time seen, ISO 8601
    parts: dict[str, Floats]  # the card's parts of the state row, each in its shape


class Scorer:
    """Scores rows with a model and keeps state per key between calls. Calls from several threads take turns.

    scorer = Scorer.open("card-fraud.onnx")
    predictions = scorer.score([{"customer": "c1", "time": "2026-01-05T10:31:07Z", "amount": 12.5}])
    """

    def __init__(self, config: Config, *, no_key: bool = False, no_timestamp: bool = False) -> None:
        """See `open`. Raises CannotServe."""
        model, step = load_step_model(config)
        columns = KeyAndTime(no_key=no_key, no_timestamp=no_timestamp, advice=_ADVICE)
        config = with_key_and_time(config, model, columns)
        self._fields = roles_by_field(field_roles(config, step.card))
        self._unseen = [name for name, _ in self._fields]  # fields that no row has had so far
        self._card = step.card
        self._identity = state_identity(config, step.card)
        self._engine = make_engine(config, step, from_file=True)
        self._engine.scorer.states.open(_PARTITION)
        self._rows = 0  # scored so far: the offset of the next row
        self._turn = threading.Lock()  # of whoever reads or moves the states

    @classmethod
    def open(
        cls,
        model: str | Path,
        *,
        key: str | None = None,
        timestamp: str | None = None,
        threshold: float | None = None,
        late: Literal["apply", "score", "drop"] = "apply",
        ttl: str | float | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        no_key: bool = False,
        no_timestamp: bool = False,
    ) -> Self:
        """Load a model file, or `builtin:NAME`.

        `key` and `timestamp` name the rows' fields; the model's own if None. `no_key`: all rows belong to one key,
        None. `no_timestamp`: the time of a row is the current time. `threshold`, `late`, `ttl` and `device` are the
        daemon's options `output.threshold`, `input.late`, `state.ttl` and `device.device`. Raises CannotServe, also if
        nothing names the key, or nothing names the timestamp and the scores depend on it.
        """
        for name, value, absent in (("key", key, no_key), ("timestamp", timestamp, no_timestamp)):
            if value is not None and absent:
                raise CannotServe(f"{name} and no_{name} contradict each other; give one of them")
        base = bare_config("scorer", str(model))
        base["input"] |= {"key": key, "timestamp": timestamp, "late": late}
        base["output"] |= {"threshold": threshold}
        base |= {"state": {"ttl": ttl}, "device": {"device": device}}
        return cls(validate(Config, base, Path()), no_key=no_key, no_timestamp=no_timestamp)

    @property
    def card(self) -> Card:
        """The model's card."""
        return self._card

    # -- scoring

    def score(self, rows: Any) -> Any:
        """Score each row, in the order of the rows, and update the states.

        `rows` is an iterable of dicts, a polars or a pandas frame; the result is a list of dicts or a frame of the
        same kind, with the columns key, timestamp (ISO 8601), score, prediction (a list, where the model has one),
        alert, steps, and error: why a row has no prediction, else None. A field that no row has is logged once, as a
        warning. Raises CannotServe for a frame in which a needed column occurs twice, TypeError for a row that is not a
        mapping.
        """
        library = type(rows).__module__.partition(".")[0] if hasattr(type(rows), "columns") else ""
        if library == "polars":
            rows = rows.lazy().collect()  # a LazyFrame too
            wanted = [name for name in rows.columns if self._is_wanted(name)]
            has_prediction = "prediction" in self._card.outputs
            dicts = rows.select(wanted).iter_rows(named=True) if wanted else ({} for _ in range(len(rows)))
            return _polars_frame(self._score_dicts(dicts, rows.columns), has_prediction=has_prediction)
        if library == "pandas":
            names = [str(name) for name in rows.columns]
            if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1 and self._is_wanted(name)]:
                raise CannotServe(
                    *(f"the frame: the column {name!r} occurs twice; rename or remove one of them" for name in repeated)
                )
            columns = [rows.iloc[:, at].tolist() for at, name in enumerate(names) if self._is_wanted(name)]
            wanted = [name for name in names if self._is_wanted(name)]
            dicts = (dict(zip(wanted, values, strict=True)) for values in zip(*columns, strict=True))
            answers = self._score_dicts(dicts if wanted else ({} for _ in range(len(rows))), names)
            return type(rows)(answers, index=rows.index, columns=list(_COLUMNS))
        return self._score_dicts(rows)

    def _is_wanted(self, column: str) -> bool:
        return any(name == column or name.startswith(f"{column}.") for name, _ in self._fields)

    def _score_dicts(self, rows: Iterable[Mapping[Any, Any]], columns: Iterable[str] = ()) -> list[dict[str, Any]]:
        """`columns` names those of a frame, for a message."""
        if isinstance(rows, Mapping | str | bytes):
            raise TypeError("rows must be an iterable of mappings, or a frame; put a single row into a list")
        answers: list[dict[str, Any]] = []
        waiting: list[bytes | BadRecord] = []
        nested = any("." in name for name, _ in self._fields)
        names = dict.fromkeys(columns)  # some that the rows have
        for row in rows:
            if not isinstance(row, Mapping):
                raise TypeError(f"row {len(answers) + len(waiting)} is a {type(row).__name__}, not a mapping")
            values = document(row, nested=nested)
            if self._unseen and len(names) < MAX_LISTED:
                names |= dict.fromkeys(values)
            if self._unseen:
                self._unseen = [name for name in self._unseen if locate(values, name) is ABSENT]
            waiting.append(_event(values, self._fields))
            if len(waiting) == BATCH_ROWS:
                answers += self._score_batch(waiting)
                waiting = []
        answers += self._score_batch(waiting)
        if self._unseen and answers:
            _LOG.warning("%s", unknown_fields("the rows", self._unseen, names))
            self._unseen = []  # once
        return answers

    def _score_batch(self, events: list[bytes | BadRecord]) -> list[dict[str, Any]]:
        count = len(events)
        values = [None if isinstance(event, BadRecord) else event for event in events]
        with self._turn:
            offsets = np.arange(self._rows, self._rows + count, dtype=np.int64)
            try:
                result = self._engine.process(event_batch("rows", offsets, values))
            except BaseException:  # Ctrl-C in a notebook too, which goes on with the same scorer
                self._engine.rollback()
                raise
            self._engine.commit()
            self._rows += count
        answers: list[dict[str, Any]] = [dict.fromkeys(_COLUMNS) for _ in range(count)]
        for letter in result.dead_letters:
            event = events[letter.index]
            answers[letter.index]["error"] = str(event) if isinstance(event, BadRecord) else letter.message
        for index, value in zip(result.predictions.index.tolist(), result.outputs.predictions.values, strict=True):
            found = orjson.loads(value or b"")
            answers[index] |= {name: found.get(name) for name in _COLUMNS[:-1]}
        return answers

    # -- states

    def state(self, key: str | bytes | None) -> KeyState | None:
        """What the model remembers of a key; None for one that it has not seen."""
        if not isinstance(key, str | bytes | None):
            raise TypeError(f"a key is text, as in the answers: {str(key)!r}; this is of type {type(key).__name__}")
        with self._turn:
            slab = self._engine.scorer.states.slabs[_PARTITION]
            row = slab.index.get(key.encode() if isinstance(key, str) else key)
            return None if row is None or not slab.steps[row] else view_state(self._card, slab.get(row))

    def save(self, path: str | Path) -> None:
        """Write all states to a file, for `load`. The file is replaced as a whole. Raises OSError."""
        with self._turn:
            slab = self._engine.scorer.states.slabs[_PARTITION]
            rows = slab.index.rows()
            rows = rows[slab.steps[rows] > 0]
            keys, values = pack_states(slab, rows, self._identity.digest, 0)
            scored = self._rows
        check_replaceable(Path(path))
        with whole_file(Path(path)) as file:
            file.write(_MAGIC + orjson.dumps({**self._identity._asdict(), "rows": scored}) + b"\n")
            for part in (part for pair in zip(keys, values, strict=True) for part in pair):
                file.write(len(part or b"").to_bytes(4, "little") + (part or b""))

    def load(self, path: str | Path) -> None:
        """Take the states from a file that `save` wrote; those of now are forgotten.

        Raises CannotServe for a file that is damaged, or whose states belong to another model or other settings.
        """
        content = Path(path).read_bytes()
        try:
            states, rows = self._parse(content)
        except (ValueError, KeyError, TypeError) as error:  # CorruptStateRecord and OldStateFormat are ValueErrors
            raise CannotServe(f"{path}: cannot be used as a file of states: {error}") from error
        store = self._engine.scorer.states
        with self._turn:
            store.close(_PARTITION)
            slab = store.open(_PARTITION)
            for key, state in states:
                slab.put(key, state)
            self._rows = rows

    def _parse(self, content: bytes) -> tuple[list[tuple[bytes | None, engine_state.KeyState]], int]:
        if not content.startswith(_MAGIC):
            raise ValueError("it does not start like one")
        end = content.index(b"\n", len(_MAGIC))
        header = orjson.loads(content[len(_MAGIC) : end])
        states, at = [], end + 1
        while at < len(content):
            key, at = _take(content, at)
            value, at = _take(content, at)
            stored = unpack_state(key, value)
            if stored.digest != self._identity.digest:
                raise ValueError(
                    f"its states belong to model {header['model']} (fingerprint {header['fingerprint']}) with ttl"
                    f" {header['ttl']}, late {header['late']}, key {header['key']}, timestamp {header['timestamp']};"
                    f" this scorer is of {self._identity}"
                )
            states.append((unpack_key(key), stored.state))
        return states, int(header["rows"])


def view_state(card: Card, state: engine_state.KeyState) -> KeyState:
    """A key's state by the names of its parts."""
    return KeyState(state.steps, format_iso(state.last_timestamp), state_parts(card, state.row))


def _event(row: Document, fields: list[tuple[str, ValueRole]]) -> bytes | BadRecord:
    try:
        return json_event(row, fields)
    except BadRecord as bad:
        return bad
    except RecursionError:
        return BadRecord("decode", "the row is nested too deeply")


def _take(content: bytes, at: int) -> tuple[bytes, int]:
    end = at + 4 + int.from_bytes(content[at : at + 4], "little")
    if end > len(content) or len(content) < at + 4:
        raise ValueError("it is cut short")
    return content[at + 4 : end], end


def _polars_frame(answers: list[dict[str, Any]], *, has_prediction: bool) -> Any:
    polars = sys.modules["polars"]  # whoever made the frame has imported it
    kinds = {
        "key": polars.String,
        "timestamp": polars.String,
        "score": polars.Float32,
        "prediction": polars.List(polars.Float32) if has_prediction else polars.Null,
        "alert": polars.Boolean,
        "steps": polars.Int64,
        "error": polars.String,
    }
    return polars.DataFrame(answers, schema=kinds)
