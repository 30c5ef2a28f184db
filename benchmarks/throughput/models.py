"""One set of weights in two files: the product's model, and the plain step graph that the peers run.

The plain graph is what an export of the bare network gives: per layer one LSTM operator with a sequence of one, a dense
head and a sigmoid. The product's graph also replaces missing values and bounds the inputs, and so does a little more.
Both take `x` [N, 8] and `state` [N, S], and return `state_out` [N, S] and `score` [N]; a row of the state is h and c of
the first layer, then of the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.throughput.workload import FEATURES
from lstmstream.train.export import DenseHead, FeatureEncoder, Lstm, NetworkSpec, Number, export

OPSET = 18


@dataclass(frozen=True, slots=True)
class Models:
    """The two files, and the number of values in a state row."""

    product: Path
    plain: Path
    state_size: int


def write_models(folder: Path, *, hidden: int, layers: int) -> Models:
    """Write both files. The weights are random, and the same for the same sizes."""
    random = np.random.default_rng(3)
    bound = 1 / np.sqrt(hidden)

    def weights(*shape: int) -> Any:
        return random.uniform(-bound, bound, shape).astype(np.float32)

    widths = [len(FEATURES)] + [hidden] * (layers - 1)
    recurrent = tuple(
        Lstm(weights(4 * hidden, width), weights(4 * hidden, hidden), weights(8 * hidden)) for width in widths
    )
    head = DenseHead(weights(1, hidden), weights(1), "sigmoid")
    encoder = FeatureEncoder(numbers=tuple(Number(name) for name in FEATURES))
    models = Models(folder / "product.onnx", folder / "plain.onnx", 2 * hidden * layers)
    export(models.product, NetworkSpec(encoder, recurrent, head), name="throughput", version="1")
    onnx.save(_plain_graph(recurrent, head, hidden), models.plain)
    return models


def _plain_graph(layers: tuple[Lstm, ...], head: DenseHead, hidden: int) -> onnx.ModelProto:
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[-1]

    first_axis = constant("first_axis", np.array([0], np.int64))
    parts = [f"{letter}{number}" for number in range(len(layers)) for letter in "hc"]
    node("Split", ["state", constant("sizes", np.full(len(parts), hidden, np.int64))], parts, axis=1)
    below = "x"
    for number, layer in enumerate(layers):
        gates = [_onnx_gates(values) for values in (layer.weight_ih, layer.weight_hh, *np.split(layer.bias, 2))]
        sequence = node("Unsqueeze", [below, first_axis], [f"sequence{number}"])
        before = [node("Unsqueeze", [f"{part}{number}", first_axis], [f"{part}{number}_before"]) for part in "hc"]
        fixed = [
            constant(f"w{number}", gates[0][None]),
            constant(f"r{number}", gates[1][None]),
            constant(f"b{number}", np.concatenate(gates[2:])[None]),
        ]
        after = [f"h{number}_after", f"c{number}_after"]
        node("LSTM", [sequence, *fixed, "", *before], ["", *after], hidden_size=hidden)
        for part, name in zip("hc", after, strict=True):
            node("Squeeze", [name, first_axis], [f"{part}{number}_out"])
        below = f"h{number}_out"
    node("Concat", [f"{part}_out" for part in parts], ["state_out"], axis=1)
    node("Gemm", [below, constant("head", head.weight.T), constant("head_bias", head.bias)], ["logit"])
    node("Sigmoid", ["logit"], ["scores"])
    node("Squeeze", ["scores", constant("last_axis", np.array([1], np.int64))], ["score"])

    def tensor(name: str, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    size = hidden * len(parts)
    graph = helper.make_graph(
        nodes,
        "plain_step",
        [tensor("x", "N", len(FEATURES)), tensor("state", "N", size)],
        [tensor("state_out", "N", size), tensor("score", "N")],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _onnx_gates(values: Any) -> Any:
    """From torch's order of gates (i, f, g, o) to ONNX's (i, o, f, g)."""
    i, f, g, o = np.split(values, 4)
    return np.concatenate([i, o, f, g])
