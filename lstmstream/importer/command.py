"""`lstmstream import`: converts a model made elsewhere, writes the model file and prints a report.

The file is written only after everything has passed: the safety checks, the equivalence check, and the daemon's own
load with its check that a row's result does not depend on the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from lstmstream import __version__
from lstmstream.errors import CannotServe
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.importer.compare import compare_modes
from lstmstream.importer.constants import fix_inputs, parse_assignments
from lstmstream.importer.equivalence import check_equivalence
from lstmstream.importer.examples import Examples, read_examples
from lstmstream.importer.existing_step import step_of_pairing
from lstmstream.importer.features import FeatureNames, add_scaling, default_features, parse_features
from lstmstream.importer.graph import SourceGraph, parse_checked, printable, read_onnx
from lstmstream.importer.keras_file import read_keras
from lstmstream.importer.layout import Layout, check_can_be_step, only_initial_states, possible_layouts
from lstmstream.importer.progress import ImportProgress
from lstmstream.importer.report import ConvertedModel, Mode, report, state_line
from lstmstream.importer.state_pairs import StatePairing, find_pairing, named_alike
from lstmstream.importer.step_form import POSITION_DEPENDENT, Missing, StepGraph, to_step
from lstmstream.importer.trial import GrowthCheck, check_out, write_checked
from lstmstream.importer.weight_files import check_is_weights, read_content
from lstmstream.importer.weights import UNSEEN_IN_WEIGHTS, read_weights
from lstmstream.importer.window import check_window, to_window
from lstmstream.model import CARD_KEY
from lstmstream.model.card import Card
from lstmstream.model.foreign_files import HDF5, recognise
from lstmstream.model.onnx_proto import FLOAT, quote_untrusted
from lstmstream.train.export import OUTPUTS

Task = Literal["anomaly", "classify", "forecast"]
_WEIGHTS = {".pt", ".pth", ".ckpt", ".bin", ".safetensors"}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The user's options for the conversion of a graph."""

    mode: Mode = "step"
    features: FeatureNames | None = None
    window: int | None = None
    missing: Missing = "zero"
    score_column: int | None = None
    output: str | None = None
    constants: Mapping[str, str] = field(default_factory=dict)  # input -> value as text
    states: Mapping[str, str] = field(default_factory=dict)  # input -> output with its next value


def import_model(
    file: Path,
    *,
    out: Path,
    mode: Mode = "step",
    features: str | None = None,
    name: str | None = None,
    version: str = "1",
    task: Task | None = None,
    threshold: float | None = None,
    window: int | None = None,
    layout: Path | None = None,
    missing: Missing = "zero",
    score_column: int | None = None,
    output: str | None = None,
    compare: Path | None = None,
    key: str | None = None,
    timestamp: str | None = None,
    constants: Sequence[str] = (),
    states: Sequence[str] = (),
    allow_growth: bool = False,
    examples: Path | None = None,
    csv: CsvOptions = FROM_FILE,
) -> int:
    """Imports `file` to `out`, prints the report and returns the exit code 0. Raises CannotServe.

    `features` are as features.py describes them; `layout` is the YAML that describes a file of weights; `compare` is
    data on which both modes are run. `constants` (input=value) fix inputs, `states` (input=output) pair them.
    `allow_growth` accepts a state that grows without bound. `examples` are inputs of the original with its outputs.
    """
    if threshold is not None and not isfinite(threshold):
        raise CannotServe(f"import: --threshold {threshold}: must be a finite number")
    if not (name is None or name.strip()) or not version.strip():
        raise CannotServe("import: --name and --version: must not be empty; name the model")
    names = parse_features(features)
    pairs = None if examples is None else read_examples(examples)
    if mode not in {"step", "window"} or missing not in {"zero", "error"}:
        raise CannotServe(f"import: --mode {mode} --missing {missing}: should be step or window, zero or error")
    check_out(out)
    for what, read in (("model to import", file), ("layout", layout), ("examples", examples), ("data", compare)):
        if read is not None and out.exists() and read.exists() and out.samefile(read):
            raise CannotServe(f"import: --out {out}: is also the file of the {what}; name another file")
    if window is not None and mode == "step" and compare is None:
        raise CannotServe(
            f"import: --window {window}: is for --mode window, and this is --mode step, whose state is never reset;"
            " give --mode window, or leave it out"
        )
    if compare is None and (key is not None or timestamp is not None):
        raise CannotServe(
            "import: --key and --timestamp are columns of the data of --compare; leave them out, and name them in the"
            " daemon's configuration (input.key, input.timestamp)"
        )
    if file.suffix in _WEIGHTS:
        with ImportProgress(file) as progress:
            return _import_weights(
                file, layout, out, mode, (name or file.stem, version, task, threshold), names, pairs, progress
            )
    if layout is not None:
        found = recognise(read_content(file))
        kind = "" if found is None else f"; this is {found.what}: {found.remedy}"
        raise CannotServe(f"import {file}: --layout is for files of weights ({', '.join(sorted(_WEIGHTS))}){kind}")
    if compare is not None and names is not None and names.arrays:
        raise CannotServe(f"import: --compare cannot read arrays ({', '.join(names.arrays)}); import without it")
    options = ImportOptions(
        mode, names, window, missing, score_column, output, parse_assignments("--constant", constants),
        parse_assignments("--state", states),
    )  # fmt: skip
    with ImportProgress(file) as progress:
        source, converted, card, names, lines = _convert_and_write(
            file, out, options, (name or file.stem, version, task, threshold), pairs, progress,
            allow_growth=allow_growth,
        )  # fmt: skip
    print("\n".join([*report(source, converted, card, out, names), *lines]))
    if compare is not None:
        with ImportProgress(compare) as progress:
            progress.stage("runs both modes on the data")
            lines = _compare(source, options, converted, compare, names, key, timestamp, csv)
        print("\n".join(lines))
    return 0


