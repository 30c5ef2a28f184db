"""What `lstmstream score` reads: the config around a model, the fields of key and time, and the batches of a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lstmstream.config import Config, load_config
from lstmstream.config.schema import SilentEvents
from lstmstream.errors import CannotServe
from lstmstream.extras import require_for_table
from lstmstream.formats.csv_form import FROM_FILE, CsvForm, CsvOptions, line_of_row
from lstmstream.formats.event_reader import EventReader
from lstmstream.formats.field_names import unknown_fields
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.formats.files import DataFile
from lstmstream.model import Card, Model
from lstmstream.records import Ints, RecordBatch


@dataclass(frozen=True, slots=True)
class KeyAndTime:
    """The columns that the caller names; `no_key` and `no_timestamp` say that there are none.

    `advice` is what messages say of how to name the key and the timestamp.
    """

    key: str | None = None
    timestamp: str | None = None
    no_key: bool = False
    no_timestamp: bool = False
    advice: tuple[str, str] = ("give --key COLUMN, or --no-key", "give --timestamp COLUMN, or --no-timestamp")

    def __post_init__(self) -> None:
        for option in ("key", "timestamp"):
            if getattr(self, option) == "":
                raise CannotServe(f"--{option} is empty; name a column, or give --no-{option}")
            if getattr(self, option) is not None and getattr(self, f"no_{option}"):
                raise CannotServe(f"--{option} and --no-{option} contradict each other; give one of them")


def score_config(config_or_model: str, stage: str | None = None) -> Config:
    """The YAML's config, or the least config around a model. Raises CannotServe."""
    if Path(config_or_model).suffix in {".yaml", ".yml"}:
        config = load_config(Path(config_or_model), stage=stage)
    else:
        config = Config.model_validate(bare_config("score", config_or_model))
    return config.model_copy(update={"output": config.output.model_copy(update={"alerts_topic": None})})


def bare_config(name: str, model: str) -> dict[str, Any]:
    """What a config must have around a model, `builtin:NAME` or a path, where no broker is asked."""
    return {
        "name": name,
        "model": model if model.startswith("builtin:") else str(Path(model).absolute()),
        "kafka": {"bootstrap_servers": "127.0.0.1:9092"},
        "input": {"topic": "input"},
        "output": {"topic": "output"},
    }


def event_batch(topic: str, offsets: Ints, values: list[bytes | None]) -> RecordBatch:
    """[N] events that come from no broker: in partition 0, written now, without keys and headers."""
    count = len(values)
    return RecordBatch(
        topic=topic,
        partitions=np.zeros(count, dtype=np.int64),
        offsets=offsets,
        timestamps=np.full(count, int(time.time() * 1000), dtype=np.int64),
        keys=[None] * count,
        values=values,
        headers=[()] * count,
    )


def with_key_and_time(config: Config, model: Model, columns: KeyAndTime) -> Config:
    """The config with the key, the timestamp and the silent events that count: of the command line, config or card.

    A file has no record keys and no record timestamps, which the daemon would take. Without a timestamp, the moment of
    reading is taken where no answer depends on it. Raises CannotServe where nothing names the key, or the timestamp
    and the answers depend on it.
    """
    trained = model.card.training.get("fields")
    fields: dict[str, Any] = trained if isinstance(trained, dict) else {}
    key = None if columns.no_key else columns.key or config.input.key or fields.get("key")
    timestamp = None if columns.no_timestamp else columns.timestamp or config.input.timestamp or fields.get("timestamp")
    silent = config.input.silent
    if silent.field is None and (mark := fields.get("silent")):
        silent = SilentEvents.model_validate(mark)
    problems = []
    # a card with fields and without a key: the model was trained on one key
    if key is None and not columns.no_key and not fields:
        problems.append(
            f"model {model.card.name}: neither the config nor the model's card names the key;"
            f" {columns.advice[0]} if all events belong to one key"
        )
    timed = bool(model.graph_inputs & {"timestamp", "elapsed"}) or config.state.ttl is not None
    if timestamp is None and timed and not columns.no_timestamp:
        problems.append(
            f"model {model.card.name}: its scores depend on the time of events, and neither the config nor the model's"
            f" card names it; {columns.advice[1]} to use the time of reading"
        )
    if problems:
        raise CannotServe(*problems)
    return config.model_copy(
        update={"input": config.input.model_copy(update={"key": key, "timestamp": timestamp, "silent": silent})},
    )


