"""What `lstmstream import` prints of a conversion, and the facts that go into the card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lstmstream.importer.equivalence import TOLERANCE, EquivalenceReport
from lstmstream.importer.features import FeatureNames, describe
from lstmstream.importer.graph import SourceGraph
from lstmstream.importer.step_form import StepGraph
from lstmstream.model.card import Card
from lstmstream.model.onnx_proto import quote_untrusted

Mode = Literal["step", "window"]


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


def report(source: SourceGraph, converted: ConvertedModel, card: Card, out: Path, names: FeatureNames) -> list[str]:
    """Lines about the original, the state, the equivalence check and what to be careful about."""
    check, original = converted.equivalence, converted.original
    lines = [f"{source.file} -> {out} ({converted.mode} mode)"]
    lines += [f"  input     {original['input']}"] if "input" in original else []
    lines += [f"  layer     {cell}" for cell in original.get("cells", ())]
    lines += [f"  already a step: {pair}" for pair in original.get("already_a_step", ())]
    lines.append(f"  output    {quote_untrusted(original['output'])}; score: {converted.step.score}")
    lines.append(f"  task      {card.task}; threshold {'none' if card.threshold is None else card.threshold}")
    lines.append(f"  features  {describe(names)}")
    lines.append(state_line(card))
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


def state_line(card: Card) -> str:
    """The state row and its parts."""
    parts = ", ".join(f"{part.name} {list(part.shape)}" for part in card.state.parts)
    return f"  state     {card.state.size} values, {card.state.size * 4} bytes per key: {parts}"


def _window_warning(length: int | None) -> list[str]:
    """A step never resets its state, which is new to a model trained on windows."""
    window, after = (f"T = {length}", str(length + 1)) if length else ("T", "T + 1")
    option = f"--mode window{'' if length else ' --window T'}"
    return [
        (
            f"  warning   if this model was trained on windows of {window} events, each from a state of zeros, it has"
            f" never seen event {after}, and in step mode its state is never reset;"
        ),
        f"            {option} serves windows at about T times the cost; --compare DATA runs both on your data",
    ]
