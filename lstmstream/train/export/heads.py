"""The heads as graph nodes: from the last layer's h to `prediction` and `score`, and the head's part of the state.

Raw units of a forecast u (scaled): v = u * scale + centre; for a number with log, sign(v) * (exp(|v|) - 1) of v cut to
+-80, so that it stays finite.

Anomaly. With the means m and log-scales l that the previous event's step left in the state, over the columns present:

    z = clip((v - m) / exp(l), -100, 100)       e = sqrt(mean of z^2)
    level = power^(1/4)                         score = e / (e + unit * level)
    power' = power + alpha * (min(e, 3 * level)^4 - power), not below Calibration.floor

A key's first event and an event without any of the columns have score 0 and leave power as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmstream.train.export.cells import HEAD_STATE
from lstmstream.train.export.encoder import MISSING, NUMBERS
from lstmstream.train.export.graph import Graph
from lstmstream.train.export.parts import AnomalyHead, AnyHead, Array, Encoder, ForecastHead, Head, Number, floats

COLUMNS = "forecast_columns"  # a weight: of each value that is forecast, the index among the numbers
LARGEST_LOG = 80.0  # exp(80) = 5.5e34, within float32
LARGEST_LOG_SCALE = 7.0
LARGEST_Z = 100.0
LARGEST_JUMP = 3.0  # of one surprise, in levels: what a single event may add to power


def finish(graph: Graph, encoder: Encoder, head: AnyHead, hidden: str) -> int:
    """Makes `prediction` and `score` (and `state_out` for an anomaly head); returns the width of `prediction`."""
    if isinstance(head, Head):
        return _classify(graph, head, hidden)
    if isinstance(head, ForecastHead):
        return _forecast(graph, encoder, head, hidden)
    return _anomaly(graph, encoder, head, hidden)


def _classify(graph: Graph, head: Head, hidden: str) -> int:
    weights = [graph.weight("head_weight", floats(head.weight)), graph.weight("head_bias", floats(head.bias))]
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
    return len(head.bias)


def _forecast(graph: Graph, encoder: Encoder, head: ForecastHead, hidden: str) -> int:
    weights = [graph.weight("head_weight", floats(head.weight)), graph.weight("head_bias", floats(head.bias))]
    scaled = graph.node("Gemm", [hidden, *weights], "forecast", transB=1)
    columns = head.columns * head.horizon
    graph.weight(COLUMNS, np.array(columns, np.int64))
    if head.residual:
        now = graph.node("Gather", [NUMBERS, COLUMNS], "now", axis=1)
        scaled = graph.node("Add", [scaled, now], "forecast_from_now")
    _raw(graph, encoder, columns, scaled)
    graph.node("Gather", ["prediction", graph.weight("first_column", np.array(0, np.int64))], "score", axis=1)
    return len(columns)


def _anomaly(graph: Graph, encoder: Encoder, head: AnomalyHead, hidden: str) -> int:
    count = len(head.columns)
    weights = [graph.weight("head_weight", floats(head.weight)), graph.weight("head_bias", floats(head.bias))]
    parts = ["means_in", "log_scales_in", "has_forecast_in", "power_in"]
    sizes = graph.weight("head_part_sizes", np.array([count, count, 1, 1], np.int64))
    graph.several("Split", [HEAD_STATE, sizes], parts, "head_parts", axis=1)
    graph.weight(COLUMNS, np.array(head.columns, np.int64))
    now = graph.node("Gather", [NUMBERS, COLUMNS], "now", axis=1)
    surprise, known = _surprise(graph, count, now, parts)
    power = _score(graph, head, surprise, known, parts[3])

    graph.several("Split", [graph.node("Gemm", [hidden, *weights], "forecast", transB=1)], ["changes", "free_scales"],
                  "forecast_parts", axis=1, num_outputs=2)  # fmt: skip
    bounds = [graph.scalar("least_log_scale", -LARGEST_LOG_SCALE), graph.scalar("most_log_scale", LARGEST_LOG_SCALE)]
    scales = graph.node("Clip", ["free_scales", *bounds], "log_scales")
    means = graph.node("Add", ["changes", now], "means") if head.residual else "changes"
    _raw(graph, encoder, head.columns, means)
    has = graph.node("Max", [parts[2], graph.scalar("has", 1)], "has_forecast_out")
    graph.node("Concat", ["layers_out", means, scales, has, power], "state_out", axis=1)
    return count


def _surprise(graph: Graph, count: int, now: str, parts: Sequence[str]) -> tuple[str, str]:
    """The surprise [N, 1], and whether there is one."""
    means, log_scales, has_forecast, _ = parts
    away = graph.node("Div", [graph.node("Sub", [now, means], "away"), graph.node("Exp", [log_scales], "scales")], "z")
    bounds = [graph.scalar("least_z", -LARGEST_Z), graph.scalar("most_z", LARGEST_Z)]
    z = graph.node("Clip", [away, *bounds], "z_cut")
    absent = graph.node("Gather", [MISSING, COLUMNS], "absent", axis=1)
    squares = graph.node("Where", [absent, graph.scalar("no_z", 0), graph.node("Mul", [z, z], "z_squared")], "squares")
    present = graph.node("Cast", [graph.node("Not", [absent], "there")], "present", to=1)
    # a matrix product, because onnxruntime's sums along a row may depend on where the row lies
    ones = graph.weight("ones", np.ones((count, 1), np.float32))
    total = graph.node("MatMul", [squares, ones], "total")
    number = graph.node("MatMul", [present, ones], "number_present")
    one = graph.scalar("least_present", 1)
    mean = graph.node("Div", [total, graph.node("Max", [number, one], "divisor")], "mean_square")
    half = graph.scalar("half", 0.5)
    known = graph.node("Greater", [graph.node("Min", [number, has_forecast], "known_count"), half], "known")
    return graph.node("Sqrt", [mean], "surprise"), known


def _score(graph: Graph, head: AnomalyHead, surprise: str, known: str, power: str) -> str:
    """Makes `score`; returns the new power [N, 1]."""
    level = graph.node("Sqrt", [graph.node("Sqrt", [power], "power_root")], "level")
    usual = graph.node("Mul", [level, graph.scalar("unit", head.calibration.unit)], "usual")
    against = graph.node("Div", [surprise, graph.node("Add", [surprise, usual], "with_usual")], "against_usual")
    column = graph.node("Where", [known, against, graph.scalar("no_score", 0)], "score_column")
    graph.node("Squeeze", [column, graph.weight("score_axis", np.array([1], np.int64))], "score")

    most = graph.node("Mul", [level, graph.scalar("largest_jump", LARGEST_JUMP)], "most_surprise")
    cut = graph.node("Min", [surprise, most], "surprise_cut")
    square = graph.node("Mul", [cut, cut], "surprise_squared")
    fourth = graph.node("Mul", [square, square], "surprise_fourth")
    change = graph.node("Mul", [graph.node("Sub", [fourth, power], "power_gap"),
                                graph.scalar("alpha", head.calibration.alpha)], "power_change")  # fmt: skip
    moved = graph.node("Add", [power, change], "power_moved")
    moved = graph.node("Max", [moved, graph.scalar("power_floor", head.calibration.floor)], "power_above_floor")
    return graph.node("Where", [known, moved, power], "power_out")


def _raw(graph: Graph, encoder: Encoder, columns: Sequence[int], scaled: str) -> None:
    """Makes `prediction`: scaled values of these numbers (their indices are the weight COLUMNS), in raw units."""
    logs = [encoder.numbers[column].log for column in columns]
    scale, centre = (
        graph.node("Gather", [graph.weight(f"number_{name}", values), COLUMNS], f"raw_{name}", axis=0)
        for name, values in zip(("scale", "centre"), raw_scale(encoder.numbers), strict=True)
    )
    linear = graph.node("Add", [graph.node("Mul", [scaled, scale], "times_scale"), centre],
                        "unscaled_forecast" if any(logs) else "prediction")  # fmt: skip
    if not any(logs):
        return
    size = graph.node("Min", [graph.node("Abs", [linear], "log_size"), graph.scalar("largest_log", LARGEST_LOG)],
                      "log_size_cut")  # fmt: skip
    grown = graph.node("Sub", [graph.node("Exp", [size], "grown"), graph.scalar("raw_one", 1)], "size")
    signed = graph.node("Mul", [graph.node("Sign", [linear], "log_sign"), grown],
                        "prediction" if all(logs) else "signed_size")  # fmt: skip
    if not all(logs):
        graph.node("Where", [graph.weight("undo_log", np.array(logs)), signed, linear], "prediction")


def raw_scale(numbers: Sequence[Number]) -> tuple[Array, Array]:
    """Scale and centre [F] that undo what the encoder does, from the inverse scale that it uses."""
    inverse = np.array([1 / number.scale for number in numbers], np.float32)
    return floats(1 / inverse.astype(np.float64)), np.array([number.centre for number in numbers], np.float32)
