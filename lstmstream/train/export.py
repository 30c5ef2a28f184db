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
    layers     LSTM, each fed by the one before
    head       linear, then sigmoid (one class: score is its probability), softmax (class 0 is the usual one:
               score is 1 - its probability), or nothing (score is the first column)

A row's result has the same bits in whatever batch. Of the operators used only Log and Sin would break that, on narrow
tensors, because onnxruntime computes whole vectors differently from what is left over: both get a multiple of 16
columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lstmstream.model import Card, Feature, StatePart, StateSpec, write_model

Array = NDArray[np.float32]
OPSET = 18
_IR = 8
_VECTOR = 16  # columns; a multiple of every vector width onnxruntime uses for float32
_DAY_MS = 86_400_000
_THURSDAY = 3  # 1970-01-01 was one; Monday is 0


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric field and how its raw value becomes an input: (v - centre) / scale, missing becomes 0."""

    name: str
    centre: float = 0.0
    scale: float = 1.0
    log: bool = False  # sign(v) * log(1 + |v|) first; centre and scale are then in that unit
    flag_missing: bool = False  # adds an input that is 1 where the value is missing


@dataclass(frozen=True, slots=True)
class Category:
    """A categorical field and its embedding: row 0 for unknown or missing, row i for code i."""

    name: str
    table: Array  # [codes + 1, width]
    vocabulary: tuple[str, ...] | None = None
    buckets: int | None = None


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time since the key's previous event: (log(1 + seconds) - centre) / scale, 0 and a flag on its first."""

    centre: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Encoder:
    """From the raw event to the first layer's inputs; the module's text gives their order."""

    numbers: tuple[Number, ...] = ()
    categories: tuple[Category, ...] = ()
    elapsed: Elapsed | None = None
    hour_of_day: bool = False
    day_of_week: bool = False
    limit: float = 1e4  # of scaled values, so that no finite event can overflow the layers

    @property
    def width(self) -> int:
        """Number of inputs of the first layer."""
        flags = sum(number.flag_missing for number in self.numbers)
        clock = 2 * (self.hour_of_day + self.day_of_week)
        tables = sum(category.table.shape[1] for category in self.categories)
        return int(len(self.numbers) + flags + 2 * (self.elapsed is not None) + clock + tables)


@dataclass(frozen=True, slots=True)
class Lstm:
    """One layer, as torch.nn.LSTM keeps it: rows are the gates i, f, g, o."""

    weight_ih: Array  # [4H, I]
    weight_hh: Array  # [4H, H]
    bias: Array  # [8H] input biases, then recurrent ones
    initial_h: Array | None = None  # [H], zeros where not given
    initial_c: Array | None = None  # [H]

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.weight_hh.shape[1])


@dataclass(frozen=True, slots=True)
class Head:
    """Linear from the last layer's h to P outputs, then an activation."""

    weight: Array  # [P, H]
    bias: Array  # [P]
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"


@dataclass(frozen=True, slots=True)
class Network:
    """A whole step: what is exported."""

    encoder: Encoder
    layers: tuple[Lstm, ...]
    head: Head

    @property
    def features(self) -> tuple[Feature, ...]:
        """The card's features: numbers, then categories."""
        numbers = tuple(Feature(number.name, "number") for number in self.encoder.numbers)
        return numbers + tuple(
            Feature(category.name, "category", category.vocabulary, category.buckets)
            for category in self.encoder.categories
        )

    @property
    def state(self) -> StateSpec:
        """The state row: h0, c0, h1, c1, ..."""
        parts, initial, offset = [], [], 0
        for index, layer in enumerate(self.layers):
            for letter, first in (("h", layer.initial_h), ("c", layer.initial_c)):
                parts.append(StatePart(f"{letter}{index}", offset, (layer.hidden,)))
                values = np.zeros(layer.hidden, np.float32) if first is None else _floats(first)
                initial += [float(str(value)) for value in values]  # the shortest text of a float32, as JSON has it
                offset += layer.hidden
        return StateSpec(offset, tuple(initial), tuple(parts))


OUTPUTS = ("state_out", "score", "prediction")


