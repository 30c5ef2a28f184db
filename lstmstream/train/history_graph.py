"""The graph of `builtin:history`: statistics of what each key's numbers were before, without training.

    python -m lstmstream.train.history_graph FILE      # FILE is part of the package: lstmstream/models/history.onnx

For each of C channels (numbers of an event) and each window w of 1 hour, 1, 7 and 30 days the state holds a count n and
a mean m. An event that comes `elapsed` seconds after the one before it counts exp(-elapsed / w) times as much as that,
so that n is about the number of values in the last w, and m their mean:

    n = n exp(-elapsed / w)        count = n        mean = m, 0 while there is no value
    n' = n + 1                     m' = m + (x - m) / n'

Beside them is the run of values other than 0 up to the last one, and its age, the seconds since it began:

    run = the number of values other than 0 since the last 0          age = seconds since the first of them, 0 without

The prediction is of the key's earlier events alone; the state then takes the event in. A value that is missing changes
neither count, mean nor run: only time passes. The score is the mean over 30 days, of several channels the largest.
"""

from __future__ import annotations

import sys

from onnx import TensorProto, helper

from lstmstream.model import Card, write_model
from lstmstream.model.card import Feature, StatePart, StateSpec
from lstmstream.train.export.graph import IR_VERSION, OPSET, GraphBuilder
from lstmstream.train.expressions import Formulas

HOUR_S, DAY_S = 3_600.0, 86_400.0
WINDOWS_S = {"1h": HOUR_S, "1d": DAY_S, "7d": 7 * DAY_S, "30d": 30 * DAY_S}
PARTS = {"counts": len(WINDOWS_S), "means": len(WINDOWS_S), "run": 1, "age": 1}
STATISTICS = (*(f"count_{w}" for w in WINDOWS_S), *(f"mean_{w}" for w in WINDOWS_S), "run", "run_age_s")
FLOATS = sum(PARTS.values())
LEAST_COUNT = 1e-6  # values; less is none
LARGEST = 1e37  # of a value: the difference of two is finite


def history_model() -> tuple[bytes, Card]:
    """The ONNX model, whose nodes are the same for any number of channels, and its card: of one channel."""
    graph = GraphBuilder()
    _add_step(Formulas(graph))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1]),
        helper.make_tensor_value_info("elapsed", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", FLOATS]),
    ]
    outputs = [
        helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["N", FLOATS]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["N", FLOATS]),
    ]
    made = helper.make_graph(graph.nodes, "history", inputs, outputs, graph.weights)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    card = Card(
        name="history",
        version="1",
        task="anomaly",
        features=(Feature("value", "number"),),
        state=_state(),
        outputs=("state_out", "score", "prediction"),
        threshold=None,
        prediction_names=tuple(f"0.{name}" for name in STATISTICS),
    )
    return proto.SerializeToString(), card


def _state() -> StateSpec:
    parts, offset = [], 0
    for name, size in PARTS.items():
        parts.append(StatePart(f"0.{name}", offset, (size,)))
        offset += size
    return StateSpec(offset, (0.0,) * offset, tuple(parts))


def _add_step(f: Formulas) -> None:
    x, elapsed = f.given("x"), f.given("elapsed")
    rows = f.reshape_like(f.given("state"), x, FLOATS)  # [N, C, FLOATS]
    counts, means, run, age = f.split(rows, list(PARTS.values()))
    missing = f.unsqueeze(f.apply("IsNaN", x))  # [N, C, 1]
    value = f.clip(f.where(missing, 0.0, f.unsqueeze(x)), -LARGEST, LARGEST)
    passed = f.where(f.apply("IsNaN", elapsed), 0.0, elapsed)
    passed = f.unsqueeze(f.unsqueeze(passed))  # [N, 1, 1]

    counts = counts * f.apply("Exp", passed * f.constant([-1 / window for window in WINDOWS_S.values()]))
    age = f.where(run > 0.5, age + passed, 0.0)
    shown = f.where(counts > LEAST_COUNT, means, 0.0)
    prediction = f.join(counts, shown, run, age)
    largest = f.max(f.last(shown, 1), 1)  # [N, 1]
    f.apply("Squeeze", largest, f.integers(1), output="score")
    f.apply("Flatten", prediction, axis=1, output="prediction")

    more = counts + 1.0
    learned = shown + (value - shown) / more
    is_zero = value.equals(0.0)
    after = f.join(more, learned, f.where(is_zero, 0.0, run + 1.0), f.where(is_zero, 0.0, age))
    kept = f.where(missing, f.join(counts, means, run, age), after)
    f.apply("Flatten", kept, axis=1, output="state_out")


def main() -> int:
    """Write the model file that the package ships."""
    content, card = history_model()
    write_model(sys.argv[1], content, card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
