"""`lstmstream score`: the daemon's engine over a file. No broker; the same bytes, but for `source`.

Rows of CSV and Parquet become JSON events first and take the same way as an event from Kafka, so nothing can differ.
A column `merchant.city` is the field `city` of the object `merchant`, as everywhere else.
"""

from __future__ import annotations

import os
import sys
import time
from base64 import b64encode
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from decimal import Decimal
from math import isinf
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import polars as pl

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.serve.build import make_engine, open_model
from lstmstream.serve.records import Message, RecordBatch

BATCH_EVENTS = 4096
_TABLES = {".parquet", ".csv"}


def score_file(
    reference: str, data: str, *, out: str, key: str | None, timestamp: str | None, dead_letters: Path | None
) -> int:
    """Answer the events of `data` in their order; all are of one partition. Returns the exit code.

    `reference` is a daemon's YAML or a model; `key` and `timestamp` name columns, before those of the YAML. Without
    either, all events belong to one key (null), and the timestamp is the moment of reading.
    """
    config = _config(reference, key, timestamp)
    _, step = open_model(config)
    texts = [feature.name for feature in step.card.categories]
    texts += [name for name in (config.input.key, config.output.key) if name is not None]
    lines = _lines(data, texts)
    engine = make_engine(config, step, from_file=True)
    engine.states.open(0)
    with ExitStack() as files:
        predictions = _open_out(out, files)
        letters = files.enter_context(dead_letters.open("wb")) if dead_letters is not None else None
        for records in _batches(data, lines):
            result = engine.process(records)
            for message in result.messages:
                if message.topic == config.output.topic:
                    predictions.write(message.value or b"")
                    predictions.write(b"\n")
                elif message.topic == config.dead_letter.topic and letters is not None:
                    letters.write(_letter(message) + b"\n")
            engine.commit()
            if result.dead_letters and letters is None:
                first, name = result.dead_letters[0], "standard input" if data == "-" else data
                print(
                    f"lstmstream: {name}, row {records.offsets[first.index]}: {first.message}"
                    f" (dead letters in this batch: {len(result.dead_letters)}; --dead-letters FILE keeps them)",
                    file=sys.stderr,
                )
        predictions.flush()
    return 0


def _config(reference: str, key: str | None, timestamp: str | None) -> Config:
    """The YAML's config, or the least config around a model."""
    if Path(reference).suffix in {".yaml", ".yml"}:
        config = load_config(Path(reference))
    else:
        config = Config.model_validate(
            {
                "name": "score",
                "model": str(Path(reference).absolute()) if not reference.startswith("builtin:") else reference,
                "kafka": {"bootstrap_servers": "127.0.0.1:9092"},  # not asked
                "input": {"topic": "input"},
                "output": {"topic": "output"},
            }
        )
    changes = {name: value for name, value in (("key", key), ("timestamp", timestamp)) if value is not None}
    alone = config.output.model_copy(update={"alerts_topic": None})
    return config.model_copy(update={"input": config.input.model_copy(update=changes), "output": alone})


def _lines(data: str, texts: Collection[str]) -> Iterator[bytes]:
    """The events, one JSON object each. `texts` are the fields that a CSV file has no numbers in: `007` is not `7`."""
    if data == "-":
        return _stripped(None)
    path = Path(data)
    if not path.is_file():
        raise CannotServe(f"{data}: no such file")
    if path.suffix.lower() in _TABLES:
        return _rows(path, texts)
    return _stripped(path)


def _stripped(path: Path | None) -> Iterator[bytes]:
    """Lines of a file, or of standard input, without their ends; blank ones are left out."""
    with sys.stdin.buffer if path is None else path.open("rb") as file:
        yield from (line.rstrip(b"\r\n") for line in file if line.strip())


def _rows(path: Path, texts: Collection[str]) -> Iterator[bytes]:
    """Each row of a table as a JSON object; nulls and NaN are left out, times are ISO 8601."""
    try:
        if path.suffix.lower() == ".csv":  # types by the whole file, or the 101st row could fail
            frame = pl.scan_csv(path, infer_schema_length=None, schema_overrides=dict.fromkeys(texts, pl.String))
        else:
            frame = pl.scan_parquet(path)
        paths = _paths(frame.collect_schema().names())
        for part in frame.collect_batches(maintain_order=True, chunk_size=BATCH_EVENTS):
            for row in part.iter_rows():
                yield _event(paths, row)
    except pl.exceptions.PolarsError as error:
        raise CannotServe(f"{path}: cannot be read as {path.suffix[1:]}: {error}") from error


def _paths(names: list[str]) -> list[list[str]]:
    """Each column's way into the event. Raises CannotServe where one column lies inside another."""
    for name in names:
        inside = next((other for other in names if other.startswith(f"{name}.")), None)
        if inside is not None:
            raise CannotServe(f"columns {name!r} and {inside!r} cannot both be in an event; rename one")
    return [name.split(".") for name in names]


def _event(paths: list[list[str]], row: tuple[Any, ...]) -> bytes:
    event: dict[str, Any] = {}
    for (*outer, last), value in zip(paths, row, strict=True):
        if value is None or value != value:  # noqa: PLR0124 -- NaN
            continue
        here = event
        for name in outer:
            here = here.setdefault(name, {})
        # orjson would write null, and so an infinite number would pass as a missing one
        here[last] = orjson.Fragment("1e400") if _is_infinite(value) else value
    return orjson.dumps(event, default=_plain, option=orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z)


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and isinf(value)


def _plain(value: object) -> object:
    """What JSON has no type for: decimals as numbers, the rest as text."""
    if isinstance(value, Decimal):
        return int(value) if value == int(value) else float(value)
    return str(value)


def _batches(data: str, lines: Iterator[bytes]) -> Iterator[RecordBatch]:
    """Lines as records of one partition; a record's offset is its row, from 0."""
    name = "-" if data == "-" else os.fspath(data)
    row, waiting = 0, True
    while waiting:
        values: list[bytes | None] = []
        for line in lines:
            values.append(line)
            if len(values) == BATCH_EVENTS:
                break
        waiting = len(values) == BATCH_EVENTS
        count = len(values)
        if count:
            yield RecordBatch(
                topic=name,
                partitions=np.zeros(count, dtype=np.int64),
                offsets=np.arange(row, row + count, dtype=np.int64),
                timestamps=np.full(count, int(time.time() * 1000), dtype=np.int64),
                keys=[None] * count,
                values=values,
                headers=[()] * count,
            )
        row += count


def _open_out(out: str, files: ExitStack) -> IO[bytes]:
    return sys.stdout.buffer if out == "-" else files.enter_context(Path(out).open("wb"))


def _letter(message: Message) -> bytes:
    """A dead letter as a JSON line: its headers, and the record's bytes, as base64 where they are no UTF-8."""
    line: dict[str, Any] = {name: (value or b"").decode() for name, value in message.headers}
    if message.value is not None:
        try:
            line["value"] = message.value.decode()
        except UnicodeDecodeError:
            line["value_base64"] = b64encode(message.value).decode()
    return orjson.dumps(line)
