"""The recurrent layers as graph nodes: one event for N keys, or the last T of each in window mode.

Plain LSTMs are ONNX's LSTM operator over a sequence of one; GRUs and projected LSTMs are in cell form (matrix products
and activations), which is faster there. Tensors have three axes, [1, N, width], as the operator wants them.

Window mode: state `window` holds the last T encoded rows, oldest first, of which the last `filled` are in use. The
layers run over all T rows from their initial values; before the first row in use their values are kept at the initial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmstream.train.export.graph import Graph
from lstmstream.train.export.parts import Array, Gru, Layer, Lstm, Network, floats

ONNX_ACTIVATION = {"tanh": "Tanh", "relu": "Relu"}
HEAD_STATE = "head_state_in"  # [N, network.head_state]


def run_layers(graph: Graph, network: Network, encoded: str) -> str:
    """Moves all layers; returns the name of the last one's h, [N, width].

    Makes `state_out`, or, where the head has a state too, `layers_out` without it (and HEAD_STATE).
    """
    axis = graph.weight("axis_0", np.array([0], np.int64))  # a sequence of length 1
    below = graph.node("Unsqueeze", [encoded, axis], "encoded_step")
    row = graph.node("Unsqueeze", ["state", axis], "state_step")
    head_part = "head_state_step"
    widths = [size for layer in network.layers for _, size, _ in layer.state]
    parts = [f"{letter}{index}_in" for index, layer in enumerate(network.layers) for letter, _, _ in layer.state]
    if network.window is not None:
        widths, parts = [network.window * network.encoder.width, 1], ["window_in", "filled_in"]
    if network.head_state:
        widths, parts = [*widths, network.head_state], [*parts, head_part]
    if len(parts) > 1:
        sizes = graph.weight("part_sizes", np.array(widths, np.int64))
        graph.several("Split", [row, sizes], parts, "state_parts", axis=2)
    else:
        graph.node("Identity", [row], parts[0])  # one GRU and nothing else
    if network.window is not None:
        done, below = _window(graph, network, below)
    else:
        done = []
        for index, layer in enumerate(network.layers):
            count = len(layer.state)
            weights = _weights(graph, layer, index)
            moved = _move(graph, layer, weights, below, parts[:count], f"{index}")
            done, parts, below = [*done, *moved], parts[count:], moved[0]
    whole = graph.node("Concat", done, "state_out_step", axis=2) if len(done) > 1 else done[0]
    graph.node("Squeeze", [whole, axis], "layers_out" if network.head_state else "state_out")
    if network.head_state:
        graph.node("Squeeze", [head_part, axis], HEAD_STATE)
    return graph.node("Squeeze", [below, axis], "hidden")


def _window(graph: Graph, network: Network, newest: str) -> tuple[list[str], str]:
    """Returns the new state parts and the last layer's h after the newest row."""
    rows, width = network.window or 0, network.encoder.width
    parts = ["window_in", newest]
    if rows > 1:
        bounds = [graph.weight(f"window_{name}", np.array([value], np.int64))
                  for name, value in (("from", width), ("to", rows * width), ("axis", 2))]  # fmt: skip
        window = graph.node("Concat", [graph.node("Slice", [parts[0], *bounds], "kept"), newest], "window", axis=2)
        inputs = [f"row_{row}" for row in range(rows)]
        graph.several("Split", [window], inputs, "window_rows", axis=2, num_outputs=rows)
    else:
        inputs = [window] = [graph.node("Identity", [newest], "window")]
    count = graph.node("Add", ["filled_in", graph.scalar("window_one", 1)], "counted")
    filled = graph.node("Min", [count, graph.scalar("window_rows_most", rows)], "filled_out")
    weights = [_weights(graph, layer, index) for index, layer in enumerate(network.layers)]
    firsts = [_initial(graph, layer, index, filled) for index, layer in enumerate(network.layers)]
    states = [[start for _, start in first] for first in firsts]
    for row, below in enumerate(inputs):
        # the row is in use where at least this many are; the newest always is
        enough = graph.scalar(f"needed_{row}", rows - row - 0.5)
        used = graph.node("Greater", [filled, enough], f"used_{row}") if row < rows - 1 else None
        for index, layer in enumerate(network.layers):
            tag = f"{index}_{row}"
            moved = _move(graph, layer, weights[index], below, states[index], tag)
            if used is not None:
                moved_or_not = zip(moved, firsts[index], layer.state, strict=True)
                moved = [
                    graph.node("Where", [used, value, initial], f"{letter}{tag}_kept")
                    for value, (initial, _), (letter, _, _) in moved_or_not
                ]
            states[index], below = moved, moved[0]  # noqa: PLW2901 - what the next layer is fed
    return [window, filled], states[-1][0]


