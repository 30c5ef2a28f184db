"""`lstmstream import`: converts a model made elsewhere, writes the model file and prints a report.

The file is written only after everything has passed: the safety checks, the equivalence check, and the daemon's own
load with its check that a row's result does not depend on the batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from lstmstream import __version__
from lstmstream.errors import CannotServe
from lstmstream.importer.compare import compare_modes
from lstmstream.importer.equivalence import TOLERANCE, EquivalenceReport, check_equivalence
from lstmstream.importer.existing_step import check_wrapped_states, find_pairing, wrap_states
from lstmstream.importer.graph import SourceGraph, parse_checked, printable, read_onnx
from lstmstream.importer.keras_file import read_keras
from lstmstream.importer.layout import Layout, check_can_be_step, possible_layouts
from lstmstream.importer.step_form import POSITION_DEPENDENT, Missing, StepGraph, to_step
from lstmstream.importer.weights import read_weights
from lstmstream.importer.window import check_window, to_window
from lstmstream.model import load_model, write_model
from lstmstream.model.card import Card, Feature
from lstmstream.model.onnx_proto import quote_untrusted
from lstmstream.serve.step import OnnxStep

Mode = Literal["step", "window"]
Task = Literal["anomaly", "classify", "forecast"]
_WEIGHTS = {".pt", ".pth", ".bin", ".safetensors"}
_HDF5 = b"\x89HDF\r\n\x1a\n"  # the signature


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """The user's options for the conversion of a graph."""

    mode: Mode = "step"
    features: tuple[str, ...] | None = None
    window: int | None = None
    missing: Missing = "zero"
    score_column: int | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class ConvertedModel:
    """A converted and checked model that is not yet written."""

    step: StepGraph
    equivalence: EquivalenceReport
    mode: Mode
    original: dict[str, Any]  # description of the original, JSON values
    features: int  # F
    length: int | None  # of the sequences, where the file fixes it
    notes: tuple[str, ...] = field(default=())


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
) -> int:
    """Imports `file` to `out`, prints the report and returns the exit code 0. Raises CannotServe.

    `features` are names separated by commas; `layout` is the YAML that describes a file of weights; `compare` is data
    on which both modes are run.
    """
    names = _names(features)
    if mode not in {"step", "window"} or missing not in {"zero", "error"}:
        raise CannotServe(f"import: --mode {mode} --missing {missing}: should be step or window, zero or error")
    if file.suffix in _WEIGHTS:
        return _import_weights(file, layout, out, mode, (name or file.stem, version, task, threshold), names)
    if layout is not None:
        raise CannotServe(f"import {file}: --layout is for files of weights ({', '.join(sorted(_WEIGHTS))})")
    options = ImportOptions(mode, names, window, missing, score_column, output)
    with _any_error_as_refusal(file):
        source, origin = _open(file)
        converted = convert(source, options)
    names = names or tuple(f"x{index}" for index in range(converted.features))
    kind: Task = task or ("classify" if converted.step.probability else "forecast")
    training = {"import": {"file": file.name, **origin, **_card_facts(converted, missing)}}
    card = Card(
        name=name or file.stem,
        version=version,
        task=kind,
        features=tuple(Feature(one, "number") for one in names),
        state=converted.step.state,
        outputs=("state_out", "score", "prediction"),
        threshold=threshold,
        training=training,
    )
    with _any_error_as_refusal(file):
        card = write_checked(out, converted.step.model.SerializeToString(deterministic=True), card)
    print("\n".join(report(source, converted, card, out)))
    if compare is not None:
        print("\n".join(_compare(source, options, converted, compare, names, key, timestamp)))
    return 0


def _names(features: str | None) -> tuple[str, ...] | None:
    if features is None:
        return None
    names = tuple(name.strip() for name in features.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise CannotServe(f"import: --features {features}: should be distinct names separated by commas")
    return names


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
    return source, {"format": "onnx", "opset": source.opset, "sha256": source.sha256}


def _is_hdf5(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_HDF5)) == _HDF5
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


