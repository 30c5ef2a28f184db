"""Reads a network specification back from a graph that this package wrote, by the names of weights and nodes.

It trusts the names; `read_network` builds the graph again from the result and compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lstmstream.formats.durations import parse_short_duration
from lstmstream.model import Card
from lstmstream.train.export.cells import from_onnx_gates, named_weight
from lstmstream.train.export.encoder import DAY_MS
from lstmstream.train.export.heads import COLUMNS
from lstmstream.train.export.named_cells import NAMED_CELLS
from lstmstream.train.export.network_spec import (
    HISTORY,
    HISTORY_STATISTICS,
    Activation,
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
)


@dataclass(frozen=True, slots=True)
class _SavedGraph:
    """A graph's weights, nodes and inputs by name, and the model card."""

    weights: dict[str, NDArray[np.float32]]  # initializers by name
    nodes: dict[str, onnx.NodeProto]  # by their first named output
    inputs: frozenset[str]
    card: Card

    def initial_values(self, part_name: str) -> NDArray[np.float32]:
        """The initial values of a part of the state row, flat."""
        part = next(one for one in self.card.state.parts if one.name == part_name)
        values = self.card.state.initial[part.offset : part.offset + int(np.prod(part.shape))]
        return np.array(values, np.float32)

    def operator(self, output: str) -> str:
        """The type of the node that makes `output`; empty where there is none."""
        return str(self.nodes[output].op_type) if output in self.nodes else ""


def parse_network(graph: onnx.GraphProto, card: Card) -> NetworkSpec:
    """The specification that the graph was built from.

    Raises KeyError, IndexError or ValueError where names that every such graph has are missing.
    """
    saved = _SavedGraph(
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer},
        {next(filter(None, node.output)): node for node in graph.node},
        frozenset(value.name for value in graph.input),
        card,
    )
    shapes = {part.name: part.shape for part in card.state.parts}
    window = int(shapes["window"][0]) if "window" in shapes else None
    layers: list[Layer] = []
    while any(name in saved.weights for name in _first_weights(len(layers))):
        layers.append(_parse_layer(saved, len(layers), window))
    return NetworkSpec(_parse_encoder(saved), tuple(layers), _parse_head(saved), window)


def _first_weights(index: int) -> list[str]:
    """A weight that layer `index` has, for each way of writing it."""
    named = [named_weight(cell, index, next(iter(kind.weight_shapes(1, 1)))) for cell, kind in NAMED_CELLS.items()]
    return [f"W{index}", f"weight_ih{index}", *named]


def _parse_encoder(saved: _SavedGraph) -> FeatureEncoder:
    card, weights = saved.card, saved.weights
    elapsed = "elapsed_column" in saved.nodes
    count = len(card.numbers) + elapsed
    logs = weights["wants_log"] if "wants_log" in weights else np.full(count, saved.operator("log") == "Log")
    flagged = weights["flagged"] if "flagged" in weights else range(count if "flags" in saved.nodes else 0)
    centre = weights["centre"].astype(np.float64) if count else np.empty(0)
    scale = 1 / weights["inverse_scale"].astype(np.float64) if count else np.empty(0)
    numbers = tuple(
        Number(feature.name, float(centre[i]), float(scale[i]), bool(logs[i]), i in flagged)
        for i, feature in enumerate(card.numbers)
    )
    categories = tuple(
        Category(feature.name, weights[f"table_{index}"], feature.vocabulary, feature.buckets)
        for index, feature in enumerate(card.categories)
    )
    waves = int(weights["clock_to"][0]) if "timestamp" in saved.inputs else 0
    hour = waves > 0 and int(weights["periods"][0]) == DAY_MS
    return FeatureEncoder(
        numbers,
        categories,
        Elapsed(float(centre[-1]), float(scale[-1])) if elapsed else None,
        hour_of_day=hour,
        day_of_week=waves > 2 * hour,
        limit=float(weights["highest"]) if count else FeatureEncoder().limit,
        history=_parse_history(saved) if "history_columns" in weights else None,
    )


