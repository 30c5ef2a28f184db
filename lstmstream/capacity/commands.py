"""The options of `lstmstream capacity`; what it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def capacity(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")],
    keys: Annotated[int, typer.Option(min=1, help="Number of keys to plan for.")] = 1_000_000,
    rate: Annotated[float, typer.Option(min=0.001, metavar="EVENTS", help="Events per second to plan for.")] = 10_000.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which stage, of a configuration with stages.")
    ] = None,
) -> int:
    """Measure on this machine what the model needs, and say what so many keys and events need.

    It needs no broker: the events are generated. What Kafka's client and the broker take comes on top.
    """
    from lstmstream.capacity.command import print_capacity

    return print_capacity(config, keys=keys, rate=rate, seconds=seconds, as_json=as_json, stage=stage)
