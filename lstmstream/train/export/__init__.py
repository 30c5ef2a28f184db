"""Weights to a model file: writes the step graph node by node, so that the same weights give the same bytes.

Needs numpy and onnx, not torch: weights come as plain arrays in torch's layout. Does not train and reads no data.

The network for one event of each of N keys; the state row is what the layers (of an LSTM h0, c0,
h1, c1, ...), then head and history keep:

    encoder    x, elapsed, timestamp, categories -> one row of inputs for each event, in this order
                 1. each number: sign(v) * log(1 + |v|) with `log`; minus `centre`, divided by `scale`; 0 where it is
                    missing; then clipped to +-`limit`
                 2. elapsed: the same, always with `log`, in seconds
                 3. for each number with `flag_missing` a column that is 1 where it is missing, else 0;
                    then one for elapsed that is 1 on the key's first event
                 4. hour of day: sin, cos (phase 0 at midnight UTC); day of week: sin, cos (phase 0 on Monday 00:00 UTC)
                 5. statistics of the key's earlier events (key_history.py), which are in the state row
                 6. for each category its row of the embedding table (row 0: unknown or missing)
    layers     stacked LSTM or GRU layers (cells.py), or others (named_cells.py); with a window, over the last T events
    head       dense, with sigmoid (score is the probability of the one class), softmax (class 0 is the usual class;
               score is 1 minus its probability) or no activation (score is the first column);
               or a forecast (score is its first column), or an anomaly score (heads.py)

The result of a row has the same bits in any batch. Among the operators used, only Log and Sin would break that, on
narrow tensors, because onnxruntime computes full vectors differently from the remainder. Both are therefore applied to
a multiple of 16 columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from lstmstream.errors import CannotServe
from lstmstream.model import Card, Model, write_model
from lstmstream.train.export.cells import add_recurrent_layers
from lstmstream.train.export.checks import validate
from lstmstream.train.export.encoder import add_encoder_nodes
from lstmstream.train.export.graph import IR_VERSION, OPSET, GraphBuilder
from lstmstream.train.export.heads import add_head
from lstmstream.train.export.key_history import HISTORY_STATE, HISTORY_STATE_OUT
from lstmstream.train.export.network_spec import (
    AnomalyHead,
    Array,
    Calibration,
    Category,
    DenseHead,
    Elapsed,
    FeatureEncoder,
    ForecastHead,
    Gru,
    HeadSpec,
    History,
    Layer,
    Lstm,
    NamedLayer,
    NetworkSpec,
    Number,
    as_float32,
)
from lstmstream.train.export.parse import parse_network

__all__ = [
    "OPSET",
    "OUTPUTS",
    "AnomalyHead",
    "Array",
    "Calibration",
    "Category",
    "DenseHead",
    "Elapsed",
    "FeatureEncoder",
    "ForecastHead",
    "Gru",
    "HeadSpec",
    "History",
    "Layer",
    "Lstm",
    "NamedLayer",
    "NetworkSpec",
    "Number",
    "build",
    "export",
    "gru_layers",
    "lstm_layers",
    "read_network",
]  # fmt: skip

OUTPUTS = ("state_out", "score", "prediction")


def lstm_layers(state_dict: Mapping[str, Any], prefix: str = "") -> tuple[Lstm, ...]:
    """The layers under `prefix` in a state dict of torch.nn.LSTM, whose values are arrays (`tensor.numpy()`).

    Raises ValueError for bidirectional layers, which no step can compute, and where there is no layer.
    """
    layers = []
    for index, (weight_ih, weight_hh, bias) in enumerate(_rnn_weights(state_dict, prefix, "LSTM")):
        projection = state_dict.get(f"{prefix}weight_hr_l{index}")
        layers.append(
            Lstm(weight_ih, weight_hh, bias, projection=None if projection is None else as_float32(projection))
        )
    return tuple(layers)


def gru_layers(state_dict: Mapping[str, Any], prefix: str = "") -> tuple[Gru, ...]:
    """The layers under `prefix` in a state dict of torch.nn.GRU; otherwise as `lstm_layers`."""
    return tuple(Gru(*weights) for weights in _rnn_weights(state_dict, prefix, "GRU"))


def _rnn_weights(state_dict: Mapping[str, Any], prefix: str, kind: str) -> list[tuple[Array, Array, Array]]:
    names = {name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
    layers: list[tuple[Array, Array, Array]] = []
    while f"weight_ih_l{len(layers)}" in names:
        index = len(layers)
        if f"weight_ih_l{index}_reverse" in names:
            raise ValueError(
                f"{prefix}weight_ih_l{index}_reverse: bidirectional; a stream has no end to read back from"
            )
        weight_ih, weight_hh = (as_float32(state_dict[f"{prefix}weight_{which}_l{index}"]) for which in ("ih", "hh"))
        zeros = np.zeros(weight_hh.shape[0], np.float32)  # bias=False
        biases = [as_float32(state_dict.get(f"{prefix}bias_{which}_l{index}", zeros)) for which in ("ih", "hh")]
        layers.append((weight_ih, weight_hh, np.concatenate(biases)))
    if not layers:
        raise ValueError(f"no {kind} under {prefix!r}: there is no {prefix}weight_ih_l0")
    return layers


def export(
    path: str | Path,
    spec: NetworkSpec,
    *,
    name: str,
    version: str,
    task: Literal["anomaly", "classify", "forecast"] | None = None,
    threshold: float | None = None,
    training: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
) -> Card:
    """Writes the model file to `path` and returns its card. `task` defaults to the head's (a dense head classifies).

    Raises ValueError for arrays that do not fit together, CannotServe for weights that are not finite.
    """
    return write_model(
        path,
        build(spec).SerializeToString(deterministic=True),
        Card(
            name=name,
            version=version,
            task=task or _default_task(spec.head),
            features=spec.features,
            state=spec.state,
            outputs=OUTPUTS,
            threshold=threshold,
            training=training or {},
            reference=reference or {},
        ),
    )


def build(spec: NetworkSpec) -> onnx.ModelProto:
    """The step graph as an ONNX model without a card. Raises ValueError for arrays that do not fit together."""
    validate(spec)
    encoder, graph = spec.encoder, GraphBuilder()
    inputs, size = [], spec.state.size
    if encoder.numbers:
        inputs.append(graph.value_info("x", TensorProto.FLOAT, len(encoder.numbers)))
    if encoder.categories:
        inputs.append(graph.value_info("categories", TensorProto.INT64, len(encoder.categories)))
    if encoder.hour_of_day or encoder.day_of_week:
        inputs.append(graph.value_info("timestamp", TensorProto.INT64))
    if encoder.elapsed is not None or encoder.history is not None:
        inputs.append(graph.value_info("elapsed", TensorProto.FLOAT))
    inputs.append(graph.value_info("state", TensorProto.FLOAT, size))
    network_state, network_out = ("state", "state_out") if encoder.history is None else _split_off_history(graph, spec)
    hidden = add_recurrent_layers(graph, spec, add_encoder_nodes(graph, encoder), network_state, network_out)
    predicted = add_head(graph, encoder, spec.head, hidden, network_out)
    if encoder.history is not None:
        graph.node("Concat", [network_out, HISTORY_STATE_OUT], "state_out", axis=1)
    outputs = [
        graph.value_info("state_out", TensorProto.FLOAT, size),
        graph.value_info("score", TensorProto.FLOAT),
        graph.value_info("prediction", TensorProto.FLOAT, predicted),
    ]
    proto = helper.make_graph(graph.nodes, "step", inputs, outputs, graph.weights)
    return helper.make_model(proto, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])


def _split_off_history(graph: GraphBuilder, spec: NetworkSpec) -> tuple[str, str]:
    """Adds HISTORY_STATE, the end of the state row; returns the names of the rest of the row, before and after."""
    history = spec.history_state_size
    sizes = graph.weight("state_sizes", np.array([spec.state.size - history, history], np.int64))
    graph.multi_output_node("Split", ["state", sizes], ["network_state", HISTORY_STATE], "state_split", axis=1)
    return "network_state", "network_state_out"


def read_network(model: Model) -> NetworkSpec:
    """The network in a model file that `export` wrote; building it again gives the same graph, bit for bit.

    Raises CannotServe for any other model file.
    """
    graph = onnx.load_model_from_string(model.content).graph
    try:
        spec = parse_network(graph, model.card)
        rebuilt = build(spec).graph
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise _not_exported(model) from error
    if rebuilt.SerializeToString(deterministic=True) != graph.SerializeToString(deterministic=True):
        raise _not_exported(model)
    return spec


def _not_exported(model: Model) -> CannotServe:
    return CannotServe(
        f"model {model.path}: its weights cannot be read back, because lstmstream train did not write it;"
        " give a model file that it wrote, or train a new model"
    )


def _default_task(head: HeadSpec) -> Literal["anomaly", "classify", "forecast"]:
    if isinstance(head, ForecastHead):
        return "forecast"
    return "anomaly" if isinstance(head, AnomalyHead) else "classify"
