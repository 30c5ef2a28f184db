"""A network back from the graph that this package wrote of it, by the names of weights and nodes.

Believes the names; export.read_network builds the result again and compares.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lstmstream.model import Card
from lstmstream.train.export.cells import from_onnx_gates
from lstmstream.train.export.encoder import DAY_MS
from lstmstream.train.export.heads import COLUMNS
from lstmstream.train.export.parts import (
    Activation,
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
)


@dataclass(frozen=True, slots=True)
class _File:
    weights: dict[str, NDArray[np.float32]]  # initializers by name
    nodes: dict[str, onnx.NodeProto]  # by their first output that has a name
    inputs: frozenset[str]
    card: Card

    def first(self, part: str) -> NDArray[np.float32]:
        """The initial values of a part of the state row."""
        found = next(one for one in self.card.state.parts if one.name == part)
        values = self.card.state.initial[found.offset : found.offset + int(np.prod(found.shape))]
        return np.array(values, np.float32)

    def operator(self, output: str) -> str:
        return str(self.nodes[output].op_type) if output in self.nodes else ""


def parse_network(graph: onnx.GraphProto, card: Card) -> Network:
    """Raises KeyError, IndexError or ValueError where names that every such graph has are missing."""
    file = _File(
        {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer},
        {next(filter(None, node.output)): node for node in graph.node},
        frozenset(value.name for value in graph.input),
        card,
    )
    shapes = {part.name: part.shape for part in card.state.parts}
    window = int(shapes["window"][0]) if "window" in shapes else None
    layers: list[Layer] = []
    while f"W{len(layers)}" in file.weights or f"weight_ih{len(layers)}" in file.weights:
        layers.append(_layer(file, len(layers), window))
    return Network(_encoder(file), tuple(layers), _head(file), window)


def _encoder(file: _File) -> Encoder:
    card, weights = file.card, file.weights
    elapsed = "elapsed" in file.inputs
    count = len(card.numbers) + elapsed
    logs = weights["wants_log"] if "wants_log" in weights else np.full(count, file.operator("log") == "Log")
    flagged = weights["flagged"] if "flagged" in weights else range(count if "flags" in file.nodes else 0)
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
    waves = int(weights["clock_to"][0]) if "timestamp" in file.inputs else 0
    hour = waves > 0 and int(weights["periods"][0]) == DAY_MS
    return Encoder(
        numbers,
        categories,
        Elapsed(float(centre[-1]), float(scale[-1])) if elapsed else None,
        hour_of_day=hour,
        day_of_week=waves > 2 * hour,
        limit=float(weights["highest"]) if count else Encoder().limit,
    )


def _layer(file: _File, index: int, window: int | None) -> Layer:
    weights = file.weights
    tag = f"{index}" if window is None else f"{index}_0"

    def initial(letter: str) -> Array | None:
        name = f"{letter}{index}"
        values = file.first(name) if window is None else weights[f"{name}_initial"]
        return values if values.any() else None

    if f"W{index}" in weights:
        kinds = [
            text for one in file.nodes[f"h{tag}_out"].attribute if one.name == "activations" for text in one.strings
        ]
        weight_ih, weight_hh = (from_onnx_gates(weights[f"{name}{index}"][0]) for name in "WR")
        bias = np.concatenate([from_onnx_gates(half) for half in np.split(weights[f"B{index}"][0], 2)])
        relu: Activation = "relu" if b"Relu" in kinds else "tanh"
        return Lstm(weight_ih, weight_hh, bias, initial("h"), initial("c"), activation=relu)
    weight_ih, weight_hh = (np.ascontiguousarray(weights[f"weight_{which}{index}"].T) for which in ("ih", "hh"))
    bias = np.concatenate([weights[f"bias_{which}{index}"] for which in ("ih", "hh")])
    if f"projection{index}" in weights:
        projection = np.ascontiguousarray(weights[f"projection{index}"].T)
        kind = _activation(file, f"active{tag}")
        return Lstm(weight_ih, weight_hh, bias, initial("h"), initial("c"), projection, kind)
    return Gru(weight_ih, weight_hh, bias, _activation(file, f"n{tag}"), initial("h"))


def _activation(file: _File, output: str) -> Activation:
    return "relu" if file.operator(output) == "Relu" else "tanh"


def _head(file: _File) -> AnyHead:
    weights = file.weights
    weight, bias = weights["head_weight"], weights["head_bias"]
    if file.operator("surprise"):
        calibration = Calibration(
            float(file.first("power")[0]) ** 0.25, float(weights["unit"]), float(weights["alpha"])
        )
        columns = tuple(int(column) for column in weights[COLUMNS])
        return AnomalyHead(weight, bias, columns, calibration, residual=file.operator("means") == "Add")
    if COLUMNS in weights:
        every = [int(column) for column in weights[COLUMNS]]
        columns = tuple(dict.fromkeys(every))
        return ForecastHead(weight, bias, columns, len(every) // len(columns), file.operator("now") == "Gather")
    activations = {"Sigmoid": "sigmoid", "Softmax": "softmax"}
    return Head(weight, bias, activations.get(file.operator("prediction"), "none"))  # type: ignore[arg-type]
