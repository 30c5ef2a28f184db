"""The options of `lstmstream state`; what they do is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lstmstream.csv_arguments import DecimalOption, DelimiterOption

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at the states of keys, and erase them.")

_Config = Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")]
_StageName = Annotated[
    str | None, typer.Option("--stage", metavar="NAME", help="Which stage, of a configuration with stages.")
]
_Key = Annotated[
    str | None, typer.Option("--key", metavar="COLUMN", help="Field with the record's key, where input.key is not set.")
]
_Timestamp = Annotated[
    str | None,
    typer.Option("--timestamp", metavar="COLUMN", help="Field with the event time, where input.timestamp is not set."),
]
_AtOffset = Annotated[
    list[str] | None,
    typer.Option(
        "--at-offset",
        metavar="P:O",
        help="The first event of partition P that the states do not contain is at offset O. One for each partition.",
    ),
]
_AtTime = Annotated[
    str | None,
    typer.Option(
        "--at-time",
        metavar="TIME",
        help="The states contain all events before this time (ISO 8601), and none of the records from then on.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    config: _Config,
    prefix: Annotated[str | None, typer.Option(help="Only keys that begin with this text.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Print those with the latest events, up to this many.")] = 100,
    as_json: _Json = False,
    stage: _StageName = None,
) -> int:
    """List keys with a state, those with the latest events first.

    The daemon writes a state state.checkpoint_interval after its first change: what is newer is in its memory only.
    """
    from lstmstream.states.command import list_states

    return list_states(config, prefix=prefix, limit=limit, as_json=as_json, stage=stage)


@app.command()
def get(
    config: _Config,
    key: Annotated[str, typer.Argument(help="The key.")],
    as_json: _Json = False,
    stage: _StageName = None,
) -> int:
    """Show the state of a key, by the parts that the model's card names.

    The daemon's memory may be newer by state.checkpoint_interval: its endpoint /state/KEY shows that.
    """
    from lstmstream.states.command import get_state

    return get_state(config, key, as_json=as_json, stage=stage)


@app.command()
def diff(
    config: _Config,
    key: Annotated[str, typer.Argument(help="The key.")],
    model: Annotated[str, typer.Option("--with", metavar="MODEL", help="Another model: a path, or builtin:NAME.")],
    as_json: _Json = False,
    stage: _StageName = None,
) -> int:
    """Show the state of a key beside the one that another model has after the same events.

    The other model reads those events of the key that the input still has; nothing is written.
    """
    from lstmstream.states.diff import diff_states

    return diff_states(config, key, model, as_json=as_json, stage=stage)


@app.command()
def delete(
    config: _Config,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="The keys.")] = None,
    keys_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with one key a line; - reads standard input.")
    ] = None,
    as_base64: Annotated[bool, typer.Option("--base64", help="The keys are given as base64.")] = False,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait for the owners.")] = "60s",
    as_json: _Json = False,
    stage: _StageName = None,
) -> int:
    """Erase the states of keys, of all models, in the topic and in the memory of a running daemon.

    A key starts over at the input offset that is printed for each partition: no event before it comes into a state
    again. Exits with 1 if one of the keys had no state, or not all owners have confirmed in time.
    """
    from lstmstream.config.types import parse_duration
    from lstmstream.states.delete import delete_states

    return delete_states(
        config,
        keys or (),
        keys_from=keys_from,
        as_base64=as_base64,
        timeout_s=parse_duration(timeout, "--timeout"),
        as_json=as_json,
        stage=stage,
    )


@app.command()
def repartition(
    config: _Config,
    partitions: Annotated[int, typer.Option(min=2, help="How many partitions the input topic has now.")],
    stage: _StageName = None,
) -> int:
    """Move the states to where their keys are, after the input topic has got more partitions.

    Before the topic gets them: pause the producers, let the daemon answer all, and stop every member of the group. Keys
    are where murmur2 puts them, as Kafka's own clients do. A run that was cut can be repeated.
    """
    from lstmstream.states.repartition import repartition_states

    return repartition_states(config, partitions, stage=stage)


@app.command()
def export(
    config: _Config,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File for the states, .jsonl or .parquet; - prints JSONL.")],
    prefix: Annotated[str | None, typer.Option(help="Only keys that begin with this text.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only those of this partition.")] = None,
    stage: _StageName = None,
) -> int:
    """Write all states that the state topic has to a file, one row for each key and partition."""
    from lstmstream.states.export import export_states

    return export_states(config, out, prefix=prefix, partition=partition, stage=stage)


@app.command("import")
def import_(
    config: _Config,
    file: Annotated[Path, typer.Argument(help="States as `state export` writes them, .parquet or .jsonl.")],
    at_offset: _AtOffset = None,
    at_time: _AtTime = None,
    stage: _StageName = None,
) -> int:
    """Write the states of a file for a group that has not begun; the daemon then starts from them.

    The group must have no offsets and no members, and the state topic no states. The input goes on at its first
    retained record, unless --at-offset or --at-time says where; states that contain an event which is not older than
    that are refused. An import that was stopped leaves nothing that counts: run it again.
    """
    from lstmstream.states.import_states import import_states
    from lstmstream.states.joining import JoinAt

    return import_states(config, file, at=JoinAt.parse(at_offset or [], at_time), stage=stage)


@app.command()
def build(
    config: _Config,
    history: Annotated[list[Path], typer.Argument(help="Events older than the input: .jsonl, .csv, .parquet.")],
    key: _Key = None,
    timestamp: _Timestamp = None,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    at_offset: _AtOffset = None,
    at_time: _AtTime = None,
    stage: _StageName = None,
) -> int:
    """Build the states of a group that has not begun from a history that is older than its input.

    The events of the files are run in their order, as `score` runs them; nothing is published of them. The daemon then
    answers the input as if it had answered the history before. The group must have no offsets and no members, and the
    state topic no states. The input goes on at its first retained record, unless --at-offset or --at-time says where; a
    history with an event that is not older than that is refused. A build that was stopped leaves nothing that counts.
    """
    from lstmstream.formats.csv_form import CsvOptions
    from lstmstream.states.build import build_states
    from lstmstream.states.joining import JoinAt

    at = JoinAt.parse(at_offset or [], at_time)
    csv = CsvOptions.of(delimiter, decimal)
    return build_states(config, history, key=key, timestamp=timestamp, at=at, stage=stage, csv=csv)