def lstm_layers(state_dict: Mapping[str, Any], prefix: str = "") -> tuple[Lstm, ...]:
    """The layers under `prefix` of a state dict of torch.nn.LSTM, given as arrays (`tensor.numpy()`).

    Raises ValueError for what a step cannot be (bidirectional) and what is not built (projections).
    """
    names = {name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)}
    layers: list[Lstm] = []
    while f"weight_ih_l{len(layers)}" in names:
        index = len(layers)
        if f"weight_ih_l{index}_reverse" in names:
            raise ValueError(f"{prefix}weight_ih_l{index}_reverse: bidirectional; a stream has no events from the end")
        if f"weight_hr_l{index}" in names:
            raise ValueError(f"{prefix}weight_hr_l{index}: projections (proj_size) cannot be exported yet")
        weight_ih, weight_hh = (_floats(state_dict[f"{prefix}weight_{which}_l{index}"]) for which in ("ih", "hh"))
        zeros = np.zeros(weight_hh.shape[0], np.float32)  # bias=False
        biases = [_floats(state_dict.get(f"{prefix}bias_{which}_l{index}", zeros)) for which in ("ih", "hh")]
        layers.append(Lstm(weight_ih, weight_hh, np.concatenate(biases)))
    if not layers:
        raise ValueError(f"no LSTM under {prefix!r}: there is no {prefix}weight_ih_l0")
    return tuple(layers)


