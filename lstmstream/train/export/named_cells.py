"""The cells without an ONNX operator: their weights, their states and one step of each as graph nodes.

Tensors have the axes [1, N, width], as in cells.py. A matrix [out, in] is written transposed, for x W + b.
Every function of one step is in train/recurrent_layers.py again, in torch.

    mingru    z = sigmoid(W_z x + b_z);  h' = h + z (g(W_h x + b_h) - h)
    minlstm   f, i = sigmoid(...);  h' = f / (f + i) h + i / (f + i) g(W_h x + b_h)
              both of Feng et al. 2024, "Were RNNs All We Needed?", with their g, which is positive:
              g(v) = v + 1/2 for v >= 0, else sigmoid(v). The gates of minlstm are clipped to +-20 before the sigmoid.
    slstm     i = exp(cap(i~)), f = sigmoid(f~), z = tanh(z~), o = sigmoid(o~), each of W x + R h + b;
              m' = max(log f + m, log i);  c' = exp(log f + m - m') c + exp(log i - m') z;  n' the same with 1 for z;
              h' = o c' / n'. Beck et al. 2024, "xLSTM", with one head; cap(v) = 15 tanh(v / 15) as in xLSTM 7B,
              without which one outlier is remembered for ever. n is at least 1 after the first event.
    s4d       u = W_in x + b_in; for each of two modes of a unit s' = p s + q u, complex;
              y = sum over modes of Re(C s') + D u;  [a, b] = W_out (y sigmoid(y)) + b_out;  output = u + a sigmoid(b).
              Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models": p = exp(d A)
              and q = (p - 1) / A by zero-order hold, A = -1/2 + i w, d and w trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lstmstream.train.export.graph import VECTOR_COLUMNS, GraphBuilder

GATE_LIMIT = 20.0  # minlstm: exp(20) is far from the end of float32
GATE_CAP = 15.0  # slstm
EMPTY_LOG = -100.0  # slstm: m of a new key, below any log i
S4D_MODES = 2  # complex states of each unit

CellName = Literal["lstm", "gru", "mingru", "minlstm", "slstm", "s4d"]
Shapes = dict[str, tuple[int, ...]]
# graph, the names of the weights, x, the parts of the state, H, tag -> the output, the new parts of the state
AddStep = Callable[[GraphBuilder, Mapping[str, str], str, Sequence[str], int, str], tuple[str, list[str]]]


@dataclass(frozen=True, slots=True)
class CellKind:
    """A cell: what it needs and how its step is written."""

    state: tuple[tuple[str, int, float], ...]  # letter, values for each unit, initial value
    weight_shapes: Callable[[int, int], Shapes]  # of (inputs, hidden), by name
    add_step: AddStep


def _mingru_shapes(inputs: int, hidden: int) -> Shapes:
    return {"weight": (2 * hidden, inputs), "bias": (2 * hidden,)}


def _minlstm_shapes(inputs: int, hidden: int) -> Shapes:
    return {"weight": (3 * hidden, inputs), "bias": (3 * hidden,)}


def _slstm_shapes(inputs: int, hidden: int) -> Shapes:
    return {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden), "bias": (4 * hidden,)}


def _s4d_shapes(inputs: int, hidden: int) -> Shapes:
    modes = {f"{name}_{part}": (S4D_MODES * hidden,) for name in ("pole", "gain", "readout") for part in ("re", "im")}
    return {
        "weight_in": (hidden, inputs),
        "bias_in": (hidden,),
        **modes,
        "skip": (hidden,),
        "weight_out": (2 * hidden, hidden),
        "bias_out": (2 * hidden,),
    }


def _add_mingru(
    graph: GraphBuilder, weights: Mapping[str, str], inputs: str, state: Sequence[str], _: int, tag: str
) -> tuple[str, list[str]]:
    z, candidate = f"z{tag}_sum", f"candidate{tag}_sum"
    gates = _add_linear(graph, inputs, weights["weight"], weights["bias"], f"gates{tag}")
    graph.multi_output_node("Split", [gates], [z, candidate], f"split{tag}", axis=2, num_outputs=2)
    h = _add_blend(graph, state[0], graph.node("Sigmoid", [z], f"z{tag}"), _add_positive(graph, candidate, tag), tag)
    return h, [h]


def _add_minlstm(
    graph: GraphBuilder, weights: Mapping[str, str], inputs: str, state: Sequence[str], hidden: int, tag: str
) -> tuple[str, list[str]]:
    both, candidate, f, i = f"both{tag}_sum", f"candidate{tag}_sum", f"f{tag}_inverse", f"i{tag}_inverse"
    gates = _add_linear(graph, inputs, weights["weight"], weights["bias"], f"gates{tag}")
    sizes = graph.weight(f"sizes{tag}", np.array([2 * hidden, hidden], np.int64))
    graph.multi_output_node("Split", [gates, sizes], [both, candidate], f"split{tag}", axis=2)
    low, high = graph.scalar(f"lowest_gate{tag}", -GATE_LIMIT), graph.scalar(f"highest_gate{tag}", GATE_LIMIT)
    negative = graph.node("Neg", [graph.node("Clip", [both, low, high], f"both{tag}_clipped")], f"both{tag}_negative")
    one = graph.scalar(f"one{tag}", 1)
    inverse = graph.node("Add", [graph.node("Exp", [negative], f"both{tag}_exp"), one], f"both{tag}_inverse")
    graph.multi_output_node("Split", [inverse], [f, i], f"split{tag}_gates", axis=2, num_outputs=2)
    share = graph.node("Div", [f, graph.node("Add", [f, i], f"total{tag}")], f"share{tag}")  # i / (f + i)
    h = _add_blend(graph, state[0], share, _add_positive(graph, candidate, tag), tag)
    return h, [h]


def _add_slstm(
    graph: GraphBuilder, weights: Mapping[str, str], inputs: str, state: Sequence[str], hidden: int, tag: str
) -> tuple[str, list[str]]:
    _, c, n, m = state
    from_input = _add_linear(graph, inputs, weights["weight_ih"], weights["bias"], f"input{tag}")
    before = graph.node("MatMul", [state[0], weights["weight_hh"]], f"before{tag}")
    i, f, z, o = (f"{gate}{tag}_sum" for gate in "ifzo")
    gates = graph.node("Add", [from_input, before], f"gates{tag}")
    graph.multi_output_node("Split", [gates], [i, f, z, o], f"split{tag}", axis=2, num_outputs=4)
    cap = graph.scalar(f"cap{tag}", GATE_CAP)
    bounded = graph.node("Tanh", [graph.node("Div", [i, cap], f"i{tag}_small")], f"i{tag}_bounded")
    log_i = graph.node("Mul", [bounded, cap], f"i{tag}_log")
    kept = graph.node("Add", [_add_log_sigmoid(graph, f, hidden, tag), m], f"kept{tag}_log")
    new_m = graph.node("Max", [kept, log_i], f"m{tag}_out")
    keep = graph.node("Exp", [graph.node("Sub", [kept, new_m], f"keep{tag}_log")], f"keep{tag}")
    write = graph.node("Exp", [graph.node("Sub", [log_i, new_m], f"write{tag}_log")], f"write{tag}")
    fresh = graph.node("Mul", [write, graph.node("Tanh", [z], f"z{tag}")], f"fresh{tag}")
    new_c = graph.node("Add", [graph.node("Mul", [keep, c], f"c{tag}_kept_part"), fresh], f"c{tag}_out")
    new_n = graph.node("Add", [graph.node("Mul", [keep, n], f"n{tag}_kept_part"), write], f"n{tag}_out")
    mean = graph.node("Div", [new_c, new_n], f"mean{tag}")
    h = graph.node("Mul", [graph.node("Sigmoid", [o], f"o{tag}"), mean], f"h{tag}_out")
    return h, [h, new_c, new_n, new_m]


def _add_s4d(
    graph: GraphBuilder, weights: Mapping[str, str], inputs: str, state: Sequence[str], _: int, tag: str
) -> tuple[str, list[str]]:
    def product(one: str, other: str, name: str) -> str:
        return graph.node("Mul", [one, other], f"{name}{tag}")

    re, im = state
    u = _add_linear(graph, inputs, weights["weight_in"], weights["bias_in"], f"input{tag}")
    repeated = graph.node("Concat", [u] * S4D_MODES, f"repeated{tag}", axis=2)
    turned_re = graph.node(
        "Sub", [product(re, weights["pole_re"], "re_re"), product(im, weights["pole_im"], "im_im")], f"turned_re{tag}"
    )
    turned_im = graph.node(
        "Add", [product(re, weights["pole_im"], "re_im"), product(im, weights["pole_re"], "im_re")], f"turned_im{tag}"
    )
    new_re = graph.node("Add", [turned_re, product(repeated, weights["gain_re"], "fresh_re")], f"re{tag}_out")
    new_im = graph.node("Add", [turned_im, product(repeated, weights["gain_im"], "fresh_im")], f"im{tag}_out")
    read = [product(new_re, weights["readout_re"], "read_re"), product(new_im, weights["readout_im"], "read_im")]
    modes = [f"mode{mode}_{tag}" for mode in range(S4D_MODES)]
    by_mode = graph.node("Sub", read, f"read{tag}")
    graph.multi_output_node("Split", [by_mode], modes, f"split{tag}_modes", axis=2, num_outputs=S4D_MODES)
    y = product(u, weights["skip"], "skipped")
    for mode in modes:
        y = graph.node("Add", [y, mode], f"{mode}_added")
    v = product(y, graph.node("Sigmoid", [y], f"swish{tag}_gate"), "swish")
    a, b = f"a{tag}", f"b{tag}"
    mixed = _add_linear(graph, v, weights["weight_out"], weights["bias_out"], f"mixed{tag}")
    graph.multi_output_node("Split", [mixed], [a, b], f"split{tag}_mixed", axis=2, num_outputs=2)
    change = product(a, graph.node("Sigmoid", [b], f"b{tag}_gate"), "change")
    return graph.node("Add", [u, change], f"h{tag}_out"), [new_re, new_im]


def _add_linear(graph: GraphBuilder, inputs: str, weight: str, bias: str, name: str) -> str:
    return graph.node("Add", [graph.node("MatMul", [inputs, weight], f"{name}_product"), bias], name)


def _add_blend(graph: GraphBuilder, h: str, share: str, candidate: str, tag: str) -> str:
    """Adds h + share (candidate - h)."""
    change = graph.node("Mul", [share, graph.node("Sub", [candidate, h], f"change{tag}")], f"blend{tag}")
    return graph.node("Add", [h, change], f"h{tag}_out")


def _add_positive(graph: GraphBuilder, value: str, tag: str) -> str:
    """Adds g of the module's docstring, as relu(v) + sigmoid(min(v, 0))."""
    negative = graph.node("Min", [value, graph.scalar(f"nothing{tag}", 0)], f"candidate{tag}_negative")
    small = graph.node("Sigmoid", [negative], f"candidate{tag}_small")
    return graph.node("Add", [graph.node("Relu", [value], f"candidate{tag}_large"), small], f"candidate{tag}")


