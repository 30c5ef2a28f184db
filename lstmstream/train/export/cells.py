"""The recurrent layers as graph nodes: one event for each of N keys, or the last T events of each in window mode.

Plain LSTMs are ONNX's LSTM operator over a sequence of length 1. GRUs and projected LSTMs are written in cell form
(matrix products and activations), which is faster there; so are the cells of named_cells.py. Tensors have the
operator's three axes, [1, N, width].

Window mode: the state part `window` holds the last T encoded rows, oldest first, of which the last `filled` are in use.
The layers run over all T rows from their initial values; before the first row in use they are held at these values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmstream.train.export.graph import GraphBuilder
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.export.network_spec import Array, Gru, Layer, Lstm, NamedLayer, NetworkSpec, as_float32

ONNX_ACTIVATION = {"tanh": "Tanh", "relu": "Relu"}
HEAD_STATE = "head_state_in"  # the tensor [N, spec.head_state_size]


def add_recurrent_layers(graph: GraphBuilder, spec: NetworkSpec, encoded: str, state: str, state_out: str) -> str:
    """Adds one step of all layers on the tensor `encoded` [N, width]; returns the name of the last output [N, P].

    `state` has the parts of layers and head. Adds the tensor `state_out`, or, where the head has a state too,
    `layers_out` without the head's part (and HEAD_STATE).
    """
    axis = graph.weight("axis_0", np.array([0], np.int64))  # a sequence of length 1
    inputs = graph.node("Unsqueeze", [encoded, axis], "encoded_step")
    row = graph.node("Unsqueeze", [state, axis], "state_step")
    head_part = "head_state_step"
    widths = [size for layer in spec.layers for _, size, _ in layer.state_parts]
    parts = [f"{letter}{index}_in" for index, layer in enumerate(spec.layers) for letter, _, _ in layer.state_parts]
    if spec.window is not None:
        widths, parts = [spec.window * spec.encoder.width, 1], ["window_in", "filled_in"]
    if spec.head_state_size:
        widths, parts = [*widths, spec.head_state_size], [*parts, head_part]
    if len(parts) > 1:
        sizes = graph.weight("part_sizes", np.array(widths, np.int64))
        graph.multi_output_node("Split", [row, sizes], parts, "state_parts", axis=2)
    else:
        graph.node("Identity", [row], parts[0])  # a single GRU has one part
    if spec.window is not None:
        new_parts, last_h = _add_window(graph, spec, inputs)
    else:
        new_parts, last_h = [], inputs
        for index, layer in enumerate(spec.layers):
            count = len(layer.state_parts)
            weights = _add_weights(graph, layer, index)
            last_h, new_state = _add_step(graph, layer, weights, last_h, parts[:count], f"{index}")
            new_parts, parts = [*new_parts, *new_state], parts[count:]
    moved = graph.node("Concat", new_parts, "state_out_step", axis=2) if len(new_parts) > 1 else new_parts[0]
    graph.node("Squeeze", [moved, axis], "layers_out" if spec.head_state_size else state_out)
    if spec.head_state_size:
        graph.node("Squeeze", [head_part, axis], HEAD_STATE)
    return graph.node("Squeeze", [last_h, axis], "hidden")


def _add_window(graph: GraphBuilder, spec: NetworkSpec, newest: str) -> tuple[list[str], str]:
    """Adds all layers over the window; returns the new state parts and the last layer's output at the newest row."""
    rows, width = spec.window or 0, spec.encoder.width
    parts = ["window_in", newest]
    if rows > 1:
        bounds = [graph.weight(f"window_{name}", np.array([value], np.int64))
                  for name, value in (("from", width), ("to", rows * width), ("axis", 2))]  # fmt: skip
        window = graph.node("Concat", [graph.node("Slice", [parts[0], *bounds], "kept"), newest], "window", axis=2)
        inputs = [f"row_{row}" for row in range(rows)]
        graph.multi_output_node("Split", [window], inputs, "window_rows", axis=2, num_outputs=rows)
    else:
        inputs = [window] = [graph.node("Identity", [newest], "window")]
    count = graph.node("Add", ["filled_in", graph.scalar("window_one", 1)], "counted")
    filled = graph.node("Min", [count, graph.scalar("window_rows_most", rows)], "filled_out")
    weights = [_add_weights(graph, layer, index) for index, layer in enumerate(spec.layers)]
    initial = [_add_initial_state(graph, layer, index, filled) for index, layer in enumerate(spec.layers)]
    states = [[start for _, start in values] for values in initial]
    for row, row_input in enumerate(inputs):
        # the row is in use where at least this many are; the newest always is
        enough = graph.scalar(f"needed_{row}", rows - row - 0.5)
        used = graph.node("Greater", [filled, enough], f"used_{row}") if row < rows - 1 else None
        layer_input = row_input
        for index, layer in enumerate(spec.layers):
            tag = f"{index}_{row}"
            output, new_state = _add_step(graph, layer, weights[index], layer_input, states[index], tag)
            is_state = output == new_state[0]
            if used is not None:
                held = zip(new_state, initial[index], layer.state_parts, strict=True)
                new_state = [
                    graph.node("Where", [used, value, start], f"{letter}{tag}_kept")
                    for value, (start, _), (letter, _, _) in held
                ]
            states[index], layer_input = new_state, new_state[0] if is_state else output
    return [window, filled], layer_input