def convert(source: SourceGraph, options: ImportOptions) -> ConvertedModel:
    """Converts the graph and checks the result against it. Raises CannotServe naming what prevents it."""
    output = options.output or source.outputs[0]
    if output not in source.outputs:
        available = ", ".join(map(source.quoted, source.outputs))
        raise source.error(f"--output {quote_untrusted(output)}: the file has no such output; it has {available}")
    notes = _notes(source, output, options)
    if options.mode == "step":
        pairing = find_pairing(source, options.output)
        if pairing is not None:
            if options.features is not None and len(options.features) != pairing.features:
                raise source.error(
                    f"--features has {len(options.features)} names, but the input takes {pairing.features}"
                )
            step = wrap_states(source, pairing, missing=options.missing, column=options.score_column)
            pairs = [f"{source.quoted(one)} <- {source.quoted(two)}" for one, two, _ in pairing.states]
            original = {"already_a_step": pairs, "output": source.quoted(pairing.output)[1:-1], "score": step.score}
            equivalence = check_wrapped_states(source, pairing, step)
            return ConvertedModel(step, equivalence, "step", original, pairing.features, 1, notes)
        check_can_be_step(source)
    first: CannotServe | None = None
    count = len(options.features) if options.features else None
    for layout in possible_layouts(source, count, whole=options.mode == "window"):
        try:
            return _convert_with_layout(source, layout, output, options, notes)
        except CannotServe as error:
            first = first or error
    assert first is not None  # possible_layouts() raises where there is none
    raise first


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
        raise source.error(
            f"it takes one event ({layout.where}) and has no state as input or output, so it has no memory; some"
            " exporters silently fix the length to one: export it with a dynamic time axis"
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


def _notes(source: SourceGraph, output: str, options: ImportOptions) -> tuple[str, ...]:
    """Sentences about the file for the report and the card."""
    notes = []
    if others := [name for name in source.outputs if name != output]:
        notes.append(f"other outputs are left out: {', '.join(map(source.quoted, others))} (--output chooses one)")
    operators = {node.op_type for node in source.graph.node}
    if options.missing == "zero":
        notes.append("a missing number is fed as 0 (--missing error makes such events dead letters)")
        if "IsNaN" in operators:
            notes.append("the file tests for NaN itself and will see none; --missing error feeds it")
    if padded := sorted(operators & POSITION_DEPENDENT):
        notes.append(f"computed over whole vectors, so that no bit depends on the batch: {', '.join(padded)}")
    return tuple(notes)


def write_checked(out: Path, content: bytes, card: Card) -> Card:
    """Writes the model to `out` once the daemon's own load has accepted it. Raises CannotServe."""
    if not out.parent.is_dir():
        raise CannotServe(f"--out {out}: the folder {out.parent} does not exist")
    trial = out.with_name(f".{out.name}.{os.getpid()}.trial")
    try:
        card = write_model(trial, content, card)
        OnnxStep(load_model(trial), device="cpu")
        trial.replace(out)
    except CannotServe as error:
        raise CannotServe(*(problem.replace(str(trial), str(out)) for problem in error.problems)) from error
    except OSError as error:
        raise CannotServe(f"--out {out}: cannot be written ({error.strerror})") from error
    finally:
        trial.unlink(missing_ok=True)
    return card


def _card_facts(converted: ConvertedModel, missing: Missing) -> dict[str, Any]:
    """Facts about the import for the card: JSON values, without time and path, so that the file is deterministic."""
    return {
        "mode": converted.mode,
        **converted.original,
        "missing": missing,
        "equivalence": converted.equivalence.to_dict(),
        "notes": list(converted.notes),
        "versions": {"lstmstream": __version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }


def report(source: SourceGraph, converted: ConvertedModel, card: Card, out: Path) -> list[str]:
    """Lines about the original, the state, the equivalence check and what to be careful about."""
    check, original = converted.equivalence, converted.original
    lines = [f"{source.file} -> {out} ({converted.mode} mode)"]
    lines += [f"  input     {original['input']}"] if "input" in original else []
    lines += [f"  layer     {cell}" for cell in original.get("cells", ())]
    lines += [f"  already a step: {pair}" for pair in original.get("already_a_step", ())]
    lines.append(f"  output    {quote_untrusted(original['output'])}; score: {converted.step.score}")
    lines.append(f"  task      {card.task}; threshold {'none' if card.threshold is None else card.threshold}")
    lines.append(f"  features  {', '.join(feature.name for feature in card.features)}")
    lines.append(_state_line(card))
    where = "every event" if check.every_position else f"event {check.lengths[0]} only, the one length of the file"
    lines.append(
        f"  check     {check.sequences} random sequences of {' and '.join(map(str, check.lengths))} events, compared at"
        f" {where}: largest difference {check.output_difference:.2g} (outputs), {check.state_difference:.2g} (states);"
        f" at most {TOLERANCE:.0e} is accepted"
    )
    lines += [f"  note      {note}" for note in converted.notes]
    for depends, what in ((check.depends_on_input, "the events"), (check.depends_on_past, "the past")):
        if not depends:
            lines.append(f"  warning   {what} changed no output in any of these sequences: is this the right file?")
    if converted.mode == "window":
        lines.append("  warning   until a key has a full window, it is padded with zeros in front")
    elif "already_a_step" not in original:
        lines += _window_warning(converted.length)
    return lines


def _state_line(card: Card) -> str:
    parts = ", ".join(f"{part.name} {list(part.shape)}" for part in card.state.parts)
    return f"  state     {card.state.size} values, {card.state.size * 4} bytes a key: {parts}"


def _window_warning(length: int | None) -> list[str]:
    """A step keeps its state forever, which is new to a model trained on windows."""
    window, after = (f"T = {length}", str(length + 1)) if length else ("T", "T + 1")
    option = f"--mode window{'' if length else ' --window T'}"
    return [
        (
            f"  warning   if this model was trained on windows of {window} events, each from a state of zeros, it has"
            f" never seen event {after}, and in step mode its state never ends;"
        ),
        f"            {option} serves windows at about T times the cost; --compare DATA runs both on your data",
    ]


def _compare(
    source: SourceGraph,
    options: ImportOptions,
    converted: ConvertedModel,
    data: Path,
    names: tuple[str, ...],
    key: str | None,
    timestamp: str | None,
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
            second = convert(source, replace(options, mode=other, window=window))
    except CannotServe as error:
        return [f"  compare   only {converted.mode} mode is possible; {other} mode is not: {error}"]
    steps = {converted.mode: converted.step, other: second.step}
    return compare_modes(steps["step"], steps["window"], window, data, names, key, timestamp)


def _import_weights(
    file: Path,
    layout: Path | None,
    out: Path,
    mode: Mode,
    card_of: tuple[str, str, Task | None, float | None],
    names: tuple[str, ...] | None,
) -> int:
    """`card_of`: name, version, task and threshold of the card."""
    if layout is None:
        raise CannotServe(f"import {file}: weights alone do not describe the model; describe it with --layout YAML")
    if mode == "window":
        raise CannotServe(f"import {file}: --mode window needs the graph; export the model to ONNX and import that")
    with _any_error_as_refusal(file):
        imported = read_weights(file, layout, names)
    facts = {"file": file.name, "format": "weights", "sha256": imported.sha256, "mode": "step", **imported.facts}
    with _any_error_as_refusal(file):
        card = write_checked(out, imported.content, imported.card(*card_of, {"import": facts}))
    print("\n".join([f"{file} -> {out} (step mode)", *imported.report, _state_line(card)]))
    return 0
