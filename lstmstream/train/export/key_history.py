"""Statistics of a key's earlier events as graph nodes: inputs of the first layer, and a part of the state.

For each pair of a number and a window w the state holds a count n, a mean m and a variance v of the number's scaled
values u (the encoder's: with log, centred, divided by the scale, clipped). An event that comes `elapsed` seconds after
the one before it counts exp(-elapsed / w) times as much as that, so that n is about the number of events in the last w:

    n = n exp(-elapsed / w)                    share = n / (n + PRIOR)
    usual = share m                            spread = share v + PRIOR / (n + PRIOR)
    z = clip((u - usual) / sqrt(spread), -MAX_Z, MAX_Z), 0 where the number is missing

    inputs, four blocks, then centred, scaled and clipped as numbers are:  log(1 + n)   log(spread)   usual   z

    n' = n + 1        g = 1 / n'        m' = m + g (u - m)        v' = (1 - g) (v + g (u - m)^2)

The inputs are of the earlier events alone, the next state includes the event. Usual value and spread are those of the
key, mixed with PRIOR events of mean 0 and variance 1, which are those of the training split: a key without events has
them alone. Where the number is missing, m and v stay, and n only decays.

A mean is not blown up by long gaps, and nothing overflows: u is at most the encoder's limit. Of the operators only Log
is sensitive to the width; it is applied to a multiple of 16 columns.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from lstmstream.train.export.graph import GraphBuilder
from lstmstream.train.export.network_spec import HISTORY_STATISTICS, FeatureEncoder, as_float32

HISTORY_STATE = "history_state_in"  # the tensor [N, 3J]: counts, means, variances
HISTORY_STATE_OUT = "history_state_out"
PRIOR = 0.1  # events
MAX_Z = 20.0


def add_history_nodes(graph: GraphBuilder, encoder: FeatureEncoder, numbers: str, missing: str) -> str:
    """Adds the inputs and HISTORY_STATE_OUT, from HISTORY_STATE; returns the name of the tensor of inputs [N, 4J].

    `numbers` and `missing` name the tensors of scaled numbers, and of those that are missing.
    """
    history = encoder.history
    assert history is not None
    columns = graph.weight("history_columns", np.array(history.columns, np.int64))
    value = graph.node("Gather", [numbers, columns], "history_value", axis=1)
    absent = graph.node("Gather", [missing, columns], "history_absent", axis=1)
    one = graph.scalar("history_one", 1)

    before = [f"history_{name}_in" for name in HISTORY_STATISTICS]
    sizes = graph.weight("history_sizes", np.full(len(before), len(history), np.int64))
    graph.multi_output_node("Split", [HISTORY_STATE, sizes], before, "history_parts", axis=1)
    _, mean, variance = before
    count = graph.node("Mul", [before[0], _add_decay(graph, np.array(history.windows_s, np.float32))], "history_count")
    blocks = _add_inputs(graph, len(history), value, absent, (count, mean, variance), one)
    centre = graph.weight("history_centre", as_float32(history.centre))
    scale = graph.weight("history_inverse_scale", as_float32(1 / np.array(history.scale)))
    scaled = graph.node("Mul", [graph.node("Sub", [blocks, centre], "history_centred"), scale], "history_scaled")
    limits = [graph.scalar("history_lowest", -encoder.limit), graph.scalar("history_highest", encoder.limit)]
    inputs = graph.node("Clip", [scaled, *limits], "history")

    present = graph.node(
        "Cast", [graph.node("Not", [absent], "history_there")], "history_present", to=TensorProto.FLOAT
    )
    new_count = graph.node("Add", [count, present], "history_count_out")
    at_least_one = graph.node("Max", [new_count, one], "history_divisor")  # with the event it is at least 1
    gain = graph.node("Div", [present, at_least_one], "history_gain")
    away = graph.node("Sub", [value, mean], "history_away")
    move = graph.node("Mul", [gain, away], "history_move")
    new_mean = graph.node("Add", [mean, move], "history_mean_out")
    wider = graph.node("Add", [variance, graph.node("Mul", [move, away], "history_jump")], "history_wider")
    kept = graph.node("Sub", [one, gain], "history_kept")
    new_variance = graph.node("Mul", [kept, wider], "history_variance_out")
    graph.node("Concat", [new_count, new_mean, new_variance], HISTORY_STATE_OUT, axis=1)
    return inputs


def _add_decay(graph: GraphBuilder, windows_s: np.ndarray[tuple[int], np.dtype[np.float32]]) -> str:
    """Adds exp(-elapsed / w) [N, J], 1 on a key's first event; returns its name."""
    zero = graph.scalar("history_zero", 0)
    first = graph.node("IsNaN", ["elapsed"], "history_first")
    seconds = graph.node("Where", [first, zero, "elapsed"], "history_seconds")
    axis = graph.weight("history_axis", np.array([1], np.int64))
    column = graph.node("Unsqueeze", [seconds, axis], "history_seconds_column")
    age = graph.node("Div", [column, graph.weight("history_windows", windows_s)], "history_age")
    return graph.node("Exp", [graph.node("Neg", [age], "history_minus_age")], "history_decay")


def _add_inputs(
    graph: GraphBuilder, pairs: int, value: str, absent: str, statistics: tuple[str, str, str], one: str
) -> str:
    """Adds the inputs [N, 4 `pairs`], not yet scaled; returns their name."""
    count, mean, variance = statistics
    prior = graph.scalar("history_prior", PRIOR)
    total = graph.node("Add", [count, prior], "history_total")
    share = graph.node("Div", [count, total], "history_share")
    usual = graph.node("Mul", [share, mean], "history_usual")
    own = graph.node("Mul", [share, variance], "history_own_variance")
    spread = graph.node("Add", [own, graph.node("Div", [prior, total], "history_prior_variance")], "history_spread")
    away = graph.node("Sub", [value, usual], "history_from_usual")
    z = graph.node("Div", [away, graph.node("Sqrt", [spread], "history_deviation")], "history_ratio")
    limits = [graph.scalar("history_least_z", -MAX_Z), graph.scalar("history_most_z", MAX_Z)]
    clipped = graph.node("Clip", [z, *limits], "history_ratio_cut")
    known = graph.node("Where", [absent, "history_zero", clipped], "history_z")
    positive = graph.node("Concat", [graph.node("Add", [count, one], "history_shifted"), spread], "history_positive",
                          axis=1)  # fmt: skip
    return graph.node("Concat", [graph.log(positive, one, 2 * pairs, "history_"), usual, known], "history_raw", axis=1)