def _convert_and_write(
    file: Path,
    out: Path,
    options: ImportOptions,
    card_of: tuple[str, str, Task | None, float | None],
    examples: Examples | None,
    progress: ImportProgress,
    *,
    allow_growth: bool,
) -> tuple[SourceGraph, ConvertedModel, Card, FeatureNames, list[str]]:
    """Converts `file` and writes it to `out`. `card_of`: name, version, task and threshold of the card.

    Returns lines for the report as well, about the examples.
    """
    name, version, task, threshold = card_of
    with _any_error_as_refusal(file):
        source, origin = _open(file)
        progress.stage("converts it and compares it with the original on random sequences")
        source, converted = convert(source, options)
        names = options.features or default_features(converted.features)
        add_scaling(converted.step.model, names)
    kind: Task = task or ("classify" if converted.step.probability else "forecast")
    compared = {} if examples is None else {"examples": examples.facts}
    training = {"import": {"file": file.name, **origin, **_card_facts(converted, options), **compared}}
    card = Card(
        name=name,
        version=version,
        task=kind,
        features=names.features,
        state=converted.step.state,
        outputs=("state_out", "score", "prediction"),
        threshold=threshold,
        training=training,
    )
    with _any_error_as_refusal(file):
        progress.stage("tries the model as the daemon will")
        content = converted.step.model.SerializeToString(deterministic=True)
        remedy = "train it on longer sequences, or with layers that saturate (tanh)"
        if "already_a_step" not in converted.original:
            remedy = f"a model trained on windows is served by --mode window --window {converted.length or 'T'}"
        grows = None if converted.mode == "window" or allow_growth else GrowthCheck(str(file), names, remedy)
        card, lines = write_checked(out, content, card, growth=grows, examples=examples)
    return source, converted, card, names, lines


