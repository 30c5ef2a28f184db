"""The rounds of a batch with a graph in three parts (lstmstream/model/graph_parts.py), each as a session of its own.

A round of a few keys costs ONNX Runtime about half a microsecond per node, whatever it computes, and two thirds of a
trained model's nodes prepare features or make the score from the state. Those run once for all rounds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lstmstream.errors import CannotServe
from lstmstream.model.graph_parts import STATE, GraphPart, TensorType, part_content, split_graph
from lstmstream.model.sequence_graph import sequence_content
from lstmstream.records import Floats, Ints
from lstmstream.serve.model_checks import CHECKED_BATCHES, CHECKED_ROWS, probe, same_values
from lstmstream.serve.step_model import StepInput

if TYPE_CHECKING:
    import onnxruntime as ort

    from lstmstream.serve.step import OnnxStep

CHECKED_SEQUENCES = ((0, 1), (1, 2), (3, 3), (6, 9), (15, 40))  # first row and number of events
# More than these do not stay in the core's own cache: with 8,000 a row takes 1.3 times as long for 64 units in one
# layer, and 1.5 times for 128 in two.
ROWS_AT_ONCE = 512

log = logging.getLogger(__name__)

Array = np.ndarray[Any, np.dtype[Any]]
_ELEMENTS = {"tensor(float)": 1, "tensor(int64)": 7, "tensor(bool)": 9, "tensor(int32)": 6, "tensor(double)": 11}


class NotSplitError(Exception):
    """The graph is used whole; the argument says why."""


class SplitStep:
    """The three sessions. Raises NotSplitError where they would not give the bits of the whole graph."""

    def __init__(self, whole: OnnxStep) -> None:
        content = whole.model.content
        parts = split_graph(content)
        if parts is None:
            raise NotSplitError("there is nothing to be split off")
        self._whole = whole
        self.parts = parts
        types: dict[str, TensorType] = {}
        try:
            self.before = _session(whole, content, parts.before, types)
            self.step_content = part_content(content, parts.step, types)
            self._step = _session(whole, content, parts.step, types)
            self.after = _session(whole, content, parts.after, types)
        except (CannotServe, KeyError) as error:
            raise NotSplitError(f"a part cannot be loaded: {error}") from error
        try:
            self.axes, self.samples = self._row_axes()
            self._check()
        except NotSplitError:
            raise
        except Exception as error:  # whatever it is, the whole graph works
            raise NotSplitError(f"a part cannot be run: {type(error).__name__}: {error}") from error
        self.sequence_content: bytes | None = None  # the part `step` over several events of one key
        self._sequence: ort.InferenceSession | None = None
        try:
            self.sequence_content = self._make_sequence(content, types)
            if self.sequence_content is not None and whole.device == "cpu":
                self._sequence = self._open_sequence(self.sequence_content)
        except Exception as error:  # whatever it is, steps work
            log.debug("the events of one key are stepped through one by one: %s", error)

    def begin_rounds(self, given: StepInput) -> SplitRounds:
        """Begin a batch of M events in the order of its rounds. Nothing is read of their state."""
        values: dict[str, Array] = {name: getattr(given, name) for name in StepInput._fields if name != STATE}
        values |= _run(self.before, self.parts.before, values)
        return SplitRounds(self, values, len(given.x))

    def _make_sequence(self, content: bytes, types: dict[str, TensorType]) -> bytes | None:
        part = self.parts.step
        sequence = sequence_content(content, part, types)
        crossing = {*part.inputs, *part.outputs[1:]} - {STATE}
        return None if any(self.axes[name] != 1 for name in crossing) else sequence

    def _open_sequence(self, content: bytes) -> ort.InferenceSession | None:
        """None where it does not give the bits of single steps."""
        session = self._whole.open_session(content)
        given = probe(self._whole.card, rows=CHECKED_ROWS)
        for start, count in CHECKED_SEQUENCES:
            by_steps, at_once = self.begin_rounds(given), self.begin_rounds(given)
            state = given.state[start : start + 1]
            for row in range(start, start + count):
                state = by_steps.step(row, row + 1, state)
            moved = at_once._run_sequence(session, np.arange(start, start + count), given.state[start : start + 1])
            same = [(state, moved)]
            for name, value in by_steps._hidden.items():
                same.append((value[:, start : start + count], at_once._hidden[name][:, start : start + count]))
            if any(step.tobytes() != whole.tobytes() for step, whole in same):
                return None
        return session

    def _row_axes(self) -> tuple[dict[str, int], dict[str, Array]]:
        """The axis of the rows of each tensor that crosses from one part to another, and the tensors of some rows."""
        shapes = []
        values: dict[str, Array] = {}
        for rows in (3, 5):
            given = probe(self._whole.card, rows=rows)
            values = {name: getattr(given, name) for name in StepInput._fields}
            values |= _run(self.before, self.parts.before, values)
            values |= _run(self._step, self.parts.step, values)
            shapes.append({name: value.shape for name, value in values.items()})
        axes = {}
        for name, shape in shapes[0].items():
            other = shapes[1][name]
            found = [axis for axis, sizes in enumerate(zip(shape, other, strict=False)) if sizes == (3, 5)]
            if len(shape) != len(other) or len(found) != 1 or any(size != 1 for size in shape[: found[0]]):
                raise NotSplitError(f"the rows of tensor {name!r} are not side by side: {shape}, {other}")
            axes[name] = found[0]
        return axes, values

    def _check(self) -> None:
        """The parts give the bits of the whole, for states that the model begins with and gets into."""
        given = probe(self._whole.card, rows=CHECKED_ROWS)
        for _ in range(2):
            wanted = self._whole.step(given)
            for start, count in CHECKED_BATCHES:
                batch = given.rows(start, count)
                rounds = self.begin_rounds(batch)
                cuts = sorted({0, 1, count})  # in two rounds
                state = np.concatenate([rounds.step(a, b, batch.state[a:b]) for a, b in pairwise(cuts)])
                score, prediction = rounds.outputs()
                same = [(state, wanted.state), (score, wanted.score)]
                if wanted.prediction is not None and prediction is not None:
                    same.append((prediction, wanted.prediction))
                if not all(same_values(self._whole, got, whole[start : start + count]) for got, whole in same):
                    raise NotSplitError("its results are not those of the whole graph")
            given = given._replace(state=wanted.state)


class SplitRounds:
    """One batch (see Rounds in step_model.py)."""

    def __init__(self, split: SplitStep, values: dict[str, Array], rows: int) -> None:
        self._split = split
        self._values = values
        self._rows = rows
        self._hidden: dict[str, Array] = {}

    def step(self, start: int, stop: int, state: Floats) -> Floats:
        """See Rounds."""
        if stop - start <= ROWS_AT_ONCE:
            return self._step(start, stop, state)
        moved = np.empty_like(state)
        for first in range(start, stop, ROWS_AT_ONCE):
            rows = slice(first - start, min(first + ROWS_AT_ONCE, stop) - start)
            moved[rows] = self._step(first, start + rows.stop, state[rows])
        return moved

    def _step(self, start: int, stop: int, state: Floats) -> Floats:
        split = self._split
        part, session = split.parts.step, split._step
        assert session is not None
        feed = {
            name: state if name == STATE else _rows(self._values[name], split.axes[name], start, stop)
            for name in part.inputs
        }
        new_state, *hidden = session.run(part.outputs, feed)
        for name, value in zip(part.outputs[1:], hidden, strict=True):
            _rows(self._whole_of(name, value), split.axes[name], start, stop)[...] = value
        return new_state  # type: ignore[no-any-return]

    def step_key(self, events: Ints, state: Floats) -> Floats | None:
        """See Rounds."""
        session = self._split._sequence
        return None if session is None else self._run_sequence(session, events, state)

    def _run_sequence(self, session: ort.InferenceSession, events: Ints, state: Floats) -> Floats:
        part = self._split.parts.step
        feed = {
            name: state if name == STATE else np.take(self._values[name], events, axis=1).swapaxes(0, 1)
            for name in part.inputs
        }
        new_state, *hidden = session.run(None, feed)
        for name, value in zip(part.outputs[1:], hidden, strict=True):
            by_event = value.swapaxes(0, 1)
            self._whole_of(name, by_event)[:, events] = by_event
        return new_state  # type: ignore[no-any-return]

    def _whole_of(self, name: str, value: Array) -> Array:
        """The tensor of all events; `value` is that of some of them."""
        whole = self._hidden.get(name)
        if whole is None:
            shape = list(value.shape)
            shape[self._split.axes[name]] = self._rows
            whole = self._hidden[name] = np.empty(shape, value.dtype)
        return whole

    def outputs(self) -> tuple[Floats, Floats | None]:
        """See Rounds."""
        split = self._split
        values = {**self._values, **self._hidden}
        values |= _run(split.after, split.parts.after, values)
        return values["score"], values.get("prediction")


def _run(session: ort.InferenceSession | None, part: GraphPart, values: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a part by name; of one without nodes there are none."""
    if session is None:
        return {}
    outputs = session.run(part.outputs, {name: values[name] for name in part.inputs})
    return dict(zip(part.outputs, outputs, strict=True))


def _rows(value: Array, axis: int, start: int, stop: int) -> Array:
    """A view; in one piece, since the axes before that of the rows have one element."""
    return value[(slice(None),) * axis + (slice(start, stop),)]


def _session(
    whole: OnnxStep, content: bytes, part: GraphPart, types: dict[str, TensorType]
) -> ort.InferenceSession | None:
    """None for a part without outputs; the types of the others' are noted."""
    if not part.outputs:
        return None
    session = whole.open_session(part_content(content, part, types))
    for output in session.get_outputs():
        dimensions: Sequence[int | str] = [size if isinstance(size, int) else str(size) for size in output.shape]
        types[output.name] = (_ELEMENTS[output.type], dimensions)
    return session
