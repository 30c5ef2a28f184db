"""The `lstmstream` command line. Each command imports what it needs when it is called."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from lstmstream import __version__, codec
from lstmstream import completion as completions
from lstmstream.capacity.commands import capacity
from lstmstream.config_command import app as config
from lstmstream.csv_arguments import DecimalOption, DelimiterOption
from lstmstream.dead_letter.commands import app as dead_letter
from lstmstream.dev.commands import app as dev
from lstmstream.errors import CannotServe, Fatal
from lstmstream.importer.commands import import_
from lstmstream.states.commands import app as state
from lstmstream.whole_file import remedy_of
from lstmstream.wording import counted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables name the type of a flag, as if it took a value
    help="Score a live Kafka stream with a recurrent model that keeps state per key.",
)
model = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Inspect model files.")
app.add_typer(model, name="model")
app.add_typer(config, name="config")
app.add_typer(dead_letter, name="dead-letter")
app.add_typer(dev, name="dev")
app.add_typer(state, name="state")
app.command()(capacity)
app.command("import")(import_)

NAME = "lstmstream"
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EPIPE}


def main() -> NoReturn:
    """Run the command and exit with its exit code."""
    _open_closed_streams()
    completions.answer_shells()
    try:
        code = app(standalone_mode=False, prog_name=NAME)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where an error can be told
    except CannotServe as error:
        fail(*error.problems)
    except Fatal as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        code = 1
    except OSError as error:
        if error.errno not in NOT_WRITTEN or sys.stdout is None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it flushes it
        if not isinstance(error, BrokenPipeError):  # the reader has seen enough: `| head`
            name = error.filename or "standard output"
            print(f"{NAME}: {name}: {error.strerror}{remedy_of(error)}", file=sys.stderr)
        code = 1
    except typer.Exit as done:
        code = done.exit_code
    except typer.Abort:
        code = 1
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a usage error
            fail(*filter(None, [error.format_message()]))  # without arguments the help text is the message
        raise
    sys.exit(code or 0)


def _open_closed_streams() -> None:
    """Give what was closed, as by `2>&-`, to the null device: else the next file has its number, and gets the messages.

    `sys.stdout` stays None, so that a command whose result goes there can refuse.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def fail(*problems: str) -> NoReturn:
    """Print each problem to standard error and exit with code 2."""
    for problem in problems:
        print(f"lstmstream: {problem}", file=sys.stderr)
    sys.exit(2)


