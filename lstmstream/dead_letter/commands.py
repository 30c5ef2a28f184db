"""The options of `lstmstream dead-letter`; what they do is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at events without a prediction, and replay them."
)

_Config = Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")]
_Stage = Annotated[str | None, typer.Option(help="Only those of a stage: decode, validate, late, step or publish.")]
_Reason = Annotated[str | None, typer.Option(help="Only those whose reason contains this text.")]
_Key = Annotated[str | None, typer.Option(help="Only those whose record has this key.")]
_Since = Annotated[
    str | None, typer.Option("--from", help="Only those whose record's timestamp is not before this (ISO 8601).")
]
_Until = Annotated[str | None, typer.Option("--to", help="Only those whose record's timestamp is before this.")]
_StageName = Annotated[str | None, typer.Option(metavar="NAME", help="Which stage, of a configuration with stages.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    config: _Config,
    stage: _Stage = None,
    reason: _Reason = None,
    key: _Key = None,
    since: _Since = None,
    until: _Until = None,
    limit: Annotated[int, typer.Option(min=1, help="Print the last of them, up to this many.")] = 100,
    as_json: _Json = False,
    stage_name: _StageName = None,
) -> int:
    """List dead letters, one a line, and count them by stage.

    Each line begins with the place of the dead letter in its topic: partition@offset.
    """
    from lstmstream.dead_letter.command import list_letters, make_filter

    filter_ = make_filter(stage=stage, reason=reason, key=key, since=since, until=until)
    return list_letters(config, filter_, limit=limit, as_json=as_json, stage_name=stage_name)


@app.command()
def show(
    config: _Config,
    place: Annotated[str, typer.Argument(metavar="PLACE", help="partition@offset, as `list` prints it.")],
    as_json: _Json = False,
    stage_name: _StageName = None,
) -> int:
    """Show one dead letter with its reason, headers and value."""
    from lstmstream.dead_letter.command import show_letter

    return show_letter(config, place, as_json=as_json, stage_name=stage_name)


@app.command()
def replay(
    config: _Config,
    places: Annotated[
        list[str] | None, typer.Argument(metavar="[PLACE]...", help="partition@offset, as `list` prints it.")
    ] = None,
    stage: _Stage = None,
    reason: _Reason = None,
    key: _Key = None,
    since: _Since = None,
    until: _Until = None,
    everything: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Set a field of the event: JSON, or else text. May be repeated."
        ),
    ] = None,
    add_fields: Annotated[
        bool,
        typer.Option("--add-fields", help="Let --set add a field that neither the model nor the configuration reads."),
    ] = False,
    edit: Annotated[bool, typer.Option("--edit", help="Open each event in $EDITOR first.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be replayed, and write nothing.")
    ] = False,
    as_json: _Json = False,
    stage_name: _StageName = None,
) -> int:
    """Write events back to the input topic, where the daemon scores them.

    None is replayed twice: what was replayed is noted in the topic <dead_letter.topic>.replayed, in the same
    transaction. Exits with 1 if some could not be replayed.
    """
    from lstmstream.dead_letter.command import make_filter, replay_letters

    filter_ = make_filter(stage=stage, reason=reason, key=key, since=since, until=until, places=places or ())
    return replay_letters(
        config,
        filter_,
        everything=everything,
        settings=set_ or (),
        add_fields=add_fields,
        edit=edit,
        dry_run=dry_run,
        as_json=as_json,
        stage_name=stage_name,
    )
