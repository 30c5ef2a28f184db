"""`lstmstream score`: the daemon's engine over a file. No broker; the same bytes, but for `source`.

Rows of CSV and Parquet become JSON events first and take the same way as an event from Kafka, so nothing can differ.
A cell of CSV has no type: where the model wants a number or a time, one that reads as a number is one.
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
from itertools import islice
from math import isinf
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson
import polars as pl

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.serve import csv_files
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
    model, step = open_model(config)
    numbers = [feature.name for feature in step.card.numbers]
    numbers += [config.input.timestamp] if config.input.timestamp is not None else []
    texts = [feature.name for feature in step.card.categories]
    texts += [name for name in (config.input.key, config.output.key) if name is not None]
    lines = _lines(data, texts, numbers)
    _refuse_overwriting(
        {"the data": "/dev/stdin" if data == "-" else data, "the model": model.path, "the config": reference},
        {"--out": "/dev/stdout" if out == "-" else out, "--dead-letters": dead_letters},
    )
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


def _refuse_overwriting(inputs: dict[str, str | Path], outputs: dict[str, str | Path | None]) -> None:
    """Raises CannotServe where an output is a file that is read, or is the other output."""
    taken = {what: Path(path) for what, path in inputs.items()}
    for option, output in outputs.items():
        if output is None:
            continue
        path = Path(output)
        for what, other in taken.items():
            if _same_file(path, other):
                raise CannotServe(f"{option} {path}: this is the file of {what} too; name another file")
        taken[option] = path


def _same_file(one: Path, other: Path) -> bool:
    """Also by another name. Two of what is no file, such as a terminal, do each other no harm."""
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return one.resolve() == other.resolve()


def _lines(data: str, texts: Collection[str], numbers: Collection[str] = ()) -> Iterator[bytes]:
    """The events, one JSON object each; an empty line stands for a row of CSV that is blank.

    Of a CSV file, `texts` are the fields that have no numbers in them (`007` is not `7`), `numbers` those that should.
    """
    if data == "-":
        return _stripped(None)
    path = Path(data)
    if not path.is_file():
        raise CannotServe(f"{data}: no such file")
    if path.suffix.lower() in _TABLES:
        if path.suffix.lower() == ".csv":  # at once, before an output is opened
            csv_files.refuse_other_formats(path, {*texts, *numbers})
        return _rows(path, texts, numbers)
    return _stripped(path)


def _stripped(path: Path | None) -> Iterator[bytes]:
    """Lines of a file, or of standard input, without their ends; blank ones are left out."""
    with sys.stdin.buffer if path is None else path.open("rb") as file:
        yield from (line.rstrip(b"\r\n") for line in file if line.strip())


def _rows(path: Path, texts: Collection[str], numbers: Collection[str]) -> Iterator[bytes]:
    """Each row of a table as a JSON object; nulls and NaN are left out, times are ISO 8601."""
    csv = path.suffix.lower() == ".csv"
    try:
        if csv:  # the other columns' types by the whole file, or the 101st row could fail
            as_written = dict.fromkeys([*texts, *numbers], pl.String)
            frame = pl.scan_csv(path, infer_schema_length=None, schema_overrides=as_written)
        else:
            frame = pl.scan_parquet(path)
        names = frame.collect_schema().names()
        paths = _paths(names)
        judged = set(numbers) if csv else set()
        for part in frame.collect_batches(maintain_order=True, chunk_size=BATCH_EVENTS):
            columns = [csv_files.values(part[name]) if name in judged else part[name].to_list() for name in names]
            for row in zip(*columns, strict=True):
                yield b"" if csv and row.count(None) == len(row) else _event(paths, row)
    except pl.exceptions.PolarsError as error:
        raise csv_files.unreadable(path, error) from error


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
        taken = list(islice(lines, BATCH_EVENTS))
        waiting = len(taken) == BATCH_EVENTS
        offsets = [row + place for place, line in enumerate(taken) if line]
        values: list[bytes | None] = [line for line in taken if line]
        count = len(values)
        if count:
            yield RecordBatch(
                topic=name,
                partitions=np.zeros(count, dtype=np.int64),
                offsets=np.array(offsets, dtype=np.int64),
                timestamps=np.full(count, int(time.time() * 1000), dtype=np.int64),
                keys=[None] * count,
                values=values,
                headers=[()] * count,
            )
        row += len(taken)


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
