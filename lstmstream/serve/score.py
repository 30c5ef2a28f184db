"""`lstmstream score`: the daemon's engine over a file. No broker; the same bytes, but for `source`.

What the file is, is seen by its first bytes (`lstmstream.formats.files`). Rows of CSV and Parquet become JSON events
first (`lstmstream.formats.tables`) and are then decoded as an event from Kafka is, so that nothing can differ. That
needs polars (extra `tables`); JSONL does not.
"""

from __future__ import annotations

import sys
import time
from base64 import b64encode
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.formats.files import STANDARD_INPUT
from lstmstream.records import Headers
from lstmstream.row_progress import RowProgress
from lstmstream.serve.engine import Result
from lstmstream.serve.factory import load_step_model
from lstmstream.serve.model_checks import threshold_warning
from lstmstream.serve.observers import StageTimer
from lstmstream.serve.profile import Profile, Totals
from lstmstream.serve.score_chain import configs_to_score, make_engines, process
from lstmstream.serve.score_input import KeyAndTime, ScoreInput
from lstmstream.serve.score_notes import FeaturesWithoutValues, RefusedRows, RowTimes, UnseenFields, say
from lstmstream.serve.shard import Shard, ShardFilter
from lstmstream.whole_file import growing_file, part_of, whole_file

BATCH_EVENTS = 4096


def score_file(
    config_or_model: str,
    data: str,
    *,
    out: str,
    key: str | None,
    timestamp: str | None,
    dead_letters: Path | None,
    no_key: bool = False,
    no_timestamp: bool = False,
    profile: Path | None = None,
    events: Path | None = None,
    stage: str | None = None,
    shard: str | None = None,
    csv: CsvOptions = FROM_FILE,
) -> int:
    """Answer the events of `data` in their order; all are of one partition. Returns the exit code.

    `config_or_model` is a daemon's YAML or a model; `key` and `timestamp` name columns, before those of the YAML and of
    the model's card. `no_key`: all events belong to one key (null). `no_timestamp`: the timestamp is the moment of
    reading. `profile`: the file of a profile. `events`: the file for those of `output.events`. `shard`: such as 3/16,
    see `lstmstream.serve.shard`. `csv`: how CSV is written. The exit code is 1 where there are rows and none could be
    scored.
    """
    part = None if shard is None else Shard.parse(shard)
    columns = KeyAndTime(key, timestamp, no_key=no_key, no_timestamp=no_timestamp)
    configs = configs_to_score(config_or_model, stage)
    loaded = [load_step_model(config) for config in configs]
    model, step = loaded[0]
    _refuse_overwriting(
        {"the data": "/dev/stdin" if data == "-" else data, "the model": model.path, "the config": config_or_model},
        {
            "--out": "/dev/stdout" if out == "-" else out,
            "--dead-letters": dead_letters,
            "--profile": profile,
            "--events": events,
        },
    )
    if events is not None and configs[0].output.events.topic is None:
        raise CannotServe("--events: the config has no output.events, which says what to add to them; set it")
    timer, profiled = (
        StageTimer(time.perf_counter),
        None if profile is None else Profile(profile, f"lstmstream score {data}"),
    )
    engines = make_engines(configs, loaded, columns, timer)
    config = configs[0]
    shards = None if part is None else ShardFilter(part, configs, loaded[0][1].card)
    name = STANDARD_INPUT if data == "-" else data
    times = RowTimes(name, config.input.late, config.input.timestamp)
    batches = 0
    with ExitStack() as files:
        rows = files.enter_context(closing(ScoreInput(data, config, step.card, batch_events=BATCH_EVENTS, csv=csv)))
        refused = [RefusedRows(name, kept=dead_letters, place=rows.place) for _ in engines]
        unseen = UnseenFields(name, rows.sought_fields)
        features = FeaturesWithoutValues(name, step.card)
        for note in filter(None, [*rows.notes, *map(threshold_warning, configs, (one.card for _, one in loaded))]):
            say(note)
        predictions = _standard_output() if out == "-" else _opened("--out", Path(out), files, rows)
        letters = None if dead_letters is None else _opened("--dead-letters", dead_letters, files, rows)
        enriched = None if events is None else _opened("--events", events, files, rows)
        files_of = [_Files(None, letters, enriched if number == 0 else None) for number in range(len(engines))]
        files_of[-1] = files_of[-1]._replace(predictions=predictions)
        progress = files.enter_context(closing(RowProgress(name, terminal=_draws_bar(out))))
        if profiled is not None:
            profiled.start()
        for records in rows if shards is None else filter(len, map(shards.select, rows)):
            batches += 1
            unseen.look(records)
            for number, result in enumerate(process(engines, records)):
                _write(result, files_of[number])
                refused[number].add(result)
                if number == 0:
                    features.add(result)
                    times.add(result)
            if rows.file.live:
                predictions.flush()
            progress.update(rows.rows, rows.done)
        predictions.flush()
    if profiled is not None:
        profiled.finish(Totals(rows.rows, batches, timer.take()), say)
    unseen.finish()
    features.finish(unseen.unseen)
    times.finish()
    if shards is not None:
        say(f"{name}: {shards.rows:,} of {rows.rows:,} rows are in shard {shards.shard}")
    if not rows.rows:
        say(f"{name}: has no events")
    return max(int(one.finish(json=rows.file.kind == "jsonl")) for one in refused)


