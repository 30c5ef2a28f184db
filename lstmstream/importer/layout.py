"""Finds the batch, time and feature axes of a graph's input, and the inputs that are initial states.

Decides which graphs can become a step, and names the node that prevents it. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.importer.graph import (
    LOOPS,
    RECURRENT,
    Array,
    Cell,
    SourceGraph,
    ancestors,
    attribute,
    node_title,
    open_session,
    run,
    with_intermediates,
)
from lstmstream.model.onnx_proto import FLOAT

Floats = NDArray[np.float32]
_WINDOW = "--mode window serves it as it is"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a batch of sequences is fed to a graph."""

    data: str  # name of the input for the events
    features: int  # F
    rank: int  # 3; or 2 for one feature without an axis of its own
    time_axis: int  # 0 or 1; the other one is the batch
    batch: int | None = None  # size fixed by the file; None: dynamic
    time: int | None = None
    states: tuple[str, ...] = ()  # names of the inputs for initial states; fed with zeros

    def arrange(self, x: Floats) -> Floats:
        """X [B, T, F] with the axes of the graph's input."""
        x = x.swapaxes(0, 1) if self.time_axis == 0 else x
        return np.ascontiguousarray(x if self.rank == 3 else x[..., 0], np.float32)

    def feed(self, source: SourceGraph, x: Floats) -> dict[str, Array]:
        """All inputs of a run on x [B, T, F], by name."""
        feeds: dict[str, Array] = {self.data: self.arrange(x)}
        for name in self.states:
            dims = source.dims(name)
            dynamic = [axis for axis, size in enumerate(dims) if size is None]
            batch_axis = 1 if len(dims) == 3 else 0
            if len(dynamic) == 1:  # some keep the batch first, as in [batch, layers, hidden]
                batch_axis = dynamic[0]
            shape = [len(x) if axis == batch_axis else size or 1 for axis, size in enumerate(dims)]
            feeds[name] = np.zeros(shape, np.float32)
        return feeds

    def sizes(self) -> tuple[int, int]:
        """A batch size and a length that the graph accepts, different where they are dynamic."""
        return self.batch or (3 if self.time != 3 else 2), self.time or (5 if self.batch != 5 else 4)

    @property
    def where(self) -> str:
        """The axes of the input, for a report."""
        axes = ["batch", "time"] if self.time_axis == 1 else ["time", "batch"]
        sizes = {"batch": self.batch, "time": self.time}
        named = [f"{axis} {sizes[axis]}" if sizes[axis] else axis for axis in axes]
        return f"[{', '.join([*named, f'{self.features} features'] if self.rank == 3 else named)}]"


def check_can_be_step(source: SourceGraph) -> None:
    """Raises CannotServe, naming the node, where the operators alone show that the graph cannot be a step."""
    graph = source.graph
    for index, node in enumerate(graph.node):
        if node.op_type in LOOPS:
            raise source.error(
                f"{node_title(node, index)}: a loop over time cannot be converted; Keras exports GRU, Masking and"
                f" TimeDistributed like this: import the .keras file instead. {_WINDOW}"
            )
    if not source.cells:
        raise source.error(
            f"the output depends on no LSTM, GRU or RNN node: without one there is no state between events. {_WINDOW}"
        )
    for cell in source.cells:
        node = graph.node[cell.index]
        direction = attribute(node, "direction", "forward")
        if direction != "forward":
            raise source.error(f"{cell.name}: direction {direction}; a stream cannot be read from its end. {_WINDOW}")
        if attribute(node, "layout", 0):
            raise source.error(f"{cell.name}: layout 1, which ONNX Runtime does not support; export it with layout 0")
        if len(node.input) > 4 and node.input[4]:
            raise source.error(
                f"{cell.name}: it reads sequence lengths from {source.quoted(node.input[4])} (packed or masked"
                " sequences); export the model without packing"
            )
        for place in range(5, 5 + RECURRENT[cell.kind]):
            _check_initial_state(source, cell, node, place)


def _check_initial_state(source: SourceGraph, cell: Cell, node: onnx.NodeProto, place: int) -> None:
    """Raises CannotServe where the initial state, input `place` of the node, is computed from the data."""
    if len(node.input) <= place or not node.input[place]:
        return
    data = data_inputs(source)
    if ancestors(source.graph, node.input[place]) & set(data):
        raise source.error(
            f"{cell.name}: its initial state {source.quoted(node.input[place])} is computed from the data (an encoder"
            f" and a decoder); a step cannot start before it has seen the whole sequence. {_WINDOW}"
        )


def data_inputs(source: SourceGraph) -> list[str]:
    """Inputs that reach a recurrent layer as its sequence; all inputs where there are none such."""
    reached: set[str] = set()
    for cell in source.cells:
        reached |= ancestors(source.graph, source.graph.node[cell.index].input[0], along_data=True)
    return [name for name in source.inputs if name in reached] or list(source.inputs)


