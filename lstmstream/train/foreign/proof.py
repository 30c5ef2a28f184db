"""Compares a step graph with the original on random sequences, and names the node where the two part.

The original is asked what it says of each prefix of a sequence (of the whole, where its length is fixed), the step is
fed event by event. Memories are compared too, so that a head that says nothing (a dead ReLU) hides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from lstmstream.train.foreign.graph import Array, Foreign, run, session, title, traced
from lstmstream.train.foreign.layout import Floats, Layout, probe
from lstmstream.train.foreign.rewrite import Answer

TOLERANCE = 1e-5  # of numbers up to 1; relative above
LENGTHS = (7, 13)  # of the random sequences, where the file leaves it free
_KEYS = 6
_SPREADS = (1.0, 0.1, 10.0, 1000.0)  # of the inputs: the gates' middle, their linear part, their ends; raw amounts


@dataclass(frozen=True, slots=True)
class Proof:
    """What the comparison found; all differences are within the tolerance."""

    lengths: tuple[int, ...]
    every_position: bool  # or the last one only, where the original answers for one fixed length
    sequences: int
    answers: float  # largest difference, as a share of numbers above 1
    memories: float
    remembers: bool  # whether the past changes the answer at all
    reacts: bool = True  # whether the events do

    def to_dict(self) -> dict[str, Any]:
        """JSON values for the card."""
        return {
            "lengths": list(self.lengths),
            "positions": "all" if self.every_position else "last",
            "sequences": self.sequences,
            "largest_difference": self.answers,
            "largest_state_difference": self.memories,
            "tolerance": TOLERANCE,
        }


def prove(foreign: Foreign, layout: Layout, step: onnx.ModelProto, initial: Floats, answer: Answer) -> Proof:
    """Raises CannotServe naming the guilty node where the step is not the original."""
    lengths = (layout.time,) if layout.time else LENGTHS
    generator = np.random.default_rng(20260105)
    batch = layout.batch or _KEYS
    walker = Walker(step, initial, foreign.source)
    whole = session(foreign.model, foreign.source)
    widest, memory, remembers, reacts, sequences = 0.0, 0.0, False, False, 0
    for length in lengths:
        for spread in _SPREADS:
            x = (spread * generator.standard_normal((batch, length, layout.features))).astype(np.float32)
            expected, positions = _original(foreign, layout, whole, answer, x)
            given, states = walker.walk(x)
            gap = difference(given[:, positions], expected)
            states_gap = _memories(foreign, layout, x, states[:, -1])
            if not largest(gap, states_gap) <= TOLERANCE:  # NaN too
                raise foreign.refuse(_culprit(foreign, layout, step, x, states, largest(gap, states_gap)))
            widest, memory, sequences = largest(widest, gap), largest(memory, states_gap), sequences + batch
            forgetful, _ = walker.walk(x[:, -1:])
            remembers |= bool(difference(forgetful[:, 0], given[:, -1]) > TOLERANCE)
            reacts |= bool(np.ptp(given[:, -1], axis=0).max() > TOLERANCE) or batch == 1
    every = layout.time is None or answer.time_axis is not None
    return Proof(lengths, every, sequences, widest, memory, remembers, reacts)


def difference(ours: Array, theirs: Array) -> float:
    """Largest difference; of numbers above 1 as a share. NaN where only one of the two is."""
    if ours.size == 0:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
    gap[(np.isnan(ours) & np.isnan(theirs)) | (ours == theirs)] = 0
    return float(gap.max())


def largest(*differences: float) -> float:
    """NaN where one of them is: max() forgets a NaN that does not come first.

    >>> max(0.0, float("nan")), largest(0.0, float("nan"))
    (0.0, nan)
    """
    return float(np.max(differences))


class Walker:
    """Runs a step model over sequences, event by event, all keys at once."""

    def __init__(self, step: onnx.ModelProto, initial: Floats, source: str) -> None:
        self._session = session(step, source)
        self._initial = initial
        self._source = source

    def walk(self, x: Floats) -> tuple[Floats, Floats]:
        """[B, T, F] to predictions [B, T, P] and the states after each event [B, T, S]."""
        state: Array = np.tile(self._initial, (len(x), 1))
        predictions, states = [], []
        for event in range(x.shape[1]):
            feed = {"x": np.ascontiguousarray(x[:, event]), "state": state}
            out = run(self._session, ["state_out", "prediction"], feed, self._source)
            state = out["state_out"]
            predictions.append(out["prediction"])
            states.append(state)
        return np.stack(predictions, axis=1), np.stack(states, axis=1)


def _original(foreign: Foreign, layout: Layout, whole: Any, answer: Answer, x: Floats) -> tuple[Array, list[int]]:
    """The original's answers [B, positions, P] and the positions that it has answers for."""
    length = x.shape[1]

    def ask(part: Floats) -> Array:
        value = run(whole, [answer.output], layout.feed(foreign, part), foreign.source)[answer.output]
        return answer.rows(value)

    if answer.time_axis is not None:
        return ask(x), list(range(length))
    if layout.time:
        return ask(x), [length - 1]
    prefixes = [ask(x[:, : event + 1]) for event in range(length)]
    return np.concatenate(prefixes, axis=1), list(range(length))


