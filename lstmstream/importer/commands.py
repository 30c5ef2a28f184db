"""The options of `lstmstream import`; what it does is imported when it runs."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from lstmstream.csv_arguments import DecimalOption, DelimiterOption


def import_(
    file: Annotated[Path, typer.Argument(help="ONNX, .keras, .pt or .safetensors.")],
    out: Annotated[Path, typer.Option(help="The model file to write.")],
    mode: Annotated[
        str, typer.Option(help="step: keep a state between events. window: keep the last T inputs.")
    ] = "step",
    features: Annotated[
        str | None, typer.Option(help="Fields of the inputs, in order: a,b,c; an array: a[576]; or a YAML file.")
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(help="Fix an input: NAME=VALUE. May be given several times.")
    ] = None,
    state: Annotated[
        list[str] | None, typer.Option(help="A state's input and output: IN=OUT. May be given several times.")
    ] = None,
    allow_growth: Annotated[
        bool, typer.Option("--allow-growth", help="Import a model whose state grows without bound.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: the file's.")] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1",
    task: Annotated[str | None, typer.Option(help="anomaly, classify or forecast.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Scores at or above this are alerts.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="With --mode window: number of inputs.")] = None,
    layout: Annotated[Path | None, typer.Option(help="For weights: a YAML file that describes them.")] = None,
    missing: Annotated[str, typer.Option(help="Missing numbers: zero feeds 0, error dead-letters the event.")] = "zero",
    score_column: Annotated[int | None, typer.Option(min=0, help="Column of the output to use as the score.")] = None,
    output: Annotated[str | None, typer.Option(help="Output to use, if the model has several.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Data to compare step and window mode on.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="JSONL: inputs of the original with its outputs, to check the model by.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="With --compare: column of the entity key.")] = None,
    timestamp: Annotated[str | None, typer.Option(help="With --compare: column of the event time.")] = None,
    delimiter: DelimiterOption = None,
    decimal: DecimalOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the model's card as JSON; the report goes to standard error.")
    ] = False,
) -> int:
    """Convert a model of another framework.

    Rewrites a recurrent model to one step that keeps its state, and checks it against the original.
    """
    from lstmstream.extras import require

    require("import", "`lstmstream import`")
    from lstmstream.formats.csv_form import CsvOptions
    from lstmstream.importer.command import import_model
    from lstmstream.model import inspect_json, load_model

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        code = import_model(
            file,
            out=out,
            mode=mode,  # type: ignore[arg-type] # validated there, with the rest
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
            constants=constant or (),
            states=state or (),
            allow_growth=allow_growth,
            examples=examples,
            csv=CsvOptions.of(delimiter, decimal),
        )
    if as_json:
        print(json.dumps(inspect_json(load_model(out)), ensure_ascii=False, allow_nan=False))
    return code
