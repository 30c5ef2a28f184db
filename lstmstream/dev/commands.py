"""The commands of `lstmstream dev`: the development broker, events of a file for any broker, and `reports`.

The broker is imported when a command runs: its Kafka client would slow down every other command, and `--help`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lstmstream.csv_arguments import DecimalOption, DelimiterOption
from lstmstream.dev.kafka_jars import KAFKA_VERSION, jars_folder
from lstmstream.errors import CannotServe
from lstmstream.wording import counted

if TYPE_CHECKING:
    from lstmstream.dev.broker import DevBroker

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Kafka on this machine, without Docker. Needs Java and Maven; listens on the loopback address only.",
)

_Home = Annotated[
    Path | None,
    typer.Option("--home", help="The broker's folder.", show_default="~/.local/share/lstmstream/dev-broker"),
]


@app.command()
def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any free port.")] = 9092,
    home: _Home = None,
) -> None:
    """Start the broker.

    Does nothing if it is already running. Prints its bootstrap servers.
    """
    broker = _broker(home)
    if not jars_folder().is_dir():
        typer.echo(f"Downloading Kafka {KAFKA_VERSION} with Maven (54 MiB, once) ...", err=True)
    was_running = broker.status().running
    servers = broker.up(port)
    typer.echo(servers)
    state = "is already running" if was_running else "is running"
    typer.echo(f"Kafka {KAFKA_VERSION} {state} on {servers}; its data and log are in {broker.home}", err=True)


@app.command()
def topic(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Topics to create.")],
    partitions: Annotated[int, typer.Option(min=1, help="Number of partitions per topic.")] = 1,
    home: _Home = None,
) -> None:
    """Create topics on the broker, with Kafka's default settings. One that exists is left as it is."""
    for name, count in _broker(home).create_topics(names, partitions).items():
        typer.echo(f"Topic {name} has {counted(count, 'partition')}.")


@app.command()
def send(
    file: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet.")],
    topic: Annotated[str, typer.Option(help="Topic to write to; it must exist.")],
    key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Field whose value is the record's key: input.key.")
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Send the records without keys.")] = False,
    timestamp: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Field with the event time: input.timestamp. Events are sent in its order."),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column of CSV that is text though it looks like numbers. Repeatable."),
    ] = None,
    bootstrap_servers: Annotated[str, typer.Option(help="The broker.")] = "127.0.0.1:9092",
    rate: Annotated[float | None, typer.Option(min=0.1, help="Events per second. Default: as fast as it can.")] = None,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
) -> int:
    """Write the events of a file to a topic.

    One JSON object for each row of CSV or Parquet, and each event of JSONL as it is, with keys, and in order of time:
    what a producer would have written as the events came.
    """
    from lstmstream.dev.send import FileFields, send_file
    from lstmstream.errors import Fatal
    from lstmstream.formats.csv_form import CsvOptions
    from lstmstream.shutdown import ShutdownSignal

    if (key is None) != no_key:
        raise CannotServe("give either --key FIELD, or --no-key if all events belong to one key")
    stop = ShutdownSignal()
    try:
        sent = send_file(
            file,
            topic,
            bootstrap_servers,
            FileFields(key, timestamp, tuple(text or ())),
            csv=CsvOptions.of(delimiter, decimal),
            rate=rate,
            stopping=lambda: stop.requested,
        )
    except Fatal as error:
        typer.echo(f"lstmstream: {error}", err=True)
        return 1
    typer.echo(f"{counted(sent, 'event was', 'events were')} written to topic {topic}.", err=True)
    return 0


@app.command()
def down(
    *,
    wipe: Annotated[bool, typer.Option("--wipe", help="Also remove its data, settings and log.")] = False,
    home: _Home = None,
) -> None:
    """Stop the broker. Its data are kept, unless --wipe is given."""
    broker = _broker(home)
    existed = broker.home.exists()
    stopped = broker.down(wipe=wipe)
    typer.echo("The broker has been stopped." if stopped else "The broker was not running.")
    if wipe and existed:
        typer.echo(f"{broker.home} has been removed.")


@app.command()
def status(
    *,
    home: _Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whether the broker is running, and where. The exit code is 0 in both cases."""
    now = _broker(home).status()
    if as_json:
        facts = {"running": now.running, "bootstrap_servers": now.bootstrap_servers, "pid": now.pid}
        typer.echo(json.dumps(facts | {"home": str(now.home), "log": str(now.log)}))
    elif now.running:
        typer.echo(f"The broker is running on {now.bootstrap_servers} (pid {now.pid}), in {now.home}")
    else:
        typer.echo(f"The broker is not running; its home is {now.home}")


@app.command()
def reports(
    history: Annotated[Path, typer.Argument(help="JSONL, CSV or Parquet, in the order of time.")],
    *,
    label: Annotated[str, typer.Option(help="Field of the label.")],
    delay: Annotated[str, typer.Option(help="How long after its event a label is known, such as 7d.")],
    key: Annotated[str, typer.Option(help="Field of the entity key of the reports.")],
    timestamp: Annotated[str, typer.Option(help="Field of the event time.")],
    field: Annotated[str, typer.Option(help="Field of the label in a report; events must not have it.")] = "reported",
    out: Annotated[str, typer.Option(help="File for the stream, JSONL; - is standard output.")] = "-",
) -> int:
    """Make a stream with late labels from a history that has them.

    After each event with a label comes a report: an event of its own with kind: report, the key, the time when the
    label became known, and the label. Reports after the last event are left out.
    """
    from lstmstream.config.types import parse_duration
    from lstmstream.dev.reports import Reports, write_to
    from lstmstream.whole_file import remedy_of

    wanted = Reports(key, timestamp, label, field, round(parse_duration(delay, "--delay") * 1000))
    try:
        events, written = write_to(out, history, wanted)
    except OSError as error:
        typer.echo(f"lstmstream: {error.filename or out}: {error.strerror}{remedy_of(error)}", err=True)
        return 1
    typer.echo(f"{events:,} events and {written:,} reports were written.", err=True)
    return 0


def _broker(home: Path | None) -> DevBroker:
    from lstmstream.dev.broker import DevBroker, default_home

    return DevBroker(home or default_home())
