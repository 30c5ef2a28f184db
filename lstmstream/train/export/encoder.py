"""The feature encoder as graph nodes: from raw events to the inputs of the first layer, one row for each event.

The package docstring gives the formulas and the order of the columns.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from lstmstream.train.export.graph import VECTOR_COLUMNS, GraphBuilder
from lstmstream.train.export.key_history import add_history_nodes
from lstmstream.train.export.network_spec import FeatureEncoder, Number, as_float32

DAY_MS = 86_400_000
THURSDAY = 3  # the day of the week of 1970-01-01, with Monday as 0
NUMBERS = "numbers"  # the tensor [N, F or F + 1] of scaled numbers and elapsed, 0 where missing
MISSING = "missing"  # the tensor of the same shape: whether the value is missing


def add_encoder_nodes(graph: GraphBuilder, encoder: FeatureEncoder) -> str:
    """Adds the encoder's nodes and weights; returns the name of the tensor of inputs [N, encoder.width].

    With a history, it takes HISTORY_STATE and adds HISTORY_STATE_OUT.
    """
    blocks = _add_numeric(graph, encoder)
    if encoder.hour_of_day or encoder.day_of_week:
        blocks.append(_add_clock(graph, encoder))
    if encoder.history is not None:
        blocks.append(add_history_nodes(graph, encoder, NUMBERS, MISSING))
    for index, category in enumerate(encoder.categories):
        column = graph.weight(f"column_{index}", np.array(index, np.int64))
        codes = graph.node("Gather", ["categories", column], f"codes_{index}", axis=1)
        table = graph.weight(f"table_{index}", as_float32(category.table))
        blocks.append(graph.node("Gather", [table, codes], f"embedded_{index}", axis=0))
    return graph.node("Concat", blocks, "encoded", axis=1) if len(blocks) > 1 else blocks[0]


def _add_numeric(graph: GraphBuilder, encoder: FeatureEncoder) -> list[str]:
    """Adds numbers and elapsed as one block and their missing flags as another; returns the blocks' names."""
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
    missing = graph.node("IsNaN", [raw], MISSING)
    values = raw
    if any(number.log for number in numbers):
        values = _add_log(graph, raw, [number.log for number in numbers])
    centre = graph.weight("centre", np.array([number.centre for number in numbers], np.float32))
    scale = graph.weight("inverse_scale", np.array([1 / number.scale for number in numbers], np.float32))
    scaled = graph.node("Mul", [graph.node("Sub", [values, centre], "centred"), scale], "scaled")
    zero = graph.weight("zero", np.array(0, np.float32))
    filled = graph.node("Where", [missing, zero, scaled], "filled")
    low = graph.weight("lowest", np.array(-encoder.limit, np.float32))
    high = graph.weight("highest", np.array(encoder.limit, np.float32))
    blocks = [graph.node("Clip", [filled, low, high], NUMBERS)]
    flagged = [index for index, number in enumerate(numbers) if number.flag_missing]
    if flagged:
        if len(flagged) < len(numbers):
            columns = graph.weight("flagged", np.array(flagged, np.int64))
            missing = graph.node("Gather", [missing, columns], "missing_flagged", axis=1)
        blocks.append(graph.node("Cast", [missing], "flags", to=TensorProto.FLOAT))
    return blocks


def _add_log(graph: GraphBuilder, raw: str, which: list[bool]) -> str:
    """Adds sign(v) * log(1 + |v|) for the columns where `which` is true; the others pass unchanged."""
    one = graph.weight("one", np.array(1, np.float32))
    shifted = graph.node("Add", [graph.node("Abs", [raw], "absolute"), one], "shifted")
    logs = graph.log(shifted, one, len(which))  # the package docstring says why
    signed = graph.node("Mul", [graph.node("Sign", [raw], "sign"), logs], "log_signed")
    if all(which):
        return signed
    return graph.node("Where", [graph.weight("wants_log", np.array(which)), signed, raw], "unscaled")


def _add_clock(graph: GraphBuilder, encoder: FeatureEncoder) -> str:
    """Adds sine and cosine of the hour and the day of the week; returns the name of their block.

    A cosine is computed as a sine with its phase shifted by pi / 2. Milliseconds are exact until the cast to float32.
    """
    waves: list[tuple[int, float]] = []  # period in ms, phase at the epoch in radians
    if encoder.hour_of_day:
        waves += [(DAY_MS, 0.0), (DAY_MS, math.pi / 2)]
    if encoder.day_of_week:
        monday = 2 * math.pi * THURSDAY / 7
        waves += [(7 * DAY_MS, monday), (7 * DAY_MS, monday + math.pi / 2)]
    periods = [period for period, _ in waves] + [DAY_MS] * (
        VECTOR_COLUMNS - len(waves)
    )  # spare columns, as in _add_log
    phases = [phase for _, phase in waves] + [0.0] * (VECTOR_COLUMNS - len(waves))
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
