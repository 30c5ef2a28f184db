"""Where batch, time and features lie in a foreign graph's input, and in what its recurrent layers begin.

Says which graphs can be a step at all, and names the node that is in the way of those that cannot. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.onnx_wire import FLOAT
from lstmstream.train.foreign.graph import (
    LOOPS,
    RECURRENT,
    Array,
    Cell,
    Foreign,
    ancestors,
    attribute,
    run,
    session,
    title,
    traced,
)

Floats = NDArray[np.float32]
_WINDOW = "--mode window serves it as it is"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a batch of sequences is fed to a foreign graph."""

    data: str  # the input that takes the events
    features: int  # F
    rank: int  # 3: with an axis of features; 2: one feature, without
    time_axis: int  # 0 or 1; the other is the batch
    batch: int | None = None  # fixed by the file, or free
    time: int | None = None
    states: tuple[str, ...] = ()  # inputs that take a state; fed with zeros

    def arrange(self, x: Floats) -> Floats:
        """[B, T, F] as the graph wants it."""
        x = x.swapaxes(0, 1) if self.time_axis == 0 else x
        return np.ascontiguousarray(x if self.rank == 3 else x[..., 0], np.float32)

    def feed(self, foreign: Foreign, x: Floats) -> dict[str, Array]:
        """Everything that a run on x [B, T, F] is fed."""
        feeds: dict[str, Array] = {self.data: self.arrange(x)}
        for name in self.states:
            dims = foreign.dims(name)
            batch_axis = 1 if len(dims) == 3 else 0
            shape = [len(x) if axis == batch_axis else size or 1 for axis, size in enumerate(dims)]
            feeds[name] = np.zeros(shape, np.float32)
        return feeds

    def sizes(self) -> tuple[int, int]:
        """A batch and a length that the graph takes, different where it leaves a choice."""
        return self.batch or (3 if self.time != 3 else 2), self.time or (5 if self.batch != 5 else 4)

    @property
    def where(self) -> str:
        """For a person."""
        axes = ["batch", "time"] if self.time_axis == 1 else ["time", "batch"]
        sizes = {"batch": self.batch, "time": self.time}
        named = [f"{axis} {sizes[axis]}" if sizes[axis] else axis for axis in axes]
        return f"[{', '.join([*named, f'{self.features} features'] if self.rank == 3 else named)}]"


def refuse_for_step(foreign: Foreign) -> None:
    """Raises CannotServe naming the node where the graph's form alone says that it cannot be a step."""
    graph = foreign.graph
    for index, node in enumerate(graph.node):
        if node.op_type in LOOPS:
            raise foreign.refuse(
                f"{title(node, index)}: a loop over time cannot be opened; exports of Keras' GRU, Masking and"
                f" TimeDistributed look like this: give the .keras file instead. {_WINDOW}"
            )
    if not foreign.cells:
        raise foreign.refuse(
            "there is no LSTM, GRU or RNN node that the output depends on: without one nothing is remembered between"
            f" events. {_WINDOW}"
        )
    for cell in foreign.cells:
        node = graph.node[cell.index]
        direction = attribute(node, "direction", "forward")
        if direction != "forward":
            raise foreign.refuse(f"{cell.name}: direction {direction}; a stream has no events from the end. {_WINDOW}")
        if attribute(node, "layout", 0):
            raise foreign.refuse(f"{cell.name}: layout 1, which ONNX Runtime does not run; export it with layout 0")
        if len(node.input) > 4 and node.input[4]:
            raise foreign.refuse(
                f"{cell.name}: it takes lengths from {foreign.shown(node.input[4])} (packed or masked sequences);"
                " export the model without packing"
            )
        for place in range(5, 5 + RECURRENT[cell.kind]):
            _refuse_computed_start(foreign, cell, node, place)


def _refuse_computed_start(foreign: Foreign, cell: Cell, node: onnx.NodeProto, place: int) -> None:
    if len(node.input) <= place or not node.input[place]:
        return
    data = data_inputs(foreign)
    if ancestors(foreign.graph, node.input[place]) & set(data):
        raise foreign.refuse(
            f"{cell.name}: its first state {foreign.shown(node.input[place])} is computed from the data (an encoder and"
            f" a decoder); a step cannot begin before it has seen the whole sequence. {_WINDOW}"
        )


def data_inputs(foreign: Foreign) -> list[str]:
    """Inputs that reach a recurrent layer as its sequence; without such layers, or without any, all."""
    reached: set[str] = set()
    for cell in foreign.cells:
        reached |= ancestors(foreign.graph, foreign.graph.node[cell.index].input[0], along_data=True)
    return [name for name in foreign.inputs if name in reached] or list(foreign.inputs)