def _version(requested: bool) -> None:
    if requested:
        print(f"lstmstream {__version__}\ncodec: {codec.describe()}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and which codec is used."),
    ] = False,
) -> None:
    """Score a live Kafka stream with a recurrent model that keeps state per key."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")],
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Number of processes that share the partitions, one core each.")
    ] = 1,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Run one stage only, of a configuration with stages.")
    ] = None,
    worker: Annotated[str | None, typer.Option(hidden=True, help="Set by --workers: number/count.")] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="At the end, log time per stage, and write sampled stacks for speedscope.app; costs 2 % of the CPU.",
        ),
    ] = None,
) -> int:
    """Run the daemon.

    It reads events from Kafka, scores them, keeps the state of each key, and publishes predictions.
    """
    from lstmstream.shutdown import ShutdownSignal

    stop = ShutdownSignal()  # first of all: importing the rest takes most of a second
    from lstmstream import logs
    from lstmstream.config import Config, load_config, load_stages

    stages = load_stages(config) if stage is None and worker is None else ()
    if worker is None and (workers > 1 or stages):
        from lstmstream.workers.supervisor import run as supervise

        configs: dict[str | None, Config] = {one.name: one.config for one in stages}
        configs = configs or {stage: load_config(config, stage=stage)}
        loaded = next(iter(configs.values()))
        logs.configure(loaded.log.level, loaded.log.format)
        return supervise(configs, config, workers, stop, profile=profile)
    from lstmstream.serve.worker import open_worker, worker_config

    one = None if worker is None else open_worker(worker)
    from lstmstream.serve.process import run as serve

    loaded = load_config(config, stage=stage)
    fields: dict[str, object] = {} if stage is None else {"stage_name": stage}
    if one is not None:
        loaded = worker_config(loaded, one.number)
        fields["worker"] = one.number
    logs.configure(loaded.log.level, loaded.log.format, fields=fields or None)
    return serve(loaded, stop, one, profile=profile)


@app.command()
def score(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG|MODEL", help="The daemon's configuration (YAML), or a model file.")
    ],
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet; - reads JSONL from standard input.")],
    out: Annotated[str, typer.Option(help="File for the predictions, JSONL; - is standard output.")] = "-",
    key: Annotated[
        str | None, typer.Option(help="Column of the entity key. Default: the config's or the card's.")
    ] = None,
    timestamp: Annotated[
        str | None, typer.Option(help="Column of the event time. Default: the config's or the card's.")
    ] = None,
    dead_letters: Annotated[Path | None, typer.Option(help="File for the dead letters, JSONL.")] = None,
    events: Annotated[Path | None, typer.Option(help="File for the events of output.events, JSONL.")] = None,
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Score by one stage of the configuration.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="N/COUNT", help="Score one part of the keys only: 3/16 is the third of 16 parts."),
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="All events belong to one key.")] = False,
    no_timestamp: Annotated[
        bool, typer.Option("--no-timestamp", help="Events have no timestamp; use the time at which they are read.")
    ] = False,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Print the time per stage and write sampled stacks for speedscope.app."),
    ] = None,
) -> int:
    """Score the events of a file.

    Uses the daemon's engine, without a broker: the predictions are byte for byte the same.

    Exits with 1 if there are events and none could be scored.
    """
    from lstmstream.formats.csv_form import CsvOptions
    from lstmstream.serve.freed_memory import keep_freed_memory
    from lstmstream.serve.score import score_file

    keep_freed_memory()
    return score_file(
        config,
        data,
        out=out,
        key=key,
        timestamp=timestamp,
        dead_letters=dead_letters,
        no_key=no_key,
        no_timestamp=no_timestamp,
        profile=profile,
        events=events,
        stage=stage,
        shard=shard,
        csv=CsvOptions.of(delimiter, decimal),
    )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The training configuration (YAML).")],
    out: Annotated[Path | None, typer.Option(help="The model file; the report is written beside it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training.")] = False,
    init: Annotated[str | None, typer.Option(help="A model file to fine-tune on this data.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> int:
    """Train a model on past events.

    Writes a model file and a report.
    """
    from lstmstream.extras import require

    require("train", "`lstmstream train`")
    from lstmstream.train.run import train as run_training

    return run_training(config, out=out, resume=resume, init=init, as_json=as_json)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model file, or builtin:NAME.")],
    data: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet; several as a pattern with *, in quotes.")],
    key: Annotated[str | None, typer.Option(help="Field of the entity key. Default: the card's.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Field of the event time. Default: the card's.")] = None,
    target: Annotated[str | None, typer.Option(help="Field of the label. Default: the card's.")] = None,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    since: Annotated[
        str | None,
        typer.Option("--from", help="Evaluate from this time on (ISO 8601); earlier events fill the states."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    resamples: Annotated[
        int, typer.Option(min=10, max=10_000, help="Number of bootstrap resamples for the intervals.")
    ] = 200,
    k: Annotated[
        list[int] | None, typer.Option(min=1, help="Precision among the K highest scores; may be given several times.")
    ] = None,
) -> int:
    """Evaluate a model on labelled data.

    Prints the metrics of its task, with 95 % intervals.
    """
    from lstmstream.evaluation.command import evaluate as run_evaluation
    from lstmstream.formats.csv_form import CsvOptions

    return run_evaluation(
        model,
        data,
        key=key,
        timestamp=timestamp,
        target=target,
        since=since,
        as_json=as_json,
        resamples=resamples,
        k=k or (100,),
        csv=CsvOptions.of(delimiter, decimal),
    )


@app.command()
def tune(
    config: Annotated[
        Path, typer.Argument(help="The training configuration (YAML); its section `tune` has the bounds.")
    ],
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials. Default: the file's.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the best settings. Default: FILE.tuned.yaml.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the best trials as JSON.")] = False,
) -> int:
    """Search for better hyperparameters within bounds."""
    from lstmstream.extras import require

    require("train", "`lstmstream tune`")
    from lstmstream.train.tune import tune as run_tuning

    return run_tuning(config, trials=trials, out=out, as_json=as_json)


@app.command()
def demo(
    events: Annotated[int | None, typer.Option(min=1, help="Stop after this many events. Default: at Ctrl-C.")] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Broker to use. Default: start one on this machine.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Events per second.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 7,
    scenario: Annotated[
        Literal["fraud", "sensors", "forecast"],
        typer.Option(
            help="fraud: card payments and an LSTM. sensors: machines and a detector without training. forecast:"
            " electricity meters and an LSTM."
        ),
    ] = "fraud",
) -> int:
    """Run a complete demo on this machine.

    Starts a broker, simulated events and the daemon, and shows live predictions.
    """
    from lstmstream.demo.run import run_demo
    from lstmstream.demo.scenario import SCENARIOS

    return run_demo(SCENARIOS[scenario], events=events, bootstrap_servers=bootstrap_servers, rate=rate, seed=seed)


@app.command()
def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Addresses of daemons. Default: http://127.0.0.1:9108."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one table and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the live figures once, as JSON.")] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with http.token. Default: the variable LSTMSTREAM_HTTP__TOKEN, if the daemons have one."
        ),
    ] = None,
) -> int:
    """Watch daemons in the terminal.

    Shows what their live pages show, a row for each, until Ctrl-C. With --once or --json exits with 1 if a daemon does
    not answer.
    """
    from lstmstream.top import run_top

    return run_top(urls or (), once=once, as_json=as_json, token_file=token_file)


@app.command()
def verify(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")],
    sample: Annotated[
        str | None, typer.Option(help="Recompute a share of the keys only, such as 1%. Default: all.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="First event to judge: an offset, or an ISO 8601 time.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="Judge the events before this offset or ISO 8601 time.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="Allowed difference of scores. Default: 0; 1e-5 where bits are not promised."),
    ] = None,
    history: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A file that `state build` was given. Several in the same order."),
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="COLUMN", help="The key in --history, as for state build.")] = None,
    timestamp: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The time in --history, as for state build.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what a running daemon publishes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which stage, of a configuration with stages.")
    ] = None,
) -> int:
    """Verify what a daemon has published.

    Reads input and output, recomputes each prediction one event at a time, and reports every difference.
    """
    from lstmstream.verify.command import verify as run_verify
    from lstmstream.verify.history import History

    stopping = None
    if follow:
        from lstmstream.shutdown import ShutdownSignal

        stop = ShutdownSignal()
        stopping = lambda: stop.requested  # noqa: E731 - None where Ctrl-C ends the command
    return run_verify(
        config,
        sample=sample,
        since=since,
        until=until,
        tolerance=tolerance,
        follow=follow,
        as_json=as_json,
        stopping=stopping,
        stage=stage,
        history=History(history, key, timestamp) if history else None,
    )


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write stream.yaml and train.yaml to.")] = Path(),
    from_topic: Annotated[str, typer.Option(help="Topic whose newest records are looked at.")] = ...,  # type: ignore[assignment] # required
    bootstrap_servers: Annotated[str, typer.Option(help="The brokers, separated by commas.")] = "127.0.0.1:9092",
    name: Annotated[str | None, typer.Option(help="The daemon's name. Default: the topic's.")] = None,
    records: Annotated[int, typer.Option(min=1, max=100_000, help="Number of records to look at.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    record_format: Annotated[
        str, typer.Option("--format", help="Format of the record values: json, json_schema, avro or protobuf.")
    ] = "json",
    unwrap: Annotated[str | None, typer.Option(help="Envelope of the events: after (Debezium) or cloudevents.")] = None,
    schema_registry: Annotated[str | None, typer.Option(help="Address of the schema registry.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> int:
    """Propose configurations for the events of a topic.

    Looks at real records and writes a daemon's configuration, with a detector that needs no training, and a training
    configuration for the same fields.
    """
    from lstmstream.init.command import Wire
    from lstmstream.init.command import init as run_init

    servers = [one.strip() for one in bootstrap_servers.split(",")]
    wire = Wire(record_format, unwrap, schema_registry)
    return run_init(
        folder,
        topic=from_topic,
        servers=servers,
        name=name,
        records=records,
        force=force,
        wire=wire,
        as_json=as_json,
    )


@app.command()
def check(
    config: Annotated[Path, typer.Argument(help="The daemon's configuration (YAML).")],
    records: Annotated[
        int, typer.Option(min=1, max=100_000, help="Number of the newest records of the input to look at.")
    ] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    stage: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which stage, of a configuration with stages.")
    ] = None,
) -> int:
    """Check whether a daemon of this configuration could serve.

    Looks at configuration, model, broker, topics, the group's offsets and real records; writes nothing.

    Exits with 1 if a check has failed.
    """
    from lstmstream.check.command import check as run_checks

    return run_checks(config, records=records, as_json=as_json, stage=stage)


@app.command()
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="The shell.")]) -> None:
    """Print a script that has the shell complete commands and options.

    For bash, add to .bashrc: eval "$(lstmstream completion bash)"; for zsh, the same to .zshrc, after compinit. For
    fish, write it to .config/fish/completions/lstmstream.fish.
    """
    print(completions.script(NAME, shell))


@dev.command()
def events(
    topic: Annotated[str, typer.Option(help="Topic to write to; it must exist.")] = "transactions",
    bootstrap_servers: Annotated[str, typer.Option(help="The broker.")] = "127.0.0.1:9092",
    rate: Annotated[float, typer.Option(min=0.1, help="Events per second.")] = 50.0,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after this many events. Default: at Ctrl-C.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the simulated customers.")] = 1,
) -> int:
    """Write simulated events to a topic.

    Card payments, keyed by customer; `builtin:demo` scores them.
    """
    from lstmstream.demo.events import send_events
    from lstmstream.shutdown import ShutdownSignal

    stop = ShutdownSignal()
    try:
        sent = send_events(
            bootstrap_servers, topic, rate=rate, events=count, seed=seed, stopping=lambda: stop.requested
        )
    except Fatal as error:
        print(f"lstmstream: {error}", file=sys.stderr)
        return 1
    print(f"{counted(sent, 'event was', 'events were')} written to topic {topic}.", file=sys.stderr)
    return 0


@model.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A model file, or builtin:NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the card of a model."""
    from lstmstream.model import describe, inspect_json, load_model

    loaded = load_model(file)
    if as_json:
        import json

        print(json.dumps(inspect_json(loaded), ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(describe(loaded)))
