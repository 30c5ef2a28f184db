"""`lstmstream import`: a foreign model in, a model file and a report of what was found and proved out.

The file is written only when everything has passed: the safety checks, the proof, and the daemon's own load with its
check that a row's answer does not depend on the batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from lstmstream import __version__
from lstmstream.card import Card, Feature
from lstmstream.errors import CannotServe
from lstmstream.model import load_model, write_model
from lstmstream.onnx_wire import quote
from lstmstream.serve.step import OnnxStep
from lstmstream.train.foreign.already_step import find_pairing, prove_wrap, wrap
from lstmstream.train.foreign.compare import compare_modes
from lstmstream.train.foreign.graph import Foreign, checked, printable, read_foreign
from lstmstream.train.foreign.keras_file import read_keras
from lstmstream.train.foreign.layout import Layout, layouts, refuse_for_step
from lstmstream.train.foreign.proof import Proof, prove
from lstmstream.train.foreign.rewrite import UNSTEADY, Missing, Step, to_step
from lstmstream.train.foreign.weights import read_weights
from lstmstream.train.foreign.window import prove_window, to_window

Mode = Literal["step", "window"]
Task = Literal["anomaly", "classify", "forecast"]
_WEIGHTS = {".pt", ".pth", ".bin", ".safetensors"}
_HDF5 = b"\x89HDF\r\n\x1a\n"  # the signature


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for."""

    mode: Mode = "step"
    features: tuple[str, ...] | None = None
    window: int | None = None
    missing: Missing = "zero"
    score_column: int | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Brought:
    """A converted and proved model, not yet written."""

    step: Step
    proof: Proof
    mode: Mode
    found: dict[str, Any]  # what people want to know of the original; JSON values
    features: int
    length: int | None  # fixed by the file
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

    `features` are names with commas between; `layout` is the YAML that a file of weights needs; `compare` is data to
    run both modes on.
    """
    names = _names(features)
    if mode not in {"step", "window"} or missing not in {"zero", "error"}:
        raise CannotServe(f"import: --mode {mode} --missing {missing}: step or window, zero or error")
    if file.suffix in _WEIGHTS:
        return _import_weights(file, layout, out, mode, (name or file.stem, version, task, threshold), names)
    if layout is not None:
        raise CannotServe(f"import {file}: --layout is for files of weights ({', '.join(sorted(_WEIGHTS))})")
    wishes = Wishes(mode, names, window, missing, score_column, output)
    with _refusing(file):
        foreign, origin = _open(file)
        brought = bring_in(foreign, wishes)
    names = names or tuple(f"x{index}" for index in range(brought.features))
    kind: Task = task or ("classify" if brought.step.probability else "forecast")
    training = {"import": {"file": file.name, **origin, **_facts(foreign, brought, missing)}}
    card = Card(
        name=name or file.stem,
        version=version,
        task=kind,
        features=tuple(Feature(one, "number") for one in names),
        state=brought.step.state,
        outputs=("state_out", "score", "prediction"),
        threshold=threshold,
        training=training,
    )
    with _refusing(file):
        card = write_checked(out, brought.step.model.SerializeToString(deterministic=True), card)
    print("\n".join(report(foreign, brought, card, out)))
    if compare is not None:
        print("\n".join(_compared(foreign, wishes, brought, compare, names, key, timestamp)))
    return 0


def _names(features: str | None) -> tuple[str, ...] | None:
    if features is None:
        return None
    names = tuple(name.strip() for name in features.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise CannotServe(f"import: --features {features}: names with commas between, each once, none empty")
    return names


def _open(file: Path) -> tuple[Foreign, dict[str, Any]]:
    """The graph of the file, and where it comes from."""
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
        return checked(content, str(file)), origin
    foreign = read_foreign(file)
    return foreign, {"format": "onnx", "opset": foreign.opset, "sha256": foreign.sha256}


def _is_hdf5(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(_HDF5)) == _HDF5
    except OSError:  # whoever reads it next says what is wrong
        return False


@contextmanager
def _refusing(source: object) -> Iterator[None]:
    """Makes a refusal of whatever else a file leads to: many places look at parts of it.

    The cause stays with it, for those who look for it.
    """
    try:
        yield
    except CannotServe:
        raise
    except MemoryError as error:
        raise CannotServe(f"import {source}: needs more memory than there is; is the file damaged?") from error
    except Exception as error:
        raise CannotServe(
            f"import {source}: cannot be read ({type(error).__name__}: {printable(error)}); export or save it again"
        ) from error


def bring_in(foreign: Foreign, wishes: Wishes) -> Brought:
    """Converts and proves. Raises CannotServe naming what is in the way."""
    output = wishes.output or foreign.outputs[0]
    if output not in foreign.outputs:
        shown = ", ".join(map(foreign.shown, foreign.outputs))
        raise foreign.refuse(f"--output {quote(output)}: there are {shown}")
    notes = _notes(foreign, output, wishes)
    if wishes.mode == "step":
        pairing = find_pairing(foreign, wishes.output)
        if pairing is not None:
            if wishes.features is not None and len(wishes.features) != pairing.features:
                raise foreign.refuse(f"--features names {len(wishes.features)}, the input takes {pairing.features}")
            step = wrap(foreign, pairing, missing=wishes.missing, column=wishes.score_column)
            pairs = [f"{foreign.shown(one)} <- {foreign.shown(two)}" for one, two, _ in pairing.states]
            found = {"already_a_step": pairs, "output": foreign.shown(pairing.output)[1:-1], "score": step.score}
            proof = prove_wrap(foreign, pairing, step)
            return Brought(step, proof, "step", found, pairing.features, 1, notes)
        refuse_for_step(foreign)
    first: CannotServe | None = None
    count = len(wishes.features) if wishes.features else None
    for layout in layouts(foreign, count, whole=wishes.mode == "window"):
        try:
            return _by_layout(foreign, layout, output, wishes, notes)
        except CannotServe as error:
            first = first or error
    assert first is not None  # layouts() raises where it has none
    raise first


def _by_layout(foreign: Foreign, layout: Layout, output: str, wishes: Wishes, notes: tuple[str, ...]) -> Brought:
    found = {
        "input": f"{foreign.shown(layout.data)[1:-1]} {layout.where}",
        "cells": [f"{cell.name}: {cell.hidden} hidden" for cell in foreign.cells],
        "output": foreign.shown(output)[1:-1],
    }
    if wishes.mode == "window":
        step = to_window(foreign, layout, output, wishes.window, missing=wishes.missing, column=wishes.score_column)
        proof = prove_window(foreign, layout, step)
        if step.answer.time_axis is not None:
            notes += (f"the output {foreign.shown(output)} has an axis of time: the answer is its last event's",)
        return Brought(step, proof, "window", found | {"score": step.score}, layout.features, layout.time, notes)
    if layout.time == 1:
        raise foreign.refuse(
            f"it takes one event ({layout.where}) and neither takes nor returns a state, so it remembers nothing; some"
            " exporters fix the length to one without saying so: export it with a dynamic axis of time"
        )
    if layout.states and len(foreign.outputs) <= len(layout.states):
        raise foreign.refuse(
            f"it takes a first state ({foreign.shown(layout.states[0])}) and returns none: a decoder, perhaps; export"
            " the model so that it returns its last state too, or without that input"
        )
    step = to_step(foreign, layout, output, missing=wishes.missing, column=wishes.score_column)
    proof = prove(foreign, layout, step.model, np.array(step.state.initial, np.float32), step.answer)
    if layout.states:
        outside = foreign.shown(layout.states[0])
        notes += (f"the file takes its first state from outside ({outside}): each key begins with zeros",)
    return Brought(step, proof, "step", found | {"score": step.score}, layout.features, layout.time, notes)


def _notes(foreign: Foreign, output: str, wishes: Wishes) -> tuple[str, ...]:
    """What a person should know of the file."""
    notes = []
    if others := [name for name in foreign.outputs if name != output]:
        notes.append(f"other outputs are left out: {', '.join(map(foreign.shown, others))} (--output chooses)")
    operators = {node.op_type for node in foreign.graph.node}
    if wishes.missing == "zero":
        notes.append("a missing number is fed as 0 (--missing error makes such events dead letters)")
        if "IsNaN" in operators:
            notes.append("the file looks for NaN itself and will see none; --missing error feeds it")
    if steadied := sorted(operators & UNSTEADY):
        notes.append(f"computed over whole vectors, so that batches change no bit: {', '.join(steadied)}")
    return tuple(notes)


def write_checked(out: Path, content: bytes, card: Card) -> Card:
    """Writes the file once the daemon's own load has accepted it. Raises CannotServe."""
    if not out.parent.is_dir():
        raise CannotServe(f"--out {out}: there is no folder {out.parent}")
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


