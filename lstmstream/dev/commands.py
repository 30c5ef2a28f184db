"""`lstmstream dev up|down|status`: the development broker, for a person at a terminal.

Knows words and options; what they do is broker.py's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lstmstream.dev.broker import DevBroker, default_home
from lstmstream.dev.kafka_jars import KAFKA_VERSION, jars_folder

app = typer.Typer(
    no_args_is_help=True, help="A real Kafka on this machine's loopback, without Docker (Java and Maven)."
)

_Home = Annotated[
    Path | None,
    typer.Option("--home", help="The broker's folder.", show_default="~/.local/share/lstmstream/dev-broker"),
]


@app.command()
def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free one.")] = 9092,
    home: _Home = None,
) -> None:
    """Start the broker unless it runs, and print its bootstrap servers."""
    broker = DevBroker(home or default_home())
    if not jars_folder().is_dir():
        typer.echo(f"Fetching Kafka {KAFKA_VERSION} with Maven (54 MiB, once) ...", err=True)
    was_running = broker.status().running
    servers = broker.up(port)
    typer.echo(servers)
    state = "already runs" if was_running else "is up"
    typer.echo(f"Kafka {KAFKA_VERSION} {state} on {servers}; its data and log are in {broker.home}", err=True)


@app.command()
def down(
    *,
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove its data, settings and log too.")] = False,
    home: _Home = None,
) -> None:
    """Stop the broker; its data stay, unless --wipe is given."""
    broker = DevBroker(home or default_home())
    was_there = broker.home.exists()
    stopped = broker.down(wipe=wipe)
    typer.echo("The broker is stopped." if stopped else "The broker was not running.")
    if wipe and was_there:
        typer.echo(f"{broker.home} is removed.")


@app.command()
def status(
    *,
    home: _Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """Say whether the broker runs, and where. Exit code 0 either way."""
    now = DevBroker(home or default_home()).status()
    if as_json:
        facts = {"running": now.running, "bootstrap_servers": now.bootstrap_servers, "pid": now.pid}
        typer.echo(json.dumps(facts | {"home": str(now.home), "log": str(now.log)}))
    elif now.running:
        typer.echo(f"The broker runs on {now.bootstrap_servers} (pid {now.pid}), in {now.home}")
    else:
        typer.echo(f"The broker is not running; its home is {now.home}")
