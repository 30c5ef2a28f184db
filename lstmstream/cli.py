"""The `lstmstream` command. Each subcommand imports its own side when it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lstmstream import __version__
from lstmstream.dev.commands import app as dev
from lstmstream.errors import CannotServe

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score a live Kafka stream with a recurrent model that remembers every key.",
)
model = typer.Typer(no_args_is_help=True, help="Look at model files.")
app.add_typer(model, name="model")
app.add_typer(dev, name="dev")

NOT_BUILT = ("check", "verify", "state", "dead-letter")


def main() -> NoReturn:
    """Run the command and exit with its code."""
    if len(sys.argv) > 1 and sys.argv[1] in NOT_BUILT:
        fail(f"`lstmstream {sys.argv[1]}` is planned and not built yet")
    try:
        code = app(standalone_mode=False)
    except CannotServe as error:
        fail(*error.problems)
    except typer.Exit as done:
        code = done.exit_code
    except typer.Abort:
        code = 1
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # a mistake on the command line
            fail(*filter(None, [error.format_message()]))  # without arguments the help is the message
        raise
    sys.exit(code or 0)


def fail(*problems: str) -> NoReturn:
    """Say each problem on standard error; exit code 2."""
    for problem in problems:
        print(f"lstmstream: {problem}", file=sys.stderr)
    sys.exit(2)


def _needs_torch(command: str) -> None:
    """Exit code 2 where the packages that make models are not installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "onnx", "optuna") if find_spec(name) is None]
    if missing:
        fail(f"`lstmstream {command}` needs {' and '.join(missing)}: pip install 'lstmstream[train]'")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"lstmstream {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Score a live Kafka stream with a recurrent model that remembers every key."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="The daemon's YAML file.")],
    workers: Annotated[int, typer.Option(help="Not built yet; start one daemon a process.")] = 1,
) -> int:
    """Serve: read events, answer them, keep every key's state."""
    if workers != 1:
        raise CannotServe("--workers is planned and not built yet; start as many `lstmstream run` as you want workers")
    from lstmstream.stop import Stop

    stop = Stop()  # first of all: the rest takes most of a second to load
    from lstmstream import logs
    from lstmstream.config import load_config
    from lstmstream.serve.run import run as serve

    loaded = load_config(config)
    logs.configure(loaded.log.level, loaded.log.format)
    return serve(loaded, stop)


@app.command()
def score(
    config: Annotated[str, typer.Argument(metavar="CONFIG|MODEL", help="A daemon's YAML file, or a model.")],
    data: Annotated[str, typer.Argument(help="JSONL, CSV or Parquet; - reads JSONL from standard input.")],
    out: Annotated[str, typer.Option(help="Where the predictions go, JSONL; - is standard output.")] = "-",
    key: Annotated[str | None, typer.Option(help="Column of the key.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column of the event time.")] = None,
    dead_letters: Annotated[Path | None, typer.Option(help="Where records go that cannot be answered, JSONL.")] = None,
) -> int:
    """Answer the events of a file with the daemon's engine: no broker, the same bytes."""
    from lstmstream.serve.score import score_file

    try:
        return score_file(config, data, out=out, key=key, timestamp=timestamp, dead_letters=dead_letters)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more as it flushes it
        print(f"lstmstream: {error.filename or out}: {error.strerror}", file=sys.stderr)
        return 1


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The training's YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Where the model goes; the report goes beside it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a training was cut off.")] = False,
    init: Annotated[str | None, typer.Option(help="A model file to fine-tune on this data.")] = None,
) -> int:
    """Make a model from history: prepare, train, measure, export, report."""
    _needs_torch("train")
    from lstmstream.train.run import train as run_training

    return run_training(config, out=out, resume=resume, init=init)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A model file, or builtin:NAME.")],
    data: Annotated[str, typer.Argument(help="CSV, JSONL or Parquet, or a pattern with * in quotes.")],
    key: Annotated[str | None, typer.Option(help="Field of the key (the card's).")] = None,
    timestamp: Annotated[str | None, typer.Option(help="Field of the event time (the card's).")] = None,
    target: Annotated[str | None, typer.Option(help="Field of the label (the card's).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
    resamples: Annotated[int, typer.Option(min=10, max=10_000, help="Resamples behind the intervals.")] = 200,
    k: Annotated[
        list[int] | None, typer.Option(min=1, help="Precision among so many highest scores; repeat it.")
    ] = None,
) -> int:
    """Measure a model on data with labels: the task's metrics, with 95 % intervals."""
    from lstmstream.train.evaluate import evaluate as run_evaluation

    return run_evaluation(
        model, data, key=key, timestamp=timestamp, target=target, as_json=as_json, resamples=resamples, k=k or (100,)
    )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="ONNX, .keras, .pt or .safetensors.")],
    out: Annotated[Path, typer.Option(help="Where the model goes.")],
    mode: Annotated[
        str, typer.Option(help="step: state between events. window: the last T inputs each time.")
    ] = "step",
    features: Annotated[str | None, typer.Option(help="The inputs' fields, in order: a,b,c.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name (the file's).")] = None,
    version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    task: Annotated[str | None, typer.Option(help="anomaly, classify or forecast.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Score from which on it is an alert.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="With --mode window: how many inputs.")] = None,
    layout: Annotated[Path | None, typer.Option(help="For weights: a YAML that says which are which.")] = None,
    missing: Annotated[str, typer.Option(help="A missing number: zero feeds 0, error makes a dead letter.")] = "zero",
    score_column: Annotated[int | None, typer.Option(min=0, help="The output's column that is the score.")] = None,
    output: Annotated[str | None, typer.Option(help="Which of the file's outputs, where it has several.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Data on which step and window mode are compared.")] = None,
    key: Annotated[str | None, typer.Option(help="With --compare: the key's column.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="With --compare: the time's column.")] = None,
) -> int:
    """Bring in a recurrent model from elsewhere, rewritten to one step and proved against the original."""
    _needs_torch("import")
    from lstmstream.train.foreign.bring_in import import_model

    return import_model(
        file,
        out=out,
        mode=mode,  # type: ignore[arg-type] # judged there, with the rest
        features=features,
        name=name,
        version=version,
        task=task,  # type: ignore[arg-type] # as above
        threshold=threshold,
        window=window,
        layout=layout,
        missing=missing,  # type: ignore[arg-type] # as above
        score_column=score_column,
        output=output,
        compare=compare,
        key=key,
        timestamp=timestamp,
    )


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="The training's YAML file; its section `tune` has the bounds.")],
    trials: Annotated[int | None, typer.Option(min=1, help="Trainings to try, instead of the file's number.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the best settings go (FILE.tuned.yaml beside it).")] = None,
) -> int:
    """Search for better settings: train again and again within bounds."""
    _needs_torch("tune")
    from lstmstream.train.tune import tune as run_tuning

    return run_tuning(config, trials=trials, out=out)


@app.command()
def demo(
    events: Annotated[int | None, typer.Option(min=1, help="Stop after so many events (until Ctrl-C).")] = None,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Use this broker; without, one is started here.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.1, help="Events per second.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other customers.")] = 7,
) -> int:
    """Everything on this machine, from nothing to live predictions."""
    from lstmstream.demo.run import run_demo

    return run_demo(events=events, bootstrap_servers=bootstrap_servers, rate=rate, seed=seed)


@model.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A model file, or builtin:NAME.")],
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
) -> None:
    """Show a model's card."""
    from lstmstream.model import describe, inspect_json, load_model

    loaded = load_model(file)
    if as_json:
        import json

        print(json.dumps(inspect_json(loaded), ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(describe(loaded)))
