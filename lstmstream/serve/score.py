"""`lstmstream score`: the daemon's engine over a file. No broker; the same bytes, but for `source`.

Rows of CSV and Parquet become JSON events first (`lstmstream.formats.tables`) and are then decoded as an event from
Kafka is, so that nothing can differ. That needs polars (extra `tables`); JSONL does not.
"""

from __future__ import annotations

import os
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from lstmstream.config import Config, load_config
from lstmstream.errors import CannotServe
from lstmstream.extras import require_for_table
from lstmstream.formats.field_roles import FieldRoles
from lstmstream.model import Card
from lstmstream.records import Headers, RecordBatch
from lstmstream.serve.factory import load_step_model, make_engine

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
    model, step = load_step_model(config)
    lines = _lines(data, field_roles(config, step.card))
    _refuse_overwriting(
        {"the data": "/dev/stdin" if data == "-" else data, "the model": model.path, "the config": reference},
        {"--out": "/dev/stdout" if out == "-" else out, "--dead-letters": dead_letters},
    )
    engine = make_engine(config, step, from_file=True)
    engine.scorer.states.open(0)
    with ExitStack() as files:
        predictions = _open_out(out, files)
        letters = files.enter_context(dead_letters.open("wb")) if dead_letters is not None else None
        for records in _batches(data, lines):
            result = engine.process(records)
            for value in result.outputs.predictions.values:
                predictions.write(value or b"")
                predictions.write(b"\n")
            if letters is not None:
                dead = result.outputs.dead_letters
                for value, headers in zip(dead.values, dead.headers, strict=True):
                    letters.write(_dead_letter_json(value, headers) + b"\n")
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
    """Whether both are one file, perhaps by another name. Terminals and pipes may be both input and output."""
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return one.resolve() == other.resolve()


def field_roles(config: Config, card: Card) -> FieldRoles:
    """What the fields of an event are read as."""
    keys = (config.input.key, config.output.key)
    return FieldRoles(
        keys=tuple(name for name in keys if name is not None),
        times=() if config.input.timestamp is None else (config.input.timestamp,),
        numbers=tuple(feature.name for feature in card.numbers if feature.size == 1),
        arrays=tuple(feature.name for feature in card.numbers if feature.size > 1),
        categories=tuple(feature.name for feature in card.categories),
        passthrough=tuple(config.output.include),
    )


def _lines(data: str, roles: FieldRoles) -> Iterator[bytes]:
    """The events, one JSON object each; an empty line stands for a blank row of CSV."""
    if data == "-":
        return _stripped(None)
    path = Path(data)
    if not path.is_file():
        raise CannotServe(f"{data}: no such file")
    if path.suffix.lower() in _TABLES:
        require_for_table(path)
        from lstmstream.formats.tables import table_events  # noqa: PLC0415 -- polars is an optional dependency

        return table_events(path, roles)  # a file that is not CSV is an error here, before --out is opened
    return _stripped(path)


def _stripped(path: Path | None) -> Iterator[bytes]:
    """Lines of a file, or of standard input, without their ends; blank ones are left out."""
    with sys.stdin.buffer if path is None else path.open("rb") as file:
        yield from (line.rstrip(b"\r\n") for line in file if line.strip())


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


def _dead_letter_json(value: bytes | None, headers: Headers) -> bytes:
    """A dead letter as a JSON line: its headers, and the record's bytes, as base64 where they are not UTF-8."""
    line: dict[str, Any] = {name: (text or b"").decode() for name, text in headers}
    if value is not None:
        try:
            line["value"] = value.decode()
        except UnicodeDecodeError:
            line["value_base64"] = b64encode(value).decode()
    return orjson.dumps(line)
