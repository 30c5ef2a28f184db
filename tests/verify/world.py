"""Daemons on the memory transport with a real model, and `verify` over what they have written."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from lstmstream.config import Config
from lstmstream.model import Card, Model, load_model
from lstmstream.model.card import StatePart, StateSpec
from lstmstream.serve.step import OnnxStep
from lstmstream.transport.memory import LogRecord, MemoryTransport
from lstmstream.transport.patient_broker import PatientBroker
from lstmstream.transport.ports import CommittedOffset
from lstmstream.verify.run import Verification
from tests.models import write
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, World

ALERTS = "alerts"
NOW_MS = 1_700_000_000_000
KAFKA_DEFAULTS = {
    "group.min.session.timeout.ms": "6000",
    "group.max.session.timeout.ms": "1800000",
    "transaction.max.timeout.ms": "900000",
    "socket.request.max.bytes": "104857600",
}


class VerifyTransport(MemoryTransport):
    """With the questions that only `verify` and `check` ask."""

    def broker_settings(self) -> dict[str, str]:
        return dict(KAFKA_DEFAULTS)

    def group_offsets(self, topic: str, partitions: Collection[int]) -> dict[int, CommittedOffset]:
        return self.committed_offsets(partitions)


class VerifyWorld(World):
    """A world whose daemons have one ONNX model."""

    def __init__(self, path: Path, **settings: Any) -> None:
        super().__init__(**{"model": str(path), **settings})
        self.output_settings = {"topic": OUTPUT, "alerts_topic": ALERTS}
        self.settings["output"] = {**self.output_settings, **self.settings.get("output", {})}
        self.model: Model = load_model(path)
        self.now_s = NOW_MS / 1000

    def onnx_step(self) -> OnnxStep:
        return OnnxStep(self.model, device="cpu")

    def serve(self, **changes: Any) -> None:
        """A daemon's life: start, answer everything, stop."""
        daemon = self.start(self.onnx_step(), **changes)
        self.settle()
        assert self.stop(daemon) == 0

    def verify(self, **options: Any) -> Verification:
        """A verification of one round."""
        made = self.verification(**options)
        made.round()
        return made

    def verification(self, *, config: Config | None = None, **options: Any) -> Verification:
        transport = VerifyTransport(self.broker, INPUT)
        return Verification(
            PatientBroker(transport), config or self.config(), options.pop("model", self.model), **options
        )

    def log(self, topic: str, partition: int = 0) -> list[LogRecord]:
        """The records of a partition, to be altered."""
        return self.broker.topics[topic].logs[partition]

    def number_again(self, topic: str, partition: int = 0) -> None:
        """Give the records of a partition ascending offsets, after some were moved, taken out or put in."""
        log = self.log(topic, partition)
        log[:] = [record._replace(offset=offset) for offset, record in enumerate(log)]


def failing_model(folder: Path) -> Path:
    """Its state counts the events, and its score is 1 / (3 - state): infinite for the fourth."""
    floats = {"one": 1.0, "three": 3.0}
    nodes = [
        helper.make_node("Add", ["state", "one"], ["state_out"]),
        helper.make_node("Sub", ["three", "state"], ["left"]),
        helper.make_node("Div", ["one", "left"], ["scores"]),
        helper.make_node("Squeeze", ["scores", "axis"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "failing",
        [helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", 1])],
        [
            helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["N", 1]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [
            *(numpy_helper.from_array(np.array([[value]], np.float32), name) for name, value in floats.items()),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    state = StateSpec(1, (0.0,), (StatePart("count", 0, (1,)),))
    return write(folder / "failing.onnx", proto, Card("failing", "1", "anomaly", (), state, ("state_out", "score")))


def events(count: int, *, seed: int = 1, keys: int = 7, bad: float = 0.05) -> list[tuple[bytes | None, bytes, int]]:
    """Key, value and time: some late, some after a long silence, some that are dead letters."""
    source, found, now_ms = random.Random(seed), [], NOW_MS
    for _ in range(count):
        now_ms += 4_000_000 if source.random() < 0.005 else source.choice([0, 1, 900, 5_000, 30_000])
        key = None if source.random() < 0.05 else b"k%d" % source.randrange(keys)
        value: Any = {"amount": round(source.uniform(-50, 2000), 2), "channel": source.choice(["web", "pos", "x", 7])}
        value |= {"shop": source.choice(["a", 12, None]), "note": source.choice(["é", 1e-7, 2**70, "\u0001"])}
        if source.random() < bad:
            value = source.choice([[1], {"amount": "12"}, {"amount": True}, {"amount": 1e39}, {"channel": 1.5}])
        late_ms = source.choice([0, 0, 0, 0, 7_000])
        found.append((key, json.dumps(value).encode(), now_ms - late_ms))
    return found


def fill(world: World, found: Sequence[tuple[bytes | None, bytes, int]], *, partitions: int = 3) -> None:
    """Write the events to the input, each key in one partition."""
    for key, value, at_ms in found:
        headers = [("traceparent", b"00-%d" % (at_ms % 97)), ("none", None)] if at_ms % 3 else []
        world.broker.append(INPUT, sum(key or b"") % partitions, key, value, at_ms, headers)


__all__ = ["ALERTS", "INPUT", "LETTERS", "OUTPUT", "VerifyWorld", "events", "fill"]