def _with_last_states(foreign: Foreign) -> tuple[Foreign, list[str]]:
    """The original with names for the last states of its recurrent nodes, and these names in the row's order."""
    model = onnx.ModelProto()
    model.CopyFrom(foreign.model)
    names = []
    for number, cell in enumerate(foreign.cells):
        node = model.graph.node[cell.index]
        outputs = [*node.output, "", "", ""][: 1 + len(cell.letters)]
        for which, letter in enumerate(cell.letters):
            outputs[1 + which] = outputs[1 + which] or f"{letter}{number}_out"
        del node.output[:]
        node.output.extend(outputs)
        names += outputs[1:]
    return Foreign(foreign.source, foreign.sha256, model, foreign.opset, foreign.renamed), names


def _memories(foreign: Foreign, layout: Layout, x: Floats, state: Floats) -> float:
    """Largest difference between the original's last states after x and the step's state rows [B, S]."""
    named, names = _with_last_states(foreign)
    tensors = probe(named, layout.feed(foreign, x))
    rows = np.concatenate([tensors[name][0] for name in names], axis=1)
    return difference(state[:, : rows.shape[1]], rows)


def _culprit(foreign: Foreign, layout: Layout, step: onnx.ModelProto, x: Floats, states: Floats, gap: float) -> str:
    """The first node in order whose inputs agree at the last event and whose output does not."""
    length = x.shape[1]
    theirs = probe(foreign, layout.feed(foreign, x))
    model, names = traced(step)
    last = {"x": np.ascontiguousarray(x[:, -1]), "state": np.ascontiguousarray(states[:, -2 if length > 1 else -1])}
    ours = run(session(model, foreign.source), names, last, foreign.source)
    differ: set[str] = set()
    tail = "; it needs the whole sequence, so a step cannot give its answer. --mode window serves it as it is"
    for index, node in enumerate(foreign.graph.node):
        for name in node.output:
            if name in theirs and name in ours and _parts(theirs[name], ours[name], length):
                differ.add(name)
        if set(node.output) & differ:  # the first one, so what it reads agrees
            what = "differs from the original though all that it is fed at the last event agrees"
            return f"{title(node, index)} {what} (by up to {gap:.3g} over {length} events){tail}"
    return f"the step's answers differ from the original's by up to {gap:.3g} over {length} events{tail}"


def _parts(theirs: Any, ours: Any, length: int) -> bool:
    """Whether a float tensor of the step is not the last event of the original's."""
    if getattr(theirs, "dtype", None) != np.float32 or not hasattr(ours, "shape"):
        return False
    if theirs.ndim == ours.ndim:
        for axis, (long, short) in enumerate(zip(theirs.shape, ours.shape, strict=True)):
            if long != short:
                if (long, short) != (length, 1):
                    return False  # joined axes: cannot be told apart
                theirs = np.take(theirs, [-1], axis=axis)
    return theirs.shape == ours.shape and not difference(ours, theirs) <= TOLERANCE
