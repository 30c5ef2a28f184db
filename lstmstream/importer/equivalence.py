"""Compares a step graph with its original on random sequences, and names the node from which on they differ.

The original computes its output for each prefix of a sequence, or for the whole where its length is fixed; the step is
fed event by event. States are compared too, so that a head with a constant output (a dead ReLU) hides nothing. Random
sequences are a test, which can miss a difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from lstmstream.importer.graph import Array, SourceGraph, node_title, open_session, run, with_intermediates
from lstmstream.importer.layout import Floats, Layout, run_all
from lstmstream.importer.step_form import GraphOutput

TOLERANCE = 1e-5  # absolute up to 1, relative above
LENGTHS = (7, 13)  # of the random sequences, where the file does not fix it
_KEYS = 6
# Scales of the inputs: the gates' middle, their linear and their saturated ranges, and raw amounts.
_SCALES = (1.0, 0.1, 10.0, 1000.0)


@dataclass(frozen=True, slots=True)
class EquivalenceReport:
    """The result of a comparison; all differences are within the tolerance."""

    lengths: tuple[int, ...]
    every_position: bool  # False: only the last, where the original has one output for one fixed length
    sequences: int
    output_difference: float  # the largest; relative for numbers above 1
    state_difference: float
    depends_on_past: bool  # whether earlier events change any output
    depends_on_input: bool = True  # whether the events change any output

    def to_dict(self) -> dict[str, Any]:
        """JSON values for the card."""
        return {
            "lengths": list(self.lengths),
            "positions": "all" if self.every_position else "last",
            "sequences": self.sequences,
            "largest_difference": self.output_difference,
            "largest_state_difference": self.state_difference,
            "tolerance": TOLERANCE,
        }


def check_equivalence(
    source: SourceGraph, layout: Layout, step: onnx.ModelProto, initial: Floats, output: GraphOutput
) -> EquivalenceReport:
    """Compares the step, which starts with the state row `initial` [S], with the original.

    Raises CannotServe naming the first node that differs.
    """
    lengths = (layout.time,) if layout.time else LENGTHS
    generator = np.random.default_rng(20260105)
    batch = layout.batch or _KEYS
    runner = StepRunner(step, initial, source.file)
    original = open_session(source.model, source.file)
    outputs_gap, states_gap, depends_on_past, depends_on_input, sequences = 0.0, 0.0, False, False, 0
    for length in lengths:
        for scale in _SCALES:
            x = (scale * generator.standard_normal((batch, length, layout.features))).astype(np.float32)
            expected, positions = _expected_outputs(source, layout, original, output, x)
            predictions, states = runner.run(x)
            output_gap = difference(predictions[:, positions], expected)
            state_gap = _state_difference(source, layout, x, states[:, -1])
            if not largest(output_gap, state_gap) <= TOLERANCE:  # also true for NaN
                gap = largest(output_gap, state_gap)
                raise source.error(_first_difference(source, layout, step, x, states, gap))
            outputs_gap, states_gap = largest(outputs_gap, output_gap), largest(states_gap, state_gap)
            sequences += batch
            without_past, _ = runner.run(x[:, -1:])
            depends_on_past |= bool(difference(without_past[:, 0], predictions[:, -1]) > TOLERANCE)
            depends_on_input |= bool(np.ptp(predictions[:, -1], axis=0).max() > TOLERANCE) or batch == 1
    every = layout.time is None or output.time_axis is not None
    return EquivalenceReport(lengths, every, sequences, outputs_gap, states_gap, depends_on_past, depends_on_input)


def difference(ours: Array, theirs: Array) -> float:
    """The largest difference, relative for numbers above 1; NaN where exactly one of two numbers is NaN."""
    if ours.size == 0:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
    gap[(np.isnan(ours) & np.isnan(theirs)) | (ours == theirs)] = 0
    return float(gap.max())


def largest(*differences: float) -> float:
    """The maximum, NaN where any difference is: max() drops a NaN that does not come first.

    >>> max(0.0, float("nan")), largest(0.0, float("nan"))
    (0.0, nan)
    """
    return float(np.max(differences))


class StepRunner:
    """Runs a step model over sequences, event by event, all keys at once."""

    def __init__(self, step: onnx.ModelProto, initial: Floats, file: str) -> None:
        """`initial` [S] is every key's first state row; `file` names the model in messages."""
        self._session = open_session(step, file)
        self._initial = initial
        self._file = file

    def run(self, x: Floats) -> tuple[Floats, Floats]:
        """Predictions [B, T, P] and the states after each event [B, T, S] of the sequences x [B, T, F]."""
        state: Array = np.tile(self._initial, (len(x), 1))
        predictions, states = [], []
        for event in range(x.shape[1]):
            feed = {"x": np.ascontiguousarray(x[:, event]), "state": state}
            out = run(self._session, ["state_out", "prediction"], feed, self._file)
            state = out["state_out"]
            predictions.append(out["prediction"])
            states.append(state)
        return np.stack(predictions, axis=1), np.stack(states, axis=1)