def _parse_history(saved: _SavedGraph) -> History:
    weights, last = saved.weights, f".{HISTORY_STATISTICS[0]}"
    names = [part.name for part in saved.card.state.parts if part.name.startswith(f"{HISTORY}.")]
    windows = [name.removesuffix(last).rpartition(".")[2] for name in names if name.endswith(last)]
    columns = tuple(int(column) for column in weights["history_columns"])
    return History(
        columns,
        tuple(map(parse_short_duration, windows)),
        tuple(float(value) for value in weights["history_centre"]),
        tuple(float(value) for value in 1 / weights["history_inverse_scale"].astype(np.float64)),
    )


def _parse_layer(saved: _SavedGraph, index: int, window: int | None) -> Layer:
    weights = saved.weights
    tag = f"{index}" if window is None else f"{index}_0"

    def all_initial(letter: str) -> Array:
        name = f"{letter}{index}"
        return saved.initial_values(name) if window is None else weights[f"{name}_initial"]

    def initial(letter: str) -> Array | None:
        values = all_initial(letter)
        return values if values.any() else None

    for cell, kind in NAMED_CELLS.items():
        names = {name: named_weight(cell, index, name) for name in kind.weight_shapes(1, 1)}
        if all(full in weights for full in names.values()):
            arrays = {name: np.ascontiguousarray(weights[full].T) for name, full in names.items()}
            values = {letter: all_initial(letter) for letter, _, _ in kind.state}
            return NamedLayer(cell, arrays, values)
    if f"W{index}" in weights:
        activations = [
            text for one in saved.nodes[f"h{tag}_out"].attribute if one.name == "activations" for text in one.strings
        ]
        weight_ih, weight_hh = (from_onnx_gates(weights[f"{name}{index}"][0]) for name in "WR")
        bias = np.concatenate([from_onnx_gates(half) for half in np.split(weights[f"B{index}"][0], 2)])
        activation: Activation = "relu" if b"Relu" in activations else "tanh"
        return Lstm(weight_ih, weight_hh, bias, initial("h"), initial("c"), activation=activation)
    weight_ih, weight_hh = (np.ascontiguousarray(weights[f"weight_{which}{index}"].T) for which in ("ih", "hh"))
    bias = np.concatenate([weights[f"bias_{which}{index}"] for which in ("ih", "hh")])
    if f"projection{index}" in weights:
        projection = np.ascontiguousarray(weights[f"projection{index}"].T)
        return Lstm(
            weight_ih, weight_hh, bias, initial("h"), initial("c"), projection, _activation_of(saved, f"active{tag}")
        )
    return Gru(weight_ih, weight_hh, bias, _activation_of(saved, f"n{tag}"), initial("h"))


def _activation_of(saved: _SavedGraph, output: str) -> Activation:
    return "relu" if saved.operator(output) == "Relu" else "tanh"


def _parse_head(saved: _SavedGraph) -> HeadSpec:
    weights = saved.weights
    weight, bias = weights["head_weight"], weights["head_bias"]
    if saved.operator("surprise"):
        initial_level = float(saved.initial_values("power")[0]) ** 0.25
        calibration = Calibration(initial_level, float(weights["unit"]), float(weights["alpha"]))
        columns = tuple(int(column) for column in weights[COLUMNS])
        return AnomalyHead(weight, bias, columns, calibration, residual=saved.operator("means") == "Add")
    if COLUMNS in weights:
        all_columns = [int(column) for column in weights[COLUMNS]]
        columns = tuple(dict.fromkeys(all_columns))
        horizon = len(all_columns) // len(columns)
        return ForecastHead(weight, bias, columns, horizon, residual=saved.operator("now") == "Gather")
    activations = {"Sigmoid": "sigmoid", "Softmax": "softmax"}
    return DenseHead(weight, bias, activations.get(saved.operator("prediction"), "none"))  # type: ignore[arg-type]
