"""`--examples`: a few inputs of the original with its outputs, which the imported model has to reproduce.

JSON lines. `input` is a sequence of events, each with its raw numbers in the order of the features (null where
missing; a plain number where there is one feature). `output` is what the original gives after the last event, a number
or a list of all its outputs, or a list with that for every event.

    {"input": [[12.5, 0], [80, 1], [7.2, 0]], "output": 0.0831}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lstmstream.errors import CannotServe
from lstmstream.importer.equivalence import difference
from lstmstream.records import Floats
from lstmstream.serve.step_model import StepInput, StepModel
from lstmstream.wording import counted

TOLERANCE = 1e-4  # absolute up to 1, relative above: outputs that were printed with four digits pass


@dataclass(frozen=True, slots=True)
class Examples:
    """The lines of the file, not yet compared with a model."""

    file: Path
    lines: list[tuple[int, Any, Any]]  # number of the line, input, output

    def check(self, step: StepModel) -> float:
        """The largest difference to the model. Raises CannotServe naming the line where it is too large."""
        widest = 0.0
        for line, events, output in self.lines:
            where = f"--examples {self.file}: line {line}"
            x = _inputs(events, sum(feature.size for feature in step.card.numbers), where)
            ours = _run(step, x)
            theirs = _outputs(output, len(x), ours.shape[1], where)
            compared = ours[-len(theirs) :]  # the last event, or all of them
            gaps = [difference(one, other) for one, other in zip(compared, theirs, strict=True)]
            bad = [index for index, gap in enumerate(gaps) if not gap <= TOLERANCE]  # also true for NaN
            if bad:
                event = len(x) - len(theirs) + bad[0]
                raise CannotServe(
                    f"{where}: after event {event + 1} the model gives {_text(compared[bad[0]])} and the original"
                    f" {_text(theirs[bad[0]])}; at most {TOLERANCE:.0e} is accepted. A layer without weights between"
                    " the others (ReLU, pooling), another activation or a scaling of the inputs may be missing: fix the"
                    " layout, or export the model to ONNX and import that"
                )
            widest = max(widest, *gaps)
        return widest

    @property
    def facts(self) -> dict[str, Any]:
        """For the card, JSON values."""
        return {"sequences": len(self.lines), "tolerance": TOLERANCE}

    def report_line(self, widest: float) -> str:
        """What is printed of a check that passed."""
        return (
            f"  examples  {counted(len(self.lines), 'sequence')} of the original: largest"
            f" difference {widest:.2g}; at most {TOLERANCE:.0e} is accepted"
        )


def read_examples(file: Path) -> Examples:
    """Reads the file. Raises CannotServe where a line does not hold an input and an output."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CannotServe(f"--examples {file}: {error.strerror or error}") from error
    lines = []
    for number, text in enumerate(content.splitlines(), start=1):
        if not text.strip():
            continue
        try:
            pair = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise CannotServe(f"--examples {file}: line {number} is not JSON: {error}") from error
        if not isinstance(pair, dict) or not {"input", "output"} <= pair.keys():
            raise CannotServe(f'--examples {file}: line {number}: write {{"input": [[...], ...], "output": ...}}')
        lines.append((number, pair["input"], pair["output"]))
    if not lines:
        raise CannotServe(f"--examples {file}: is empty; give at least one input of the original with its output")
    return Examples(file, lines)


def _inputs(events: Any, features: int, where: str) -> Floats:
    """[T, F] The events of an input."""
    x = _floats(events, f"{where}: input")
    if x.ndim == 1 and features == 1:
        x = x[:, None]
    if x.ndim != 2 or x.shape[1] != features or not len(x):
        raise CannotServe(f"{where}: input: should be a list of events with {counted(features, 'number')} each")
    return x


def _outputs(output: Any, events: int, width: int, where: str) -> Floats:
    """[1 or T, P] The output after the last event or after every one."""
    y = _floats(output, f"{where}: output")
    if y.ndim <= 1 and y.size == width:
        return y.reshape(1, width)
    if y.shape == (events, width) or (y.shape == (events,) and width == 1):
        return y.reshape(events, width)
    raise CannotServe(
        f"{where}: output: should be {counted(width, 'number')}, as after the last event, or a list with"
        f" that for each of the {events} events"
    )


def _floats(values: Any, where: str) -> Floats:
    """The numbers as an array; null becomes NaN."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise CannotServe(f"{where}: should hold numbers, in lists of equal length") from error
    return array.astype(np.float32)


def _run(step: StepModel, x: Floats) -> Floats:
    """[T, P] The model's predictions, event by event as the daemon makes them."""
    state = np.array([step.card.state.initial], np.float32)
    nothing = np.zeros((1, 0), np.int64), np.zeros(1, np.int64), np.full(1, np.nan, np.float32)
    predictions = []
    for event in x:
        out = step.step(StepInput(event[None], *nothing, state))
        state = out.state
        predictions.append(out.score if out.prediction is None else out.prediction[0])
    return np.stack(predictions)


def _text(values: Floats) -> str:
    numbers = ", ".join(f"{value:.6g}" for value in values.tolist()[:8])
    return numbers if len(values) == 1 else f"[{numbers}{', ...' if len(values) > 8 else ''}]"