def layouts(foreign: Foreign, features: int | None, *, whole: bool = False) -> Iterator[Layout]:
    """Every way to feed the graph that its own run allows, the likely one first. Raises CannotServe for none.

    `features` is how many names the user gave, if any. With `whole` windows will be fed, so that something may take
    several events together before a recurrent layer sees them.
    """
    data, states = data_inputs(foreign), []
    if len(data) > 1:
        raise foreign.refuse(
            f"it takes several sequences ({', '.join(map(foreign.shown, data))}); export a model that takes one input"
            " with all features"
        )
    for name in foreign.inputs:
        if name in data:
            continue
        if not _only_a_first_state(foreign, name):
            raise foreign.refuse(f"the input {foreign.shown(name)} is neither the events nor a first state")
        states.append(name)
    name = data[0]
    dims, count = foreign.dims(name), features
    if foreign.element(name) != FLOAT:
        raise foreign.refuse(
            f"the input {foreign.shown(name)} is not float32: numbers are fed as float32, and token numbers or codes of"
            " categories cannot be imported; export the model in float32, from its embedded inputs on"
        )
    if len(dims) not in {2, 3}:
        raise foreign.refuse(f"the input {foreign.shown(name)} has {len(dims)} axes, should be batch, time, features")
    declared = dims[2] if len(dims) == 3 else 1
    count = declared or features
    if count is None:
        raise foreign.refuse(f"the input {foreign.shown(name)} does not say how many features; name them: --features")
    if features is not None and features != count:
        raise foreign.refuse(f"--features names {features}, the input {foreign.shown(name)} takes {count}")
    problems = []
    time_first = not foreign.cells and dims[0] is not None and dims[1] is None  # [T, batch]: the fixed one is time
    for time_axis in (0, 1) if time_first else (1, 0):
        sizes = {"time": dims[time_axis], "batch": dims[1 - time_axis]}
        layout = Layout(name, count, len(dims), time_axis, **sizes, states=tuple(states))
        problem = _misfit(foreign, layout, whole=whole)
        if problem is None:
            yield layout
        else:
            problems.append(problem)
    if len(problems) == 2:
        raise foreign.refuse(problems[0])


def _only_a_first_state(foreign: Foreign, name: str) -> bool:
    """Whether the input reaches the answer through first states of recurrent nodes alone."""
    reached: set[str] = set()
    for output in foreign.outputs:
        reached |= ancestors(foreign.graph, output, along_data=True)
    return name not in reached and foreign.element(name) == FLOAT


def _misfit(foreign: Foreign, layout: Layout, *, whole: bool) -> str | None:
    """Why the recurrent layers do not see the input's batch and time as this layout says; None if they do."""
    batch, length = layout.sizes()
    x = np.zeros((batch, length, layout.features), np.float32)
    try:
        tensors = probe(foreign, layout.feed(foreign, x))
    except CannotServe as error:
        problem = str(error).partition(f"import {foreign.source}: ")[2]
        if "initial_c must have shape" in problem:
            problem += " (torch's exporter writes proj_size wrongly: import the state_dict with --layout)"
        return problem
    for cell in foreign.cells:
        node = foreign.graph.node[cell.index]
        seen = tensors.get(node.input[0])
        shape = seen.shape if seen is not None else layout.arrange(x).shape
        if len(shape) != 3 or shape[1] != batch or (shape[0] != length and not whole):
            makers = [n for n in foreign.graph.node if set(n.output) & ancestors(foreign.graph, node.input[0])]
            guilty = next((n for n in makers if n.op_type in _MIXERS), None)
            why = f"; {title(guilty, 0)} before it takes several events together" if guilty is not None else ""
            if layout.rank == 2 and not why:
                why = "; if the model takes one sequence without an axis of batch, export it with one"
            return (
                f"{cell.name}: of {batch} sequences of {length} events it sees {list(shape)}, not"
                f" [{length}, {batch}, features]{why}. {_WINDOW}"
            )
    return None


_MIXERS = ("Conv", "MaxPool", "AveragePool", "Slice", "Gather", "Pad", "Concat", "Tile", "Expand", "Reshape")


def probe(foreign: Foreign, feed: dict[str, Array]) -> dict[str, Any]:
    """Every tensor of a run."""
    model, names = traced(foreign.model)
    return run(session(model, foreign.source), names, feed, foreign.source)