def export(
    path: str | Path,
    network: Network,
    *,
    name: str,
    version: str,
    task: Literal["anomaly", "classify", "forecast"] = "classify",
    threshold: float | None = None,
    training: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
) -> Card:
    """Writes the model file and returns its card. Raises ValueError for weights that do not fit together."""
    return write_model(
        path,
        build(network).SerializeToString(deterministic=True),
        Card(
            name=name,
            version=version,
            task=task,
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
    _validate(network)
    encoder, graph = network.encoder, _Graph()
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
    _head(graph, network.head, _layers(graph, network.layers, _encode(graph, encoder)))
    outputs = [
        graph.declare("state_out", TensorProto.FLOAT, size),
        graph.declare("score", TensorProto.FLOAT),
        graph.declare("prediction", TensorProto.FLOAT, len(network.head.bias)),
    ]
    proto = helper.make_graph(graph.nodes, "step", inputs, outputs, graph.weights)
    return helper.make_model(proto, ir_version=_IR, opset_imports=[helper.make_opsetid("", OPSET)])


@dataclass(slots=True)
class _Graph:
    """Nodes and weights so far. Every tensor is named after the node that makes it."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, name: str, values: NDArray[Any]) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    @staticmethod
    def declare(name: str, element: int, columns: int | None = None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, ["N"] if columns is None else ["N", columns])


def _encode(graph: _Graph, encoder: Encoder) -> str:
    """Returns the name of a tensor [N, encoder.width]."""
    blocks = _numeric(graph, encoder)
    if encoder.hour_of_day or encoder.day_of_week:
        blocks.append(_clock(graph, encoder))
    for index, category in enumerate(encoder.categories):
        column = graph.weight(f"column_{index}", np.array(index, np.int64))
        codes = graph.node("Gather", ["categories", column], f"codes_{index}", axis=1)
        table = graph.weight(f"table_{index}", _floats(category.table))
        blocks.append(graph.node("Gather", [table, codes], f"embedded_{index}", axis=0))
    return graph.node("Concat", blocks, "encoded", axis=1) if len(blocks) > 1 else blocks[0]


def _numeric(graph: _Graph, encoder: Encoder) -> list[str]:
    """Numbers and elapsed as one block, their flags as another; names of what there is."""
    numbers = list(encoder.numbers)
    raw = "x"
    if encoder.elapsed is not None:
        first = Number("elapsed", encoder.elapsed.centre, encoder.elapsed.scale, log=True, flag_missing=True)
        raw = graph.node("Unsqueeze", ["elapsed", graph.weight("axis_1", np.array([1], np.int64))], "elapsed_column")
        if numbers:
            raw = graph.node("Concat", ["x", raw], "raw", axis=1)
        numbers.append(first)
    if not numbers:
        return []
    missing = graph.node("IsNaN", [raw], "missing")
    values = raw
    if any(number.log for number in numbers):
        values = _log(graph, raw, [number.log for number in numbers])
    centre = graph.weight("centre", np.array([number.centre for number in numbers], np.float32))
    scale = graph.weight("inverse_scale", np.array([1 / number.scale for number in numbers], np.float32))
    scaled = graph.node("Mul", [graph.node("Sub", [values, centre], "centred"), scale], "scaled")
    zero = graph.weight("zero", np.array(0, np.float32))
    filled = graph.node("Where", [missing, zero, scaled], "filled")
    low = graph.weight("lowest", np.array(-encoder.limit, np.float32))
    high = graph.weight("highest", np.array(encoder.limit, np.float32))
    blocks = [graph.node("Clip", [filled, low, high], "numbers")]
    flagged = [index for index, number in enumerate(numbers) if number.flag_missing]
    if flagged:
        if len(flagged) < len(numbers):
            columns = graph.weight("flagged", np.array(flagged, np.int64))
            missing = graph.node("Gather", [missing, columns], "missing_flagged", axis=1)
        blocks.append(graph.node("Cast", [missing], "flags", to=TensorProto.FLOAT))
    return blocks


def _log(graph: _Graph, raw: str, which: list[bool]) -> str:
    """sign(v) * log(1 + |v|) in the columns that want it."""
    width = len(which)
    one = graph.weight("one", np.array(1, np.float32))
    shifted = graph.node("Add", [graph.node("Abs", [raw], "absolute"), one], "shifted")
    if spare := -width % _VECTOR:  # see the module's text
        pads = graph.weight("spare", np.array([0, 0, 0, spare], np.int64))
        shifted = graph.node("Pad", [shifted, pads, one], "padded")
    logs = graph.node("Log", [shifted], "log")
    if spare:
        bounds = [graph.weight(f"keep_{name}", np.array([value], np.int64))
                  for name, value in (("from", 0), ("to", width), ("axis", 1))]  # fmt: skip
        logs = graph.node("Slice", [logs, *bounds], "log_kept")
    signed = graph.node("Mul", [graph.node("Sign", [raw], "sign"), logs], "log_signed")
    if all(which):
        return signed
    return graph.node("Where", [graph.weight("wants_log", np.array(which)), signed, raw], "unscaled")


def _clock(graph: _Graph, encoder: Encoder) -> str:
    """Sines of hour and weekday; a cosine is a sine a quarter turn on. Milliseconds are exact until the cast."""
    waves: list[tuple[int, float]] = []  # period in ms, phase at the epoch
    if encoder.hour_of_day:
        waves += [(_DAY_MS, 0.0), (_DAY_MS, math.pi / 2)]
    if encoder.day_of_week:
        monday = 2 * math.pi * _THURSDAY / 7
        waves += [(7 * _DAY_MS, monday), (7 * _DAY_MS, monday + math.pi / 2)]
    periods = [period for period, _ in waves] + [_DAY_MS] * (_VECTOR - len(waves))  # spare columns, see above
    phases = [phase for _, phase in waves] + [0.0] * (_VECTOR - len(waves))
    axis = graph.weight("clock_axis", np.array([1], np.int64))
    column = graph.node("Unsqueeze", ["timestamp", axis], "timestamp_column")
    period = graph.weight("periods", np.array(periods, np.int64))
    within = graph.node("Mod", [column, period], "within_period")
    within = graph.node("Cast", [within], "within_period_float", to=TensorProto.FLOAT)
    factor = graph.weight("radians_per_ms", np.array([2 * math.pi / period for period in periods], np.float32))
    angle = graph.node("Mul", [within, factor], "angle_from_epoch")
    angle = graph.node("Add", [angle, graph.weight("phases", np.array(phases, np.float32))], "angle")
    sines = graph.node("Sin", [angle], "sines")
    bounds = [graph.weight(f"clock_{name}", np.array([value], np.int64))
              for name, value in (("from", 0), ("to", len(waves)), ("along", 1))]  # fmt: skip
    return graph.node("Slice", [sines, *bounds], "clock")


def _layers(graph: _Graph, layers: tuple[Lstm, ...], encoded: str) -> str:
    """Runs one step and makes `state_out`; returns the name of the last layer's h, [1, N, H]."""
    axis = graph.weight("axis_0", np.array([0], np.int64))  # a sequence of length 1
    below = graph.node("Unsqueeze", [encoded, axis], "encoded_step")
    row = graph.node("Unsqueeze", ["state", axis], "state_step")
    parts = [f"{letter}{index}_in" for index in range(len(layers)) for letter in "hc"]
    widths = graph.weight("part_sizes", np.array([layer.hidden for layer in layers for _ in "hc"], np.int64))
    graph.nodes.append(helper.make_node("Split", [row, widths], parts, name="state_parts", axis=2))
    done = []
    for index, layer in enumerate(layers):
        weights = [
            graph.weight(f"{name}{index}", _gates(values)[np.newaxis])
            for name, values in (("W", layer.weight_ih), ("R", layer.weight_hh))
        ]
        bias = np.concatenate([_gates(half) for half in np.split(_floats(layer.bias), 2)])
        weights.append(graph.weight(f"B{index}", bias[np.newaxis]))
        outputs = ["", f"h{index}_out", f"c{index}_out"]
        inputs = [below, *weights, "", *parts[2 * index : 2 * index + 2]]
        graph.nodes.append(helper.make_node("LSTM", inputs, outputs, name=f"lstm{index}", hidden_size=layer.hidden))
        below = outputs[1]
        done += outputs[1:]
    graph.node("Squeeze", [graph.node("Concat", done, "state_out_step", axis=2), axis], "state_out")
    return graph.node("Squeeze", [below, axis], "hidden")


def _head(graph: _Graph, head: Head, hidden: str) -> None:
    """Makes `prediction` and `score`."""
    weights = [graph.weight("head_weight", _floats(head.weight)), graph.weight("head_bias", _floats(head.bias))]
    activation = {"sigmoid": "Sigmoid", "softmax": "Softmax", "none": None}[head.activation]
    linear = graph.node("Gemm", [hidden, *weights], "logits" if activation else "prediction", transB=1)
    if activation == "Softmax":
        graph.node("Softmax", [linear], "prediction", axis=1)
    elif activation:
        graph.node(activation, [linear], "prediction")
    column = graph.weight("first_column", np.array(0, np.int64))
    last = graph.node("Gather", ["prediction", column], "first" if activation == "Softmax" else "score", axis=1)
    if activation == "Softmax":
        whole = graph.weight("whole", np.array(1, np.float32))
        graph.node("Relu", [graph.node("Sub", [whole, last], "others")], "score")  # rounding may pass 1 by a bit


def _gates(values: NDArray[Any]) -> Array:
    """Rows i, f, g, o (torch) to i, o, f, c (ONNX)."""
    i, f, g, o = np.split(_floats(values), 4)
    return np.concatenate([i, o, f, g])


def _floats(values: Any) -> Array:
    return np.asarray(values, np.float32)


def _validate(network: Network) -> None:
    if network.encoder.width == 0 or not network.layers:
        raise ValueError("the network needs at least one input and one layer")
    _validate_encoder(network.encoder)
    width = network.encoder.width
    for index, layer in enumerate(network.layers):
        h = layer.hidden
        shapes = {"weight_ih": (4 * h, width), "weight_hh": (4 * h, h), "bias": (8 * h,)}
        shapes |= {name: (h,) for name in ("initial_h", "initial_c") if getattr(layer, name) is not None}
        for name, shape in shapes.items():
            if (found := np.shape(getattr(layer, name))) != shape:
                raise ValueError(f"layer {index} {name}: shape {found}, should be {shape}")
        width = h
    head = network.head
    if head.weight.ndim != 2 or head.weight.shape[1] != width or head.bias.shape != head.weight.shape[:1]:
        raise ValueError(f"head: weight {head.weight.shape} and bias {head.bias.shape} do not fit {width} inputs")
    wrong = {"sigmoid": len(head.bias) != 1, "softmax": len(head.bias) < 2, "none": len(head.bias) < 1}
    if wrong.get(head.activation, True):
        raise ValueError(f"head: {len(head.bias)} outputs with activation {head.activation!r}")


def _validate_encoder(encoder: Encoder) -> None:
    if not 0 < encoder.limit < 1e30:
        raise ValueError(f"encoder limit: {encoder.limit} should be above 0 and below 1e30")
    scaled: list[tuple[str, float, float]] = [(f"number {one.name}", one.centre, one.scale) for one in encoder.numbers]
    if encoder.elapsed is not None:
        scaled.append(("elapsed", encoder.elapsed.centre, encoder.elapsed.scale))
    for name, centre, scale in scaled:
        if not (abs(centre) < 1e30 and 1e-30 < scale < 1e30):  # NaN fails too
            raise ValueError(f"{name}: centre {centre} and scale {scale} should be below 1e30, scale above 1e-30")
    for category in encoder.categories:
        codes = len(category.vocabulary or ()) or category.buckets or 0
        if category.table.ndim != 2 or category.table.shape[0] != codes + 1:
            raise ValueError(f"category {category.name}: {codes} codes need a table of {codes + 1} rows")