def _add_initial_state(graph: GraphBuilder, layer: Layer, index: int, filled: str) -> list[tuple[str, str]]:
    """For each part of the layer's state: its initial values [size], and the same for each of the N rows."""
    names = []
    for letter, size, values in layer.state_parts:
        initial = graph.weight(
            f"{letter}{index}_initial", np.zeros(size, np.float32) if values is None else as_float32(values)
        )
        zeros = graph.node("Mul", [filled, graph.weight(f"{letter}{index}_zeros", np.zeros(size, np.float32))],
                           f"{letter}{index}_nothing")  # fmt: skip
        names.append((initial, graph.node("Add", [zeros, initial], f"{letter}{index}_start")))
    return names


def _add_weights(graph: GraphBuilder, layer: Layer, index: int) -> Mapping[str, str] | list[str]:
    """Adds the layer's weights; returns their names as `_add_step` takes them."""
    if isinstance(layer, NamedLayer):
        return {
            name: graph.weight(named_weight(layer.cell, index, name), as_float32(layer.weights[name]).T)
            for name in NAMED_CELLS[layer.cell].weight_shapes(1, 1)
        }
    halves = np.split(as_float32(layer.bias), 2)
    if uses_operator(layer):
        names = [
            graph.weight(f"{name}{index}", to_onnx_gates(values)[np.newaxis])
            for name, values in (("W", layer.weight_ih), ("R", layer.weight_hh))
        ]
        bias = np.concatenate([to_onnx_gates(half) for half in halves])
        return [*names, graph.weight(f"B{index}", bias[np.newaxis])]
    names = [
        graph.weight(f"{name}{index}", values)
        for name, values in (
            ("weight_ih", as_float32(layer.weight_ih).T),
            ("bias_ih", halves[0]),
            ("weight_hh", as_float32(layer.weight_hh).T),
            ("bias_hh", halves[1]),
        )
    ]
    if isinstance(layer, Lstm) and layer.projection is not None:
        names.append(graph.weight(f"projection{index}", as_float32(layer.projection).T))
    return names


def _add_step(
    graph: GraphBuilder,
    layer: Layer,
    weights: Mapping[str, str] | list[str],
    inputs: str,
    state: Sequence[str],
    tag: str,
) -> tuple[str, list[str]]:
    """Adds one step of one layer; returns its output and the new parts of its state."""
    if isinstance(layer, NamedLayer):
        assert isinstance(weights, Mapping)
        return NAMED_CELLS[layer.cell].add_step(graph, weights, inputs, state, layer.hidden, tag)
    assert isinstance(weights, list)
    if isinstance(layer, Gru):
        new_state = _add_gru_cell(graph, layer, weights, inputs, state[0], tag)
    elif uses_operator(layer):
        new_state = _add_lstm_operator(graph, layer, weights, inputs, state, tag)
    else:
        new_state = _add_lstm_cell(graph, layer, weights, inputs, state, tag)
    return new_state[0], new_state


