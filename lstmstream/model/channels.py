"""A model that keeps the same for each of its channels fits any number of them: `builtin:anomaly:cpu,memory`.

Its file has one channel. The parts of its state whose names begin with `0.` are that channel's; with C channels there
are as many such stretches of the row, one behind the other, and `x` has C columns. Columns of `prediction` whose names
begin so are that channel's too: all of them, or none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lstmstream.errors import CannotServe
from lstmstream.model import onnx_proto
from lstmstream.model.card import Card, Feature, StatePart, StateSpec

MAX_CHANNELS = 64
_OWN = "0."  # begins the names of the parts that belong to the file's one channel


def has_channels(card: Card) -> bool:
    """Whether it must be told what its channels are."""
    return any(part.name.startswith(_OWN) for part in card.state.parts)


def with_channels(proto: onnx_proto.Proto, card: Card, names: Sequence[str]) -> Card:
    """The card for these fields; the declared shapes of the graph are changed. Raises CannotServe."""
    if not has_channels(card):
        raise CannotServe(f"{card.name} takes no names of fields: it has {len(card.features)} of its own")
    if not 1 <= len(names) <= MAX_CHANNELS or len(set(names)) < len(names) or not all(names):
        raise CannotServe(f"give 1 to {MAX_CHANNELS} different names of fields, separated by commas")
    own = [part for part in card.state.parts if part.name.startswith(_OWN)]
    parts = [part for part in card.state.parts if part not in own]
    size = sum(math.prod(part.shape) for part in own)
    first = card.state.size - size  # the channel's stretch is the last one of the row
    for number in range(len(names)):
        parts += [
            StatePart(f"{number}.{part.name.removeprefix(_OWN)}", part.offset + number * size, part.shape)
            for part in own
        ]
    initial = card.state.initial[:first] + card.state.initial[first:] * len(names)
    columns = [name.removeprefix(_OWN) for name in card.prediction_names if name.startswith(_OWN)]
    prediction_names = tuple(f"{name}.{column}" for name in names for column in columns) or card.prediction_names
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name == "prediction" and columns:
            onnx_proto.set_columns(value, len(prediction_names))
        elif value.name == "x":
            onnx_proto.set_columns(value, len(names))
        elif value.name in ("state", "state_out"):
            onnx_proto.set_columns(value, len(initial))
    features = tuple(Feature(name, "number") for name in names)
    return replace(
        card,
        features=features,
        state=StateSpec(len(initial), initial, tuple(parts)),
        prediction_names=prediction_names,
    )