def _expected_outputs(
    source: SourceGraph, layout: Layout, original: Any, output: GraphOutput, x: Floats
) -> tuple[Array, list[int]]:
    """The original's outputs [B, positions, P], and the positions in the sequence that it has outputs for."""
    length = x.shape[1]

    def outputs(part: Floats) -> Array:
        value = run(original, [output.name], layout.feed(source, part), source.file)[output.name]
        return output.rows(value)

    if output.time_axis is not None:
        return outputs(x), list(range(length))
    if layout.time:
        return outputs(x), [length - 1]
    prefixes = [outputs(x[:, : event + 1]) for event in range(length)]
    return np.concatenate(prefixes, axis=1), list(range(length))


def _with_final_states(source: SourceGraph) -> tuple[SourceGraph, list[str]]:
    """The original with names for the final states of its recurrent nodes, and these names in the state row's order."""
    model = onnx.ModelProto()
    model.CopyFrom(source.model)
    names = []
    for number, cell in enumerate(source.cells):
        node = model.graph.node[cell.index]
        outputs = [*node.output, "", "", ""][: 1 + len(cell.letters)]
        for which, letter in enumerate(cell.letters):
            outputs[1 + which] = outputs[1 + which] or f"{letter}{number}_out"
        del node.output[:]
        node.output.extend(outputs)
        names += outputs[1:]
    return SourceGraph(source.file, source.sha256, model, source.opset, source.renamed), names


def _state_difference(source: SourceGraph, layout: Layout, x: Floats, state: Floats) -> float:
    """The largest difference between the original's final states after x [B, T, F] and the state rows [B, S]."""
    named, names = _with_final_states(source)
    tensors = run_all(named, layout.feed(source, x))
    rows = np.concatenate([tensors[name][0] for name in names], axis=1)
    return difference(state[:, : rows.shape[1]], rows)


def _first_difference(
    source: SourceGraph, layout: Layout, step: onnx.ModelProto, x: Floats, states: Floats, gap: float
) -> str:
    """A message with the first node in order whose inputs agree at the last event and whose output does not."""
    length = x.shape[1]
    theirs = run_all(source, layout.feed(source, x))
    model, names = with_intermediates(step)
    last = {"x": np.ascontiguousarray(x[:, -1]), "state": np.ascontiguousarray(states[:, -2 if length > 1 else -1])}
    ours = run(open_session(model, source.file), names, last, source.file)
    differing: set[str] = set()
    remedy = "; it needs the whole sequence, so a step cannot compute its output. --mode window serves it as it is"
    for index, node in enumerate(source.graph.node):
        for name in node.output:
            if name in theirs and name in ours and _differs(theirs[name], ours[name], length):
                differing.add(name)
        if set(node.output) & differing:  # the first such node, so its inputs agree
            problem = "differs from the original, though all its inputs at the last event agree"
            return f"{node_title(node, index)} {problem} (by up to {gap:.3g} over {length} events){remedy}"
    return f"the step's outputs differ from the original's by up to {gap:.3g} over {length} events{remedy}"


def _differs(theirs: Any, ours: Any, length: int) -> bool:
    """Whether a float tensor of the step is not the last event of the original's tensor."""
    if getattr(theirs, "dtype", None) != np.float32 or not hasattr(ours, "shape"):
        return False
    if theirs.ndim == ours.ndim:
        for axis, (long, short) in enumerate(zip(theirs.shape, ours.shape, strict=True)):
            if long != short:
                if (long, short) != (length, 1):
                    return False  # joined axes cannot be compared
                theirs = np.take(theirs, [-1], axis=axis)
    return theirs.shape == ours.shape and not difference(ours, theirs) <= TOLERANCE
