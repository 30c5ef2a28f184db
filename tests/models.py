"""Small random models for tests, made in milliseconds and the same for the same arguments. Needs onnx, not torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lstmstream.model import Card, write_model
from lstmstream.train.export import (
    OUTPUTS,
    Category,
    DenseHead,
    Elapsed,
    FeatureEncoder,
    Lstm,
    NetworkSpec,
    Number,
    build,
)

MAGIC = 666.0  # the first number's value at which `poisoned_model` fails


def random_network(
    *,
    layers: int = 1,
    hidden: int = 8,
    numbers: Sequence[str] = ("amount",),
    categories: Mapping[str, Sequence[str] | int] | None = None,
    elapsed: bool = True,
    clock: bool | Literal["hour"] = False,
    outputs: int = 1,
    seed: int = 0,
) -> NetworkSpec:
    """`categories`: name to vocabulary, or to a number of buckets. More than one output: softmax, else sigmoid."""
    generator = np.random.default_rng(seed)

    def weights(*shape: int) -> Any:
        return generator.normal(scale=0.5, size=shape).astype(np.float32)

    embedded = []
    for name, known in (categories or {}).items():
        codes = known if isinstance(known, int) else len(known)
        vocabulary, buckets = (None, known) if isinstance(known, int) else (tuple(known), None)
        embedded.append(Category(name, weights(codes + 1, 3), vocabulary, buckets))
    encoder = FeatureEncoder(
        numbers=tuple(
            Number(name, centre=1.0 + index, scale=2.0, log=index % 2 == 0, flag_missing=index % 3 == 0)
            for index, name in enumerate(numbers)
        ),
        categories=tuple(embedded),
        elapsed=Elapsed(3.0, 2.0) if elapsed else None,
        hour_of_day=bool(clock),
        day_of_week=clock is True,
    )
    widths = [encoder.width] + [hidden] * layers
    return NetworkSpec(
        encoder,
        tuple(
            Lstm(weights(4 * hidden, width), weights(4 * hidden, hidden), weights(8 * hidden)) for width in widths[:-1]
        ),
        DenseHead(weights(outputs, hidden), weights(outputs), "sigmoid" if outputs == 1 else "softmax"),
    )


def random_model(
    folder: Path,
    *,
    file: str = "model.onnx",
    name: str = "test-model",
    version: str = "1",
    threshold: float | None = 0.5,
    **network: Any,
) -> Path:
    """Writes `folder/file` and returns its path; the other arguments are those of `random_network`."""
    made = random_network(**network)
    return write(folder / file, build(made), card_of(made, name=name, version=version, threshold=threshold))


def poisoned_model(
    folder: Path,
    *,
    file: str = "poisoned.onnx",
    where: Literal["score", "state_out", "prediction"] = "score",
    magic: float = MAGIC,
    version: str = "1",
    threshold: float | None = 0.5,
    **network: Any,
) -> Path:
    """As `random_model`, but rows whose first number is `magic` give infinity or NaN in the output `where`."""
    made = random_network(**network)
    proto = build(made)
    _poison(proto, where, magic)
    return write(folder / file, proto, card_of(made, version=version, threshold=threshold))


def card_of(
    network: NetworkSpec, *, name: str = "test-model", version: str = "1", threshold: float | None = 0.5
) -> Card:
    """The card that fits the network."""
    return Card(
        name=name,
        version=version,
        task="classify",
        features=network.features,
        state=network.state,
        outputs=OUTPUTS,
        threshold=threshold,
        training={"seed": 0},
    )


def write(path: Path, proto: onnx.ModelProto, card: Card) -> Path:
    """Writes a graph with its card."""
    write_model(path, proto.SerializeToString(deterministic=True), card)
    return path


def _poison(proto: onnx.ModelProto, where: str, magic: float) -> None:
    """Divides the output by zero where x[:, 0] is `magic`, by one elsewhere, which keeps every bit."""
    graph = proto.graph
    healthy = f"{where}_healthy"
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == where:
                    names[index] = healthy
    column = np.array(0 if where == "score" else [0], np.int64)  # x[:, 0] as a vector, or as a column
    for name, values in (("poison_column", column), ("poison_magic", np.array(magic, np.float32))):
        graph.initializer.append(numpy_helper.from_array(values, name))
    graph.node.extend(
        [
            helper.make_node("Gather", ["x", "poison_column"], ["poison_value"], axis=1),
            helper.make_node("Equal", ["poison_value", "poison_magic"], ["poison_hit"]),
            helper.make_node("Not", ["poison_hit"], ["poison_miss"]),
            helper.make_node("Cast", ["poison_miss"], ["poison_divisor"], to=TensorProto.FLOAT),
            helper.make_node("Div", [healthy, "poison_divisor"], [where]),
        ]
    )
