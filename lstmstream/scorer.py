"""`lstmstream.Scorer`: the daemon's engine for notebooks and tests: rows in, predictions out, states kept in between.

A row becomes the JSON event that it would be in Kafka and is decoded as such, so that it cannot be read differently.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from math import isinf
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import orjson

from lstmstream.config import Config
from lstmstream.config.diagnostics import validate
from lstmstream.errors import CannotServe
from lstmstream.formats.timestamps import format_iso
from lstmstream.model import Card
from lstmstream.records import Floats, RecordBatch
from lstmstream.serve import state as engine_state
from lstmstream.serve.factory import load_step_model, make_engine
from lstmstream.serve.identity import state_identity
from lstmstream.serve.state_records import pack_states, unpack_key, unpack_state

BATCH_ROWS = 4096
_PARTITION = 0
_MAGIC = b"lstmstream states 1\n"
_COLUMNS = ("key", "timestamp", "score", "prediction", "alert", "steps", "error")
_FINITE_TYPES = str | bool | int | None


class KeyState(NamedTuple):
    """What the model remembers of one key."""

    steps: int  # events that the state has seen
    last_timestamp: str  # the largest event time seen, ISO 8601
    parts: dict[str, Floats]  # the card's parts of the state row, each in its shape


class Scorer:
    """Scores rows with a model and keeps a state for each key between calls. Not for several threads.

    scorer = Scorer.open("card-fraud.onnx")
    predictions = scorer.score([{"customer": "c1", "time": "2026-01-05T10:31:07Z", "amount": 12.5}])
    """

    def __init__(self, config: Config) -> None:
        """See `open`. Raises CannotServe."""
        _, step = load_step_model(config)
        fields = step.card.training.get("fields", {})
        named = {name: getattr(config.input, name) or fields.get(name) for name in ("key", "timestamp")}
        config = config.model_copy(update={"input": config.input.model_copy(update=named)})
        self._card = step.card
        self._identity = state_identity(config, step.card)
        self._engine = make_engine(config, step, from_file=True)
        self._engine.scorer.states.open(_PARTITION)
        self._rows = 0  # scored so far: the offset of the next row

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
    ) -> Self:
        """Load a model file, or `builtin:NAME`.

        `key` and `timestamp` name the rows' fields; the model's own if None. Without either, all rows are of one key,
        and their time is now. The other arguments are the options of the same name in the daemon's configuration
        (`output.threshold`, `input.late`, `state.ttl`, `device.device`). Raises CannotServe.
        """
        reference = str(model)
        base: dict[str, Any] = {
            "name": "scorer",
            "model": reference if reference.startswith("builtin:") else str(Path(reference).absolute()),
            "kafka": {"bootstrap_servers": "127.0.0.1:9092"},  # not asked
            "input": {"topic": "input", "key": key, "timestamp": timestamp, "late": late},
            "output": {"topic": "output", "threshold": threshold},
            "state": {"ttl": ttl},
            "device": {"device": device},
        }
        return cls(validate(Config, base, Path()))

    @property
    def card(self) -> Card:
        """The model's card."""
        return self._card

    # -- scoring

    def score(self, rows: Any) -> Any:
        """One prediction for each row, in the order of the rows; the states move on.

        `rows` is an iterable of dicts, a polars or a pandas frame; the result is a list of dicts or a frame of the
        same kind, with the columns key, timestamp (ISO 8601), score, prediction (a list, where the model has one),
        alert, steps, and error: why a row has no prediction, else None.
        """
        library = type(rows).__module__.partition(".")[0]
        if library == "polars":
            return _polars_frame(
                self._score_dicts(rows.iter_rows(named=True)), has_prediction="prediction" in self._card.outputs
            )
        if library == "pandas":
            answers = self._score_dicts(rows.to_dict("records"))
            return type(rows)(answers, index=rows.index, columns=list(_COLUMNS))
        return self._score_dicts(rows)

    def _score_dicts(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        waiting: list[bytes | None] = []
        for row in rows:
            waiting.append(dump_event(row))
            if len(waiting) == BATCH_ROWS:
                answers += self._score_batch(waiting)
                waiting = []
        return answers + self._score_batch(waiting)

    def _score_batch(self, events: list[bytes | None]) -> list[dict[str, Any]]:
        count = len(events)
        records = RecordBatch(
            topic="rows",
            partitions=np.full(count, _PARTITION, dtype=np.int64),
            offsets=np.arange(self._rows, self._rows + count, dtype=np.int64),
            timestamps=np.full(count, int(time.time() * 1000), dtype=np.int64),
            keys=[None] * count,
            values=events,
            headers=[()] * count,
        )
        result = self._engine.process(records)
        self._engine.commit()
        self._rows += count
        answers: list[dict[str, Any]] = [dict.fromkeys(_COLUMNS) for _ in range(count)]
        for letter in result.dead_letters:
            answers[letter.index]["error"] = letter.message
        for index, value in zip(result.predictions.index.tolist(), result.outputs.predictions.values, strict=True):
            found = orjson.loads(value or b"")
            answers[index] |= {name: found.get(name) for name in _COLUMNS[:-1]}
        return answers

    # -- states

    def state(self, key: str | bytes | None) -> KeyState | None:
        """What the model remembers of a key; None for one that it has not seen."""
        slab = self._engine.scorer.states.slabs[_PARTITION]
        row = slab.index.get(key.encode() if isinstance(key, str) else key)
        return None if row is None or not slab.steps[row] else view_state(self._card, slab.get(row))

    def save(self, path: str | Path) -> None:
        """Write all states to a file, for `load`. The file is replaced as a whole."""
        slab = self._engine.scorer.states.slabs[_PARTITION]
        rows = np.array([row for row in slab.index.values() if slab.steps[row]], dtype=np.int64)
        keys, values = pack_states(slab, rows, self._identity.digest, 0)
        unfinished = Path(f"{path}.tmp")
        with unfinished.open("wb") as file:
            file.write(_MAGIC + orjson.dumps({**self._identity._asdict(), "rows": self._rows}) + b"\n")
            for part in (part for pair in zip(keys, values, strict=True) for part in pair):
                file.write(len(part or b"").to_bytes(4, "little") + (part or b""))
        unfinished.replace(path)

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
        store.close(_PARTITION)
        slab = store.open(_PARTITION)
        for key, state in states:
            slab.put(key, state)
        self._rows = rows

    def _parse(self, content: bytes) -> tuple[list[tuple[bytes | None, engine_state.KeyState]], int]:
        if not content.startswith(_MAGIC):
            raise ValueError("it does not begin as one")
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
    parts = {}
    for part in card.state.parts:
        size = int(np.prod(part.shape, dtype=np.int64))
        parts[part.name] = state.row[part.offset : part.offset + size].reshape(part.shape)
    return KeyState(state.steps, format_iso(state.last_timestamp), parts)


def dump_event(row: Mapping[str, Any]) -> bytes:
    """A row as the JSON event that it would be in Kafka: NaN is missing, times are ISO 8601, decimals are numbers."""
    values = {str(name): _json_value(value) for name, value in row.items()}
    return orjson.dumps(
        {name: value for name, value in values.items() if value is not None},
        default=_to_json_type,
        option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_SERIALIZE_NUMPY,
    )


def _json_value(value: Any) -> Any:
    if isinstance(value, _FINITE_TYPES):
        return value
    if isinstance(value, list | tuple | np.ndarray):
        return [_json_value(element) for element in value]
    if isinstance(value, float | np.floating) and isinf(value):
        return orjson.Fragment("1e400")  # orjson would write null, so that it would pass as a missing value
    return None if _is_missing(value) else value


def _is_missing(value: Any) -> bool:
    """NaN, NaT, and pandas' NA, which compares with nothing."""
    try:
        return bool(value != value)  # noqa: PLR0124
    except (TypeError, ValueError):
        return True


def _to_json_type(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode()
    return str(value)


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