def wanted_fields(config: Config, card: Card) -> list[str]:
    """Every field of an event that answers depend on, once: key and time first."""
    own = [
        name
        for name in (
            config.input.key,
            config.input.timestamp,
            config.output.key,
            config.output.events.key,
            config.input.silent.field,
        )
        if name is not None
    ]
    return list(dict.fromkeys([*own, *(feature.name for feature in card.features)]))


def field_roles(config: Config, card: Card) -> FieldRoles:
    """What the fields of an event are read as."""
    keys = (config.input.key, config.output.key, config.output.events.key)
    marks = () if config.input.silent.field is None else (config.input.silent.field,)
    return FieldRoles(
        keys=tuple(name for name in keys if name is not None),
        times=() if config.input.timestamp is None else (config.input.timestamp,),
        numbers=tuple(feature.name for feature in card.numbers if feature.size == 1),
        arrays=tuple(feature.name for feature in card.numbers if feature.size > 1),
        categories=(*(feature.name for feature in card.categories), *marks),
        passthrough=tuple(config.output.include),
    )


class ScoreInput:
    """The events of a file, of a pipe or of standard input, in batches of one partition; an offset is a row, from 0."""

    def __init__(
        self,
        data: str,
        config: Config,
        card: Card,
        *,
        batch_events: int,
        csv: CsvOptions = FROM_FILE,
    ) -> None:
        """`data` - is standard input. Raises CannotServe where the file cannot be read, or lacks a wanted column."""
        path = Path(data)
        if not path.exists():
            if "://" in data:
                raise CannotServe(f"{data}: is a URL, and score reads local files; download it, or pipe it into -")
            if any(char in data for char in "*?["):
                raise CannotServe(f"{data}: no such file; score reads one file: for several, pipe them into -")
        self.file = DataFile(None if data == "-" else path)
        self.notes = self.file.notes  # what the user should know, one line each
        self.rows = 0  # so far, with the blank rows of CSV
        self.total_rows: int | None = None
        self.sought_fields: list[str] = []  # of JSON, whose fields are known at its end only
        self._topic = data
        self._limit = batch_events
        self._reader: EventReader | None = None
        self._csv_form: CsvForm | None = None
        if self.file.kind == "jsonl":
            if config.input.unwrap is not None:  # a table has no envelopes
                self._reader = EventReader(None, config.input.unwrap, max_bytes=config.input.max_bytes)
            self.sought_fields = list(dict.fromkeys([*wanted_fields(config, card), *config.output.include]))
            self._lists = self.file.batches(batch_events)
        else:
            self._lists = self._table(config, card, csv)

    def __iter__(self) -> Iterator[RecordBatch]:
        for lines in self._lists:
            offsets = [self.rows + place for place, line in enumerate(lines) if line]
            values: list[bytes | None] = [line for line in lines if line]
            self.rows += len(lines)
            if values:
                records = event_batch(self._topic, np.array(offsets, dtype=np.int64), values)
                yield records if self._reader is None else self._reader.read(records)

    def place(self, row: int) -> str:
        """How messages name a row: from 0, and of CSV with the line at which it begins, as editors count."""
        line = None
        if self._csv_form is not None and self.file.path is not None:
            line = line_of_row(self.file.path, self._csv_form, row)
        return f"row {row}" if line is None else f"row {row}, line {line}"

    @property
    def done(self) -> float | None:
        """The fraction of the file that was read, from 0 to 1; None where its size is not known."""
        if self.file.kind != "jsonl":
            return self.rows / self.total_rows if self.total_rows else None
        return self.file.position / self.file.size if self.file.size else None

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def _table(self, config: Config, card: Card, csv: CsvOptions) -> Iterator[list[bytes]]:
        path = self.file.path
        assert path is not None
        require_for_table(path)
        from lstmstream.formats.tables import open_table, table_events  # noqa: PLC0415 -- needs polars

        table = open_table(path, csv, [*wanted_fields(config, card), *config.output.include])
        present = table.fields
        roles = field_roles(config, card)
        if config.output.events.topic is not None:  # they have all fields
            roles = roles._replace(passthrough=tuple(dict.fromkeys([*roles.passthrough, *present])))
        events = table_events(table, roles, csv)  # raises for a file that is not a table
        if missing := [name for name in wanted_fields(config, card) if name not in present]:
            raise CannotServe(unknown_fields(path, missing, present))
        if missing := [name for name in config.output.include if name not in present]:
            self.notes.append(f"output.include: {unknown_fields(path, missing, present)}")
        self.total_rows = table.count()
        self._csv_form = table.form
        self.notes += table.notes
        return _lists(events, self._limit)


def _lists(events: Iterator[bytes], limit: int) -> Iterator[list[bytes]]:
    while taken := list(islice(events, limit)):
        yield taken
