"""`lstmstream config schema`: the JSON Schema of a configuration file, for editors."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="About configuration files.")


@app.callback()
def _group() -> None:
    """About configuration files."""


@app.command()
def schema(
    train: Annotated[bool, typer.Option("--train", help="Of the training's file; default: of the daemon's.")] = False,
) -> None:
    """Print the JSON Schema of the daemon's configuration, for editors.

    Write it to a file beside the configuration, and begin that with: # yaml-language-server: $schema=FILE
    """
    from lstmstream.config.json_schema import document_schema

    if train:
        from lstmstream.train.schema import TrainConfig

        found = document_schema(TrainConfig, "lstmstream: training")
    else:
        from lstmstream.config import Config

        found = document_schema(Config, "lstmstream: daemon")
    print(json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False))