def _add_lstm_operator(
    graph: GraphBuilder, layer: Lstm, weights: list[str], inputs: str, state: Sequence[str], tag: str
) -> list[str]:
    outputs = ["", f"h{tag}_out", f"c{tag}_out"]
    other: dict[str, Any] = {} if layer.activation == "tanh" else {"activations": ["Sigmoid", "Relu", "Relu"]}
    operands = [inputs, *weights, "", *state]
    graph.multi_output_node("LSTM", operands, outputs, f"lstm{tag}", hidden_size=layer.hidden, **other)
    return outputs[1:]


def _add_lstm_cell(
    graph: GraphBuilder, layer: Lstm, weights: list[str], inputs: str, state: Sequence[str], tag: str
) -> list[str]:
    activation = ONNX_ACTIVATION[layer.activation]
    gates = graph.node("Add", _add_products(graph, weights, inputs, state[0], tag), f"gates{tag}")
    i, f, g, o = (f"{gate}{tag}" for gate in "ifgo")
    graph.multi_output_node("Split", [gates], [i, f, g, o], f"split{tag}", axis=2, num_outputs=4)
    i, f, o = (graph.node("Sigmoid", [gate], f"{gate}_gate") for gate in (i, f, o))
    fresh = graph.node("Mul", [i, graph.node(activation, [g], f"{g}_in")], f"fresh{tag}")
    c = graph.node("Add", [graph.node("Mul", [f, state[1]], f"kept{tag}"), fresh], f"c{tag}_out")
    h = graph.node("Mul", [o, graph.node(activation, [c], f"active{tag}")], f"wide{tag}")
    return [graph.node("MatMul", [h, weights[4]], f"h{tag}_out"), c]


def _add_gru_cell(graph: GraphBuilder, layer: Gru, weights: list[str], inputs: str, h: str, tag: str) -> list[str]:
    products = _add_products(graph, weights, inputs, h, tag)
    (r, z, n), (r_h, z_h, n_h) = ([f"{gate}{tag}_{source}" for gate in "rzn"] for source in ("input", "before"))
    for product, gates in zip(products, ((r, z, n), (r_h, z_h, n_h)), strict=True):
        graph.multi_output_node("Split", [product], list(gates), f"{product}_split", axis=2, num_outputs=3)
    r = graph.node("Sigmoid", [graph.node("Add", [r, r_h], f"r{tag}_sum")], f"r{tag}")
    z = graph.node("Sigmoid", [graph.node("Add", [z, z_h], f"z{tag}_sum")], f"z{tag}")
    total = graph.node("Add", [n, graph.node("Mul", [r, n_h], f"n{tag}_reset")], f"n{tag}_sum")
    n = graph.node(ONNX_ACTIVATION[layer.activation], [total], f"n{tag}")
    back = graph.node("Mul", [z, graph.node("Sub", [h, n], f"back{tag}")], f"blend{tag}")
    return [graph.node("Add", [n, back], f"h{tag}_out")]


def _add_products(graph: GraphBuilder, weights: list[str], inputs: str, h: str, tag: str) -> list[str]:
    """Adds W x + b and R h + b'; returns their names."""
    return [
        graph.node("Add", [graph.node("MatMul", [operand, weight], f"{name}{tag}_product"), bias], f"{name}{tag}")
        for name, operand, weight, bias in (("input", inputs, *weights[:2]), ("before", h, *weights[2:4]))
    ]


def named_weight(cell: str, index: int, name: str) -> str:
    """The name in the graph of a weight of a NamedLayer."""
    return f"{cell}{index}.{name}"


def uses_operator(layer: Lstm | Gru) -> bool:
    """Whether the layer is written as ONNX's LSTM operator, not in cell form."""
    return isinstance(layer, Lstm) and layer.projection is None


def to_onnx_gates(values: NDArray[Any]) -> Array:
    """Weights [4H, ...] with the gates in torch's order (i, f, g, o) to ONNX's order (i, o, f, c)."""
    i, f, g, o = np.split(as_float32(values), 4)
    return np.concatenate([i, o, f, g])


def from_onnx_gates(values: NDArray[Any]) -> Array:
    """Weights [4H, ...] with the gates in ONNX's order (i, o, f, c) to torch's order (i, f, g, o)."""
    i, o, f, g = np.split(as_float32(values), 4)
    return np.concatenate([i, f, g, o])