def _add_log_sigmoid(graph: GraphBuilder, value: str, hidden: int, tag: str) -> str:
    """Adds min(v, 0) - log(1 + exp(-|v|)).

    On fewer than a multiple of 16 columns the bits of a row's Log depend on the rows beside it.
    """
    negative = graph.node("Neg", [graph.node("Abs", [value], f"f{tag}_absolute")], f"f{tag}_negative")
    one = graph.scalar(f"one{tag}", 1)
    total = graph.node("Add", [graph.node("Exp", [negative], f"f{tag}_exp"), one], f"f{tag}_total")
    spare = -hidden % VECTOR_COLUMNS
    if spare:
        total = graph.node(
            "Pad", [total, graph.weight(f"spare{tag}", np.array([0, 0, 0, 0, 0, spare], np.int64)), one], f"pad{tag}"
        )
    logs = graph.node("Log", [total], f"f{tag}_logs")
    if spare:
        bounds = [
            graph.weight(f"log{tag}_{name}", np.array([bound], np.int64))
            for name, bound in (("from", 0), ("to", hidden), ("axis", 2))
        ]
        logs = graph.node("Slice", [logs, *bounds], f"f{tag}_logs_kept")
    lowest = graph.node("Min", [value, graph.scalar(f"nothing{tag}", 0)], f"f{tag}_lowest")
    return graph.node("Sub", [lowest, logs], f"f{tag}_log")


NAMED_CELLS: dict[CellName, CellKind] = {
    "mingru": CellKind((("h", 1, 0.0),), _mingru_shapes, _add_mingru),
    "minlstm": CellKind((("h", 1, 0.0),), _minlstm_shapes, _add_minlstm),
    "slstm": CellKind((("h", 1, 0.0), ("c", 1, 0.0), ("n", 1, 0.0), ("m", 1, EMPTY_LOG)), _slstm_shapes, _add_slstm),
    "s4d": CellKind((("re", S4D_MODES, 0.0), ("im", S4D_MODES, 0.0)), _s4d_shapes, _add_s4d),
}