def possible_layouts(source: SourceGraph, features: int | None, *, whole: bool = False) -> Iterator[Layout]:
    """Every layout with which the graph runs, the likeliest first. Raises CannotServe where there is none.

    `features` is the number of feature names that the user gave, if any. With `whole` the graph will be fed windows,
    so a node may combine several events before a recurrent layer.
    """
    data, states = data_inputs(source), []
    if len(data) > 1:
        raise source.error(
            f"it has several inputs that are sequences ({', '.join(map(source.quoted, data))}); export a model with one"
            " input for all features"
        )
    for name in source.inputs:
        if name in data:
            continue
        if not _is_initial_state(source, name):
            raise source.error(f"the input {source.quoted(name)} is neither the events nor an initial state")
        states.append(name)
    name = data[0]
    dims, count = source.dims(name), features
    if source.element(name) != FLOAT:
        raise source.error(
            f"the input {source.quoted(name)} is not float32: features are fed as float32, and token ids or category"
            " codes cannot be imported; export the model in float32, starting after its embeddings"
        )
    if len(dims) not in {2, 3}:
        raise source.error(
            f"the input {source.quoted(name)} has {len(dims)} axes; it should have batch, time and features"
        )
    declared = dims[2] if len(dims) == 3 else 1
    count = declared or features
    if count is None:
        raise source.error(
            f"the input {source.quoted(name)} does not state the number of features; name them with --features"
        )
    if features is not None and features != count:
        raise source.error(f"--features has {features} names, but the input {source.quoted(name)} takes {count}")
    problems = []
    time_first = not source.cells and dims[0] is not None and dims[1] is None  # [time, batch]: the fixed axis is time
    for time_axis in (0, 1) if time_first else (1, 0):
        sizes = {"time": dims[time_axis], "batch": dims[1 - time_axis]}
        layout = Layout(name, count, len(dims), time_axis, **sizes, states=tuple(states))
        problem = _misfit(source, layout, whole=whole)
        if problem is None:
            yield layout
        else:
            problems.append(problem)
    if len(problems) == 2:
        raise source.error(problems[0])


def only_initial_states(source: SourceGraph) -> bool:
    """Whether the graph takes whole sequences, and all its other inputs are first states of recurrent layers."""
    if not source.cells or not any(source.outputs):
        return False
    data = data_inputs(source)
    dims = source.dims(data[0])
    one_event = len(dims) == 2 or (len(dims) == 3 and 1 in dims[:2])
    return (
        len(data) == 1
        and not one_event
        and all(_is_initial_state(source, name) for name in source.inputs if name not in data)
    )


def _is_initial_state(source: SourceGraph, name: str) -> bool:
    """Whether the input reaches the outputs only as an initial state of recurrent nodes."""
    reached: set[str] = set()
    for output in source.outputs:
        reached |= ancestors(source.graph, output, along_data=True)
    return name not in reached and source.element(name) == FLOAT


def _misfit(source: SourceGraph, layout: Layout, *, whole: bool) -> str | None:
    """Why batch and time at the recurrent layers are not those of the layout; None where they are."""
    batch, length = layout.sizes()
    x = np.zeros((batch, length, layout.features), np.float32)
    try:
        tensors = run_all(source, layout.feed(source, x))
    except CannotServe as error:
        problem = str(error).partition(f"import {source.file}: ")[2]
        if "initial_c must have shape" in problem:
            problem += " (the exporter of torch writes proj_size wrongly: import the state_dict with --layout)"
        return problem
    for cell in source.cells:
        node = source.graph.node[cell.index]
        seen = tensors.get(node.input[0])
        shape = seen.shape if seen is not None else layout.arrange(x).shape
        if len(shape) != 3 or shape[1] != batch or (shape[0] != length and not whole):
            makers = [n for n in source.graph.node if set(n.output) & ancestors(source.graph, node.input[0])]
            mixer = next((n for n in makers if n.op_type in _MIXERS), None)
            why = f"; {node_title(mixer, 0)} before it combines several events" if mixer is not None else ""
            if layout.rank == 2 and not why:
                why = "; if the model takes one sequence without a batch axis, export it with one"
            return (
                f"{cell.name}: for {batch} sequences of {length} events its input is {list(shape)}, not"
                f" [{length}, {batch}, features]{why}. {_WINDOW}"
            )
    return None


_MIXERS = ("Conv", "MaxPool", "AveragePool", "Slice", "Gather", "Pad", "Concat", "Tile", "Expand", "Reshape")


def run_all(source: SourceGraph, feed: dict[str, Array]) -> dict[str, Any]:
    """The value of every tensor of the main graph, by name, for one input. Raises CannotServe."""
    model, names = with_intermediates(source.model)
    return run(open_session(model, source.file), names, feed, source.file)