def _open(file: Path) -> tuple[SourceGraph, dict[str, Any]]:
    """The graph of the file, and facts about the file for the card."""
    if _is_hdf5(file):
        raise CannotServe(
            f"import {file}: an HDF5 file, as Keras 2 wrote them; load it in Keras 3 and save it as .keras:"
            f' keras.models.load_model("model.h5").save("model.keras"), then import that'
        )
    if file.suffix == ".keras":
        if not file.is_file():
            raise CannotServe(f"import {file}: no such file")
        content, version = read_keras(file)
        origin = {"format": "keras", "keras": version, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        return parse_checked(content, str(file)), origin
    source = read_onnx(file)
    if any(entry.key == CARD_KEY for entry in source.model.metadata_props):
        raise CannotServe(f"import {file}: it is a model of lstmstream already; use it as it is (model: {file})")
    outside = {"external_data": dict(source.data_files)} if source.data_files else {}
    return source, {"format": "onnx", "opset": source.opset, "sha256": source.sha256, **outside}


def _is_hdf5(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(HDF5)) == HDF5
    except OSError:  # the next reader of the file says what is wrong
        return False


@contextmanager
def _any_error_as_refusal(source: object) -> Iterator[None]:
    """Turns any exception into CannotServe: a malformed file can fail in many places. The cause is kept."""
    try:
        yield
    except CannotServe:
        raise
    except MemoryError as error:
        raise CannotServe(f"import {source}: needs more memory than is available; is the file damaged?") from error
    except Exception as error:
        raise CannotServe(
            f"import {source}: cannot be read ({type(error).__name__}: {printable(error)}); export or save it again"
        ) from error


def convert(source: SourceGraph, options: ImportOptions) -> tuple[SourceGraph, ConvertedModel]:
    """Converts the graph and checks the result against it. Raises CannotServe naming what prevents it.

    Returns the graph as it was converted, with its constants, as well.
    """
    source = fix_inputs(source, options.constants)
    wanted = None if options.output is None else source.current_name(options.output)
    if wanted is not None and wanted not in source.outputs:
        available = ", ".join(map(source.quoted, source.outputs))
        raise source.error(f"--output {quote_untrusted(wanted)}: the file has no such output; it has {available}")
    if options.mode == "step":
        found = None
        if options.states or not only_initial_states(source):
            found = find_pairing(source, wanted, options.states)
        if found is not None:
            return found[0], _convert_existing_step(*found, options)
        check_can_be_step(source)
    elif options.states:
        raise source.error("--state is for --mode step")
    output = wanted or source.outputs[0]
    first: CannotServe | None = None
    count = options.features.columns if options.features else None
    for layout in possible_layouts(source, count, whole=options.mode == "window"):
        try:
            return source, _convert_with_layout(source, layout, output, options, _notes(source, [output], options))
        except CannotServe as error:
            first = first or error
    assert first is not None  # possible_layouts() raises where there is none
    raise first


def _convert_existing_step(source: SourceGraph, pairing: StatePairing, options: ImportOptions) -> ConvertedModel:
    def accept(step: StepGraph, features: int) -> None:
        """Raises CannotServe where the daemon would refuse the step, as of rows that depend on each other."""
        if options.features is not None and options.features.columns != features:
            raise source.error(
                f"--features has {options.features.columns} {'values' if options.features.arrays else 'names'}, but the"
                f" input {source.quoted(pairing.data)} takes {features}"
            )
        card = Card("trial", "1", "forecast", default_features(features).features, step.state, OUTPUTS)
        with TemporaryDirectory() as folder:
            write_checked(Path(folder) / "trial.onnx", step.model.SerializeToString(deterministic=True), card)

    step, equivalence, plan = step_of_pairing(
        source, pairing, missing=options.missing, column=options.score_column, accept=accept
    )
    notes = _notes(source, [pairing.output, *(pair.output for pair in pairing.states)], options)
    if plan.scan:
        notes += ("its batch is fixed, or its result changes with the batch: keys are computed one by one (slower)",)
    if whole := [pair.input for pair in pairing.states if source.element(pair.input) != FLOAT]:
        names = ", ".join(map(source.quoted, whole))
        notes += (f"the whole numbers in {names} are kept as float32, which is exact up to 16,777,216",)
    if unlike := [
        pair for pair in pairing.states if pair.input not in options.states and not named_alike(source, pair)
    ]:
        listed = ", ".join(f"{source.quoted(pair.input)} <- {source.quoted(pair.output)}" for pair in unlike)
        notes += (f"paired by shape alone: {listed}; if that is wrong, override it with --state INPUT=OUTPUT",)
    pairs = [f"{source.quoted(pair.input)} <- {source.quoted(pair.output)}" for pair in pairing.states]
    original = {"already_a_step": pairs, "output": source.quoted(pairing.output)[1:-1], "score": step.score}
    return ConvertedModel(step, equivalence, "step", original, plan.features, 1, notes)


def _convert_with_layout(
    source: SourceGraph, layout: Layout, output: str, options: ImportOptions, notes: tuple[str, ...]
) -> ConvertedModel:
    original = {
        "input": f"{source.quoted(layout.data)[1:-1]} {layout.where}",
        "cells": [f"{cell.name}: {cell.hidden} hidden" for cell in source.cells],
        "output": source.quoted(output)[1:-1],
    }
    missing, column = options.missing, options.score_column
    if options.mode == "window":
        step = to_window(source, layout, output, options.window, missing=missing, column=column)
        equivalence = check_window(source, layout, step)
        if step.output.time_axis is not None:
            notes += (f"the output {source.quoted(output)} has a time axis: its last event is the prediction",)
        original["score"] = step.score
        return ConvertedModel(step, equivalence, "window", original, layout.features, layout.time, notes)
    if layout.time == 1:
        remedy = "some exporters silently fix the length to one: export it with a dynamic time axis"
        if source.file.endswith(".keras"):
            remedy = (
                "if its layers keep their state between calls, save it with stateful=True; otherwise build it with a"
                " time axis of None, Input((None, features)), load its weights and save it again"
            )
        raise source.error(
            f"it takes one event ({layout.where}) and has no state as input or output, so it has no memory; {remedy}"
        )
    if layout.states and len(source.outputs) <= len(layout.states):
        raise source.error(
            f"it takes an initial state ({source.quoted(layout.states[0])}) and returns none, as a decoder does; export"
            " the model so that it also returns its final state, or without that input"
        )
    step = to_step(source, layout, output, missing=missing, column=column)
    equivalence = check_equivalence(source, layout, step.model, np.array(step.state.initial, np.float32), step.output)
    if layout.states:
        notes += (f"the file's input for an initial state, {source.quoted(layout.states[0])}, is fed zeros",)
    original["score"] = step.score
    return ConvertedModel(step, equivalence, "step", original, layout.features, layout.time, notes)


def _notes(source: SourceGraph, used: list[str], options: ImportOptions) -> tuple[str, ...]:
    """Sentences about the file for the report and the card; `used` are the outputs that are taken."""
    notes = []
    if source.precision is not None:
        notes.append(f"the file computes in {source.precision}; the model, and what it is compared with, in float32")
    for name, text in options.constants.items():
        unused = " (no output depends on it)" if name in source.unused else ""
        notes.append(f"the input {quote_untrusted(name)} is fixed to {text}{unused}")
    if others := [name for name in source.outputs if name not in used]:
        notes.append(f"other outputs are left out: {', '.join(map(source.quoted, others))} (--output chooses one)")
    operators = {node.op_type for node in source.graph.node}
    if options.missing == "zero":
        notes.append("a missing number is fed as 0 (--missing error makes such events dead letters)")
        if "IsNaN" in operators:
            notes.append("the file tests for NaN itself and will see none; --missing error feeds it")
    if padded := sorted(operators & POSITION_DEPENDENT):
        notes.append(f"computed over whole vectors, so that no bit depends on the batch: {', '.join(padded)}")
    return tuple(notes)


def _card_facts(converted: ConvertedModel, options: ImportOptions) -> dict[str, Any]:
    """Facts about the import for the card: JSON values, without time and path, so that the file is deterministic."""
    return {
        "mode": converted.mode,
        **converted.original,
        "missing": options.missing,
        **({"constants": dict(options.constants)} if options.constants else {}),
        "equivalence": converted.equivalence.to_dict(),
        "notes": list(converted.notes),
        "versions": {"lstmstream": __version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }


def _compare(
    source: SourceGraph,
    options: ImportOptions,
    converted: ConvertedModel,
    data: Path,
    names: FeatureNames,
    key: str | None,
    timestamp: str | None,
    csv: CsvOptions,
) -> list[str]:
    """Lines about both modes on the user's data."""
    window = options.window or converted.length
    if converted.mode == "window":
        window = converted.step.state.parts[0].shape[0]
    if window is None or "already_a_step" in converted.original:
        raise CannotServe("import: --compare needs the length of the windows: --window T")
    other: Mode = "window" if converted.mode == "step" else "step"
    try:
        with _any_error_as_refusal(source.file):
            _, second = convert(source, replace(options, mode=other, window=window, constants={}))
            add_scaling(second.step.model, names)
    except CannotServe as error:
        return [f"  compare   only {converted.mode} mode is possible; {other} mode is not: {error}"]
    steps = {converted.mode: converted.step, other: second.step}
    fields = tuple(one.name for one in names.fields)
    return compare_modes(steps["step"], steps["window"], window, data, fields, key, timestamp, csv)


def _import_weights(
    file: Path,
    layout: Path | None,
    out: Path,
    mode: Mode,
    card_of: tuple[str, str, Task | None, float | None],
    names: FeatureNames | None,
    examples: Examples | None,
    progress: ImportProgress,
) -> int:
    """`card_of`: name, version, task and threshold of the card."""
    if layout is None:
        check_is_weights(file, read_content(file))
        raise CannotServe(
            f"import {file}: weights alone do not describe the model; describe it with --layout YAML, or export the"
            " model to ONNX, and import that"
        )
    if mode == "window":
        raise CannotServe(f"import {file}: --mode window needs the graph; export the model to ONNX and import that")
    if names is not None and (names.scaled or names.arrays):
        raise CannotServe(f"import {file}: --features only names fields here; describe scaling in {layout.name}")
    with _any_error_as_refusal(file):
        progress.stage("converts it and compares it with torch's equations on random sequences")
        imported = read_weights(file, layout, None if names is None else tuple(one.name for one in names.fields))
    facts = {"file": file.name, "format": "weights", "sha256": imported.sha256, "mode": "step", **imported.facts}
    facts |= {} if examples is None else {"examples": examples.facts}
    with _any_error_as_refusal(file):
        progress.stage("tries the model as the daemon will")
        card = imported.card(*card_of, {"import": facts})
        card, lines = write_checked(out, imported.content, card, examples=examples)
    lines = lines or UNSEEN_IN_WEIGHTS
    print("\n".join([f"{file} -> {out} (step mode)", *imported.report, state_line(card), *lines]))
    return 0
