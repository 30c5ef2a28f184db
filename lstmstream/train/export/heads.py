"""The heads as graph nodes: from the last layer's h to `prediction` and `score`, and the head's part of the state.

A forecast u in scaled units becomes v = u * scale + centre in raw units; for a number with log, v is clipped to +-80
and becomes sign(v) * (exp(|v|) - 1), so that it stays finite.

The anomaly score compares an event with the forecast that the step before it left in the state: means m and log scales
l. Over the columns that are not missing:

    z = clip((v - m) / exp(l), -100, 100)       e = sqrt(mean of z^2), the normalized error
    level = moment^(1/4)                        score = e / (e + half_point * level)
    moment' = moment + alpha * (min(e, 3 * level)^4 - moment), at least Calibration.min_moment

The state part `power` holds the moment. A key's first event and an event without any of the columns have score 0 and
leave the moment as it is.

In the graph e is called `surprise` and half_point `unit`. These names are part of every model file and its fingerprint,
so they stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmstream.train.export.cells import HEAD_STATE
from lstmstream.train.export.encoder import MISSING, NUMBERS
from lstmstream.train.export.graph import GraphBuilder
from lstmstream.train.export.network_spec import (
    AnomalyHead,
    Array,
    DenseHead,
    FeatureEncoder,
    ForecastHead,
    HeadSpec,
    Number,
    as_float32,
)

COLUMNS = "forecast_columns"  # the weight [P] with the index, among the numbers, of each forecast value
MAX_LOG = 80.0  # exp(80) = 5.5e34, within float32
MAX_LOG_SCALE = 7.0
MAX_Z = 100.0
MAX_JUMP = 3.0  # in levels: the normalized error is clipped to it before it enters the moment


def add_head(graph: GraphBuilder, encoder: FeatureEncoder, head: HeadSpec, hidden: str, state_out: str) -> int:
    """Adds `prediction` and `score`, and for an anomaly head `state_out`; returns the width P of `prediction`.

    `hidden` names the last layer's h [N, H].
    """
    if isinstance(head, DenseHead):
        return _add_dense_head(graph, head, hidden)
    if isinstance(head, ForecastHead):
        return _add_forecast_head(graph, encoder, head, hidden)
    return _add_anomaly_head(graph, encoder, head, hidden, state_out)


def _add_dense_head(graph: GraphBuilder, head: DenseHead, hidden: str) -> int:
    weights = [graph.weight("head_weight", as_float32(head.weight)), graph.weight("head_bias", as_float32(head.bias))]
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
        graph.node("Relu", [graph.node("Sub", [whole, last], "others")], "score")  # rounding may exceed 1 by a bit
    return len(head.bias)


def _add_forecast_head(graph: GraphBuilder, encoder: FeatureEncoder, head: ForecastHead, hidden: str) -> int:
    weights = [graph.weight("head_weight", as_float32(head.weight)), graph.weight("head_bias", as_float32(head.bias))]
    scaled = graph.node("Gemm", [hidden, *weights], "forecast", transB=1)
    columns = head.columns * head.horizon
    graph.weight(COLUMNS, np.array(columns, np.int64))
    if head.residual:
        now = graph.node("Gather", [NUMBERS, COLUMNS], "now", axis=1)
        scaled = graph.node("Add", [scaled, now], "forecast_from_now")
    _add_raw_prediction(graph, encoder, columns, scaled)
    graph.node("Gather", ["prediction", graph.weight("first_column", np.array(0, np.int64))], "score", axis=1)
    return len(columns)


def _add_anomaly_head(
    graph: GraphBuilder, encoder: FeatureEncoder, head: AnomalyHead, hidden: str, state_out: str
) -> int:
    count = len(head.columns)
    weights = [graph.weight("head_weight", as_float32(head.weight)), graph.weight("head_bias", as_float32(head.bias))]
    parts = ["means_in", "log_scales_in", "has_forecast_in", "power_in"]
    sizes = graph.weight("head_part_sizes", np.array([count, count, 1, 1], np.int64))
    graph.multi_output_node("Split", [HEAD_STATE, sizes], parts, "head_parts", axis=1)
    graph.weight(COLUMNS, np.array(head.columns, np.int64))
    now = graph.node("Gather", [NUMBERS, COLUMNS], "now", axis=1)
    error, known = _add_normalized_error(graph, count, now, parts)
    moment = _add_anomaly_score(graph, head, error, known, parts[3])

    forecast = graph.node("Gemm", [hidden, *weights], "forecast", transB=1)
    graph.multi_output_node("Split", [forecast], ["changes", "free_scales"], "forecast_parts", axis=1, num_outputs=2)
    bounds = [graph.scalar("least_log_scale", -MAX_LOG_SCALE), graph.scalar("most_log_scale", MAX_LOG_SCALE)]
    scales = graph.node("Clip", ["free_scales", *bounds], "log_scales")
    means = graph.node("Add", ["changes", now], "means") if head.residual else "changes"
    _add_raw_prediction(graph, encoder, head.columns, means)
    has = graph.node("Max", [parts[2], graph.scalar("has", 1)], "has_forecast_out")
    graph.node("Concat", ["layers_out", means, scales, has, moment], state_out, axis=1)
    return count


def _add_normalized_error(graph: GraphBuilder, count: int, now: str, parts: Sequence[str]) -> tuple[str, str]:
    """Adds the normalized error [N, 1] and whether it is known [N, 1]; returns their names."""
    means, log_scales, has_forecast, _ = parts
    away = graph.node("Div", [graph.node("Sub", [now, means], "away"), graph.node("Exp", [log_scales], "scales")], "z")
    bounds = [graph.scalar("least_z", -MAX_Z), graph.scalar("most_z", MAX_Z)]
    z = graph.node("Clip", [away, *bounds], "z_cut")
    absent = graph.node("Gather", [MISSING, COLUMNS], "absent", axis=1)
    squares = graph.node("Where", [absent, graph.scalar("no_z", 0), graph.node("Mul", [z, z], "z_squared")], "squares")
    present = graph.node("Cast", [graph.node("Not", [absent], "there")], "present", to=1)
    # a matrix product, because the bits of onnxruntime's row sums may depend on the row's place in the batch
    ones = graph.weight("ones", np.ones((count, 1), np.float32))
    total = graph.node("MatMul", [squares, ones], "total")
    number = graph.node("MatMul", [present, ones], "number_present")
    one = graph.scalar("least_present", 1)
    mean = graph.node("Div", [total, graph.node("Max", [number, one], "divisor")], "mean_square")
    half = graph.scalar("half", 0.5)
    known = graph.node("Greater", [graph.node("Min", [number, has_forecast], "known_count"), half], "known")
    return graph.node("Sqrt", [mean], "surprise"), known


def _add_anomaly_score(graph: GraphBuilder, head: AnomalyHead, error: str, known: str, moment: str) -> str:
    """Adds `score`; returns the name of the new fourth moment [N, 1]."""
    level = graph.node("Sqrt", [graph.node("Sqrt", [moment], "power_root")], "level")
    usual = graph.node("Mul", [level, graph.scalar("unit", head.calibration.half_point)], "usual")
    ratio = graph.node("Div", [error, graph.node("Add", [error, usual], "with_usual")], "against_usual")
    column = graph.node("Where", [known, ratio, graph.scalar("no_score", 0)], "score_column")
    graph.node("Squeeze", [column, graph.weight("score_axis", np.array([1], np.int64))], "score")

    most = graph.node("Mul", [level, graph.scalar("largest_jump", MAX_JUMP)], "most_surprise")
    clipped = graph.node("Min", [error, most], "surprise_cut")
    square = graph.node("Mul", [clipped, clipped], "surprise_squared")
    fourth = graph.node("Mul", [square, square], "surprise_fourth")
    change = graph.node("Mul", [graph.node("Sub", [fourth, moment], "power_gap"),
                                graph.scalar("alpha", head.calibration.alpha)], "power_change")  # fmt: skip
    new = graph.node("Add", [moment, change], "power_moved")
    new = graph.node("Max", [new, graph.scalar("power_floor", head.calibration.min_moment)], "power_above_floor")
    return graph.node("Where", [known, new, moment], "power_out")


def _add_raw_prediction(graph: GraphBuilder, encoder: FeatureEncoder, columns: Sequence[int], scaled: str) -> None:
    """Adds `prediction` [N, P]: the tensor `scaled` [N, P] in raw units; `columns` [P] are indices into the numbers."""
    logs = [encoder.numbers[column].log for column in columns]
    scale, centre = (
        graph.node("Gather", [graph.weight(f"number_{name}", values), COLUMNS], f"raw_{name}", axis=0)
        for name, values in zip(("scale", "centre"), raw_unit_scale(encoder.numbers), strict=True)
    )
    linear = graph.node("Add", [graph.node("Mul", [scaled, scale], "times_scale"), centre],
                        "unscaled_forecast" if any(logs) else "prediction")  # fmt: skip
    if not any(logs):
        return
    size = graph.node("Min", [graph.node("Abs", [linear], "log_size"), graph.scalar("largest_log", MAX_LOG)],
                      "log_size_cut")  # fmt: skip
    grown = graph.node("Sub", [graph.node("Exp", [size], "grown"), graph.scalar("raw_one", 1)], "size")
    signed = graph.node("Mul", [graph.node("Sign", [linear], "log_sign"), grown],
                        "prediction" if all(logs) else "signed_size")  # fmt: skip
    if not all(logs):
        graph.node("Where", [graph.weight("undo_log", np.array(logs)), signed, linear], "prediction")


def raw_unit_scale(numbers: Sequence[Number]) -> tuple[Array, Array]:
    """Scale [F] and centre [F] that undo the encoder's scaling, from the inverse scale that it multiplies by."""
    inverse = np.array([1 / number.scale for number in numbers], np.float32)
    return as_float32(1 / inverse.astype(np.float64)), np.array([number.centre for number in numbers], np.float32)
