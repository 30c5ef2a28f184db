"""The options of `lstmstream state`; what they do is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at the states of keys that the state topic has."
)

_Config = Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")]
_StageName = Annotated[
    str | None, typer.Option("--stage", metavar="NAME", help="Which stage, of a configuration with stages.")
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