def _facts(foreign: Foreign, brought: Brought, missing: Missing) -> dict[str, Any]:
    """For the card: JSON values, no time and no place."""
    return {
        "mode": brought.mode,
        **brought.found,
        "missing": missing,
        "proof": brought.proof.to_dict(),
        "notes": list(brought.notes),
        "versions": {"lstmstream": __version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }


def report(foreign: Foreign, brought: Brought, card: Card, out: Path) -> list[str]:
    """What was found, the state, the proof and what to think of, for a person."""
    proof, found = brought.proof, brought.found
    lines = [f"{foreign.source} -> {out} ({brought.mode} mode)"]
    lines += [f"  input     {found['input']}"] if "input" in found else []
    lines += [f"  layer     {cell}" for cell in found.get("cells", ())]
    lines += [f"  a step already: {pair}" for pair in found.get("already_a_step", ())]
    lines.append(f"  output    {quote(found['output'])}; score: {brought.step.score}")
    lines.append(f"  task      {card.task}; threshold {'none' if card.threshold is None else card.threshold}")
    lines.append(f"  features  {', '.join(feature.name for feature in card.features)}")
    parts = ", ".join(f"{part.name} {list(part.shape)}" for part in card.state.parts)
    lines.append(f"  state     {card.state.size} values, {card.state.size * 4} bytes a key: {parts}")
    where = (
        "every event" if proof.every_position else f"event {proof.lengths[0]} only, for the file takes no other length"
    )
    lengths = " and ".join(map(str, proof.lengths))
    lines.append(
        f"  proof     {proof.sequences} random sequences of {lengths} events, compared at {where}: largest difference"
        f" {proof.answers:.2g} (answers), {proof.memories:.2g} (memory); at most 1e-05 is accepted"
    )
    lines += [f"  note      {note}" for note in brought.notes]
    if not proof.reacts:
        lines.append(
            "  warning   the events did not change an answer in any of these sequences: is this the right file?"
        )
    if not proof.remembers:
        lines.append("  warning   the past did not change an answer in any of these sequences: is this the right file?")
    if brought.mode == "window":
        lines.append("  warning   until a key has a full window, zeros stand in front of its events")
    elif "already_a_step" not in found:
        window = f"T = {brought.length}" if brought.length else "T"
        again = f"--mode window{'' if brought.length else ' --window T'}"
        lines.append(
            f"  warning   if this model was trained on windows of {window} events, each begun with zeros, it has never"
            f" seen event {brought.length + 1 if brought.length else 'T + 1'}: its memory now goes on for ever."
        )
        lines.append(
            f"            {again} gives it windows, at about T times the cost; --compare DATA shows both on yours"
        )
    return lines


def _compared(
    foreign: Foreign, wishes: Wishes, brought: Brought, data: Path, names: tuple[str, ...], key: str | None,
    timestamp: str | None,
) -> list[str]:  # fmt: skip
    """Both modes on the user's data."""
    from dataclasses import replace  # noqa: PLC0415

    window = wishes.window or (brought.step.state.parts[0].shape[0] if brought.mode == "window" else brought.length)
    if window is None or "already_a_step" in brought.found:
        raise CannotServe("import: --compare needs the length of the windows: --window T")
    other: Mode = "window" if brought.mode == "step" else "step"
    try:
        with _refusing(foreign.source):
            second = bring_in(foreign, replace(wishes, mode=other, window=window))
    except CannotServe as error:
        return [f"  compare   there is nothing to choose: {other} mode is not possible ({error})"]
    steps = {brought.mode: brought.step, other: second.step}
    return compare_modes(steps["step"], steps["window"], window, data, names, key, timestamp)


def _import_weights(
    file: Path, layout: Path | None, out: Path, mode: Mode, card_of: tuple[str, str, Task | None, float | None],
    names: tuple[str, ...] | None,
) -> int:  # fmt: skip
    if layout is None:
        raise CannotServe(f"import {file}: weights alone do not say what they are for; describe them: --layout YAML")
    if mode == "window":
        raise CannotServe(f"import {file}: --mode window needs the graph; export the model to ONNX and import that")
    with _refusing(file):
        read = read_weights(file, layout, names)
    training = {"import": {"file": file.name, "format": "weights", "sha256": read.sha256, "mode": "step", **read.facts}}
    with _refusing(file):
        card = write_checked(out, read.content, read.card(*card_of, training))
    print("\n".join([f"{file} -> {out} (step mode)", *read.report]))
    parts = ", ".join(f"{part.name} {list(part.shape)}" for part in card.state.parts)
    print(f"  state     {card.state.size} values, {card.state.size * 4} bytes a key: {parts}")
    return 0