def _initial(graph: Graph, layer: Layer, index: int, filled: str) -> list[tuple[str, str]]:
    """For each part of the layer's state: its initial values, and the same for each of the N rows."""
    made = []
    for letter, size, first in layer.state:
        values = np.zeros(size, np.float32) if first is None else floats(first)
        initial = graph.weight(f"{letter}{index}_initial", values)
        nothing = graph.node("Mul", [filled, graph.weight(f"{letter}{index}_zeros", np.zeros(size, np.float32))],
                             f"{letter}{index}_nothing")  # fmt: skip
        made.append((initial, graph.node("Add", [nothing, initial], f"{letter}{index}_start")))
    return made


def _weights(graph: Graph, layer: Layer, index: int) -> list[str]:
    """The layer's weights as `_move` wants them."""
    halves = np.split(floats(layer.bias), 2)
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
            ("weight_ih", floats(layer.weight_ih).T),
            ("bias_ih", halves[0]),
            ("weight_hh", floats(layer.weight_hh).T),
            ("bias_hh", halves[1]),
        )
    ]
    if isinstance(layer, Lstm) and layer.projection is not None:
        names.append(graph.weight(f"projection{index}", floats(layer.projection).T))
    return names


def _move(graph: Graph, layer: Layer, weights: list[str], below: str, state: Sequence[str], tag: str) -> list[str]:
    """One step of one layer: the new parts of its state, h first."""
    if isinstance(layer, Gru):
        return _gru(graph, layer, weights, below, state[0], tag)
    if not uses_operator(layer):
        return _lstm_cell(graph, layer, weights, below, state, tag)
    outputs = ["", f"h{tag}_out", f"c{tag}_out"]
    other: dict[str, Any] = {} if layer.activation == "tanh" else {"activations": ["Sigmoid", "Relu", "Relu"]}
    inputs = [below, *weights, "", *state]
    graph.several("LSTM", inputs, outputs, f"lstm{tag}", hidden_size=layer.hidden, **other)
    return outputs[1:]


def _lstm_cell(graph: Graph, layer: Lstm, weights: list[str], below: str, state: Sequence[str], tag: str) -> list[str]:
    activate = ONNX_ACTIVATION[layer.activation]
    gates = graph.node("Add", _products(graph, weights, below, state[0], tag), f"gates{tag}")
    i, f, g, o = (f"{gate}{tag}" for gate in "ifgo")
    graph.several("Split", [gates], [i, f, g, o], f"split{tag}", axis=2, num_outputs=4)
    i, f, o = (graph.node("Sigmoid", [gate], f"{gate}_gate") for gate in (i, f, o))
    fresh = graph.node("Mul", [i, graph.node(activate, [g], f"{g}_in")], f"fresh{tag}")
    c = graph.node("Add", [graph.node("Mul", [f, state[1]], f"kept{tag}"), fresh], f"c{tag}_out")
    h = graph.node("Mul", [o, graph.node(activate, [c], f"active{tag}")], f"wide{tag}")
    return [graph.node("MatMul", [h, weights[4]], f"h{tag}_out"), c]


def _gru(graph: Graph, layer: Gru, weights: list[str], below: str, h: str, tag: str) -> list[str]:
    products = _products(graph, weights, below, h, tag)
    (r, z, n), (r_h, z_h, n_h) = ([f"{gate}{tag}_{source}" for gate in "rzn"] for source in ("input", "before"))
    for product, gates in zip(products, ((r, z, n), (r_h, z_h, n_h)), strict=True):
        graph.several("Split", [product], list(gates), f"{product}_split", axis=2, num_outputs=3)
    r = graph.node("Sigmoid", [graph.node("Add", [r, r_h], f"r{tag}_sum")], f"r{tag}")
    z = graph.node("Sigmoid", [graph.node("Add", [z, z_h], f"z{tag}_sum")], f"z{tag}")
    total = graph.node("Add", [n, graph.node("Mul", [r, n_h], f"n{tag}_reset")], f"n{tag}_sum")
    n = graph.node(ONNX_ACTIVATION[layer.activation], [total], f"n{tag}")
    back = graph.node("Mul", [z, graph.node("Sub", [h, n], f"back{tag}")], f"blend{tag}")
    return [graph.node("Add", [n, back], f"h{tag}_out")]


def _products(graph: Graph, weights: list[str], below: str, h: str, tag: str) -> list[str]:
    """W x + b and R h + b'."""
    return [
        graph.node("Add", [graph.node("MatMul", [given, weight], f"{name}{tag}_product"), bias], f"{name}{tag}")
        for name, given, weight, bias in (("input", below, *weights[:2]), ("before", h, *weights[2:4]))
    ]


def uses_operator(layer: Layer) -> bool:
    """Whether the layer is ONNX's LSTM operator, not in cell form."""
    return isinstance(layer, Lstm) and layer.projection is None


def to_onnx_gates(values: NDArray[Any]) -> Array:
    """Rows i, f, g, o (torch) to i, o, f, c (ONNX)."""
    i, f, g, o = np.split(floats(values), 4)
    return np.concatenate([i, o, f, g])


def from_onnx_gates(values: NDArray[Any]) -> Array:
    """The inverse."""
    i, o, f, g = np.split(floats(values), 4)
    return np.concatenate([i, f, g, o])