class _Files(NamedTuple):
    """What of a stage's results is written where."""

    predictions: IO[bytes] | None
    dead_letters: IO[bytes] | None
    events: IO[bytes] | None


def _write(result: Result, files: _Files) -> None:
    outputs = result.outputs
    for file, batch in ((files.predictions, outputs.predictions), (files.events, outputs.events)):
        if file is not None and batch is not None:
            file.writelines((value or b"") + b"\n" for value in batch.values)
    if files.dead_letters is not None:
        dead = outputs.dead_letters
        for value, headers in zip(dead.values, dead.headers, strict=True):
            files.dead_letters.write(_dead_letter_json(value, headers) + b"\n")


def _draws_bar(out: str) -> bool:
    """On a terminal, unless the predictions go there too."""
    return sys.stderr.isatty() and not (out == "-" and sys.stdout.isatty())


def _refuse_overwriting(inputs: dict[str, str | Path], outputs: dict[str, str | Path | None]) -> None:
    """Raises CannotServe where an output is a file that is read, or is the other output."""
    taken = {what: Path(path) for what, path in inputs.items()}
    for option, output in outputs.items():
        if output is None:
            continue
        path = Path(output)
        for what, other in taken.items():
            if _same_file(path, other) or _same_file(part_of(path), other):
                raise CannotServe(f"{option} {path}: is also the file of {what}; name another file")
        taken[option] = path


def _same_file(one: Path, other: Path) -> bool:
    """Whether both are one file, perhaps by another name. Terminals and pipes may be both input and output."""
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return one.resolve() == other.resolve()


def _standard_output() -> IO[bytes]:
    if sys.stdout is None:
        raise CannotServe("--out: standard output is closed; name a file")
    return sys.stdout.buffer


def _opened(option: str, path: Path, files: ExitStack, rows: ScoreInput) -> IO[bytes]:
    """Raises CannotServe where the file cannot be opened. What comes of a pipe is read while it is written."""
    try:
        return files.enter_context(growing_file(path) if rows.file.live else whole_file(path, keep=True))
    except OSError as error:
        raise CannotServe(f"{option} {path}: {error.strerror}; name another file") from error


def _dead_letter_json(value: bytes | None, headers: Headers) -> bytes:
    """A dead letter as a JSON line: its headers, and the record's bytes, as base64 where they are not UTF-8."""
    line: dict[str, Any] = {name: (text or b"").decode() for name, text in headers}
    if value is not None:
        try:
            line["value"] = value.decode()
        except UnicodeDecodeError:
            line["value_base64"] = b64encode(value).decode()
    return orjson.dumps(line)
