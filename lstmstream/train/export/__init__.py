"""Weights to a model file: writes the step graph node by node, so that the same weights give the same bytes.

Needs numpy and onnx, not torch: weights come as plain arrays in torch's layout. Does not train and reads no data.

The network, for one event of one key (N events of N keys at once; the state row is h0, c0, h1, c1, ...):

    encoder    x, elapsed, timestamp, categories -> one row of inputs, in this order
                 1. each number: log1p if asked (sign(v) * log(1 + |v|)), less `centre`, by `scale`; missing -> 0;
                    then cut to +-`limit`
                 2. elapsed: treated the same, as log1p of seconds
                 3. a column for each number with `flag_missing`: 1 where it is missing, else 0;
                    then one for elapsed: 1 on the key's first event
                 4. hour of day: sin, cos (0 at midnight UTC); day of week: sin, cos (0 at Monday 00:00 UTC); continuous
                 5. each category's row of its table (row 0: unknown or missing)
    layers     LSTM or GRU, each fed by the one before (cells.py); with a window, over the key's last T events
    head       linear, then sigmoid (one class: score is its probability), softmax (class 0 is the usual one:
               score is 1 - its probability), or nothing (score is the first column);
               or a forecast (score is its first column), or an anomaly score (heads.py)

A row's result has the same bits in whatever batch. Of the operators used only Log and Sin would break that, on narrow
tensors, because onnxruntime computes whole vectors differently from what is left over: both get a multiple of 16
columns.
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
from lstmstream.train.export.cells import run_layers
from lstmstream.train.export.checks import validate
from lstmstream.train.export.encoder import encode
from lstmstream.train.export.graph import IR, OPSET, Graph
from lstmstream.train.export.heads import finish
from lstmstream.train.export.parts import (
    AnomalyHead,
    AnyHead,
    Array,
    Calibration,
    Category,
    Elapsed,
    Encoder,
    ForecastHead,
    Gru,
    Head,
    Layer,
    Lstm,
    Network,
    Number,
    floats,
)
from lstmstream.train.export.recover import parse_network

__all__ = [
    "OPSET", "OUTPUTS", "AnomalyHead", "AnyHead", "Array", "Calibration", "Category", "Elapsed", "Encoder",
    "ForecastHead", "Gru", "Head", "Layer", "Lstm", "Network", "Number",
    "build", "export", "gru_layers", "lstm_layers", "read_network",
]  # fmt: skip

OUTPUTS = ("state_out", "score", "prediction")


def lstm_layers(state_dict: Mapping[str, Any], prefix: str = "") -> tuple[Lstm, ...]:
    """The layers under `prefix` of a state dict of torch.nn.LSTM, given as arrays (`tensor.numpy()`).

    Raises ValueError for what a step cannot be (bidirectional).
    """
    layers = []
    for index, (weight_ih, weight_hh, bias) in enumerate(_rnn_weights(state_dict, prefix, "LSTM")):
        projection = state_dict.get(f"{prefix}weight_hr_l{index}")
        layers.append(Lstm(weight_ih, weight_hh, bias, projection=None if projection is None else floats(projection)))
    return tuple(layers)


def gru_layers(state_dict: Mapping[str, Any], prefix: str = "") -> tuple[Gru, ...]:
    """The same for torch.nn.GRU."""
    return tuple(Gru(*weights) for weights in _rnn_weights(state_dict, prefix, "GRU"))


def _rnn_weights(state_dict: Mapping[str, Any], prefix: str, kind: str) -> list[tuple[Array, Array, Array]]:
    names = {name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
    layers: list[tuple[Array, Array, Array]] = []
    while f"weight_ih_l{len(layers)}" in names:
        index = len(layers)
        if f"weight_ih_l{index}_reverse" in names:
            raise ValueError(f"{prefix}weight_ih_l{index}_reverse: bidirectional; a stream has no events from the end")
        weight_ih, weight_hh = (floats(state_dict[f"{prefix}weight_{which}_l{index}"]) for which in ("ih", "hh"))
        zeros = np.zeros(weight_hh.shape[0], np.float32)  # bias=False
        biases = [floats(state_dict.get(f"{prefix}bias_{which}_l{index}", zeros)) for which in ("ih", "hh")]
        layers.append((weight_ih, weight_hh, np.concatenate(biases)))
    if not layers:
        raise ValueError(f"no {kind} under {prefix!r}: there is no {prefix}weight_ih_l0")
    return layers


def export(
    path: str | Path,
    network: Network,
    *,
    name: str,
    version: str,
    task: Literal["anomaly", "classify", "forecast"] | None = None,
    threshold: float | None = None,
    training: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
) -> Card:
    """Writes the model file and returns its card. Without `task` the head says it (classify for a plain one).

    Raises ValueError for weights that do not fit together.
    """
    return write_model(
        path,
        build(network).SerializeToString(deterministic=True),
        Card(
            name=name,
            version=version,
            task=task or _task(network.head),
            features=network.features,
            state=network.state,
            outputs=OUTPUTS,
            threshold=threshold,
            training=training or {},
            reference=reference or {},
        ),
    )


def build(network: Network) -> onnx.ModelProto:
    """The step graph, without a card. Raises ValueError for weights that do not fit together."""
    validate(network)
    encoder, graph = network.encoder, Graph()
    inputs, size = [], network.state.size
    if encoder.numbers:
        inputs.append(graph.declare("x", TensorProto.FLOAT, len(encoder.numbers)))
    if encoder.categories:
        inputs.append(graph.declare("categories", TensorProto.INT64, len(encoder.categories)))
    if encoder.hour_of_day or encoder.day_of_week:
        inputs.append(graph.declare("timestamp", TensorProto.INT64))
    if encoder.elapsed is not None:
        inputs.append(graph.declare("elapsed", TensorProto.FLOAT))
    inputs.append(graph.declare("state", TensorProto.FLOAT, size))
    predicted = finish(graph, encoder, network.head, run_layers(graph, network, encode(graph, encoder)))
    outputs = [
        graph.declare("state_out", TensorProto.FLOAT, size),
        graph.declare("score", TensorProto.FLOAT),
        graph.declare("prediction", TensorProto.FLOAT, predicted),
    ]
    proto = helper.make_graph(graph.nodes, "step", inputs, outputs, graph.weights)
    return helper.make_model(proto, ir_version=IR, opset_imports=[helper.make_opsetid("", OPSET)])


def read_network(model: Model) -> Network:
    """The network in a model file that `export` wrote: building it again gives the same graph.

    Raises CannotServe for any other model file.
    """
    graph = onnx.load_model_from_string(model.content).graph
    try:
        network = parse_network(graph, model.card)
        again = build(network).graph
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise _not_ours(model) from error
    if again.SerializeToString(deterministic=True) != graph.SerializeToString(deterministic=True):
        raise _not_ours(model)
    return network


def _not_ours(model: Model) -> CannotServe:
    return CannotServe(
        f"model {model.path}: its weights cannot be read back, because lstmstream train did not write it;"
        " give a model file that it wrote, or train anew"
    )


def _task(head: AnyHead) -> Literal["anomaly", "classify", "forecast"]:
    if isinstance(head, ForecastHead):
        return "forecast"
    return "anomaly" if isinstance(head, AnomalyHead) else "classify"
