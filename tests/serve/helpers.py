"""What the tests of the engine share: batches from plain events, engines over the models in tests/data."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reference import Event

from lstmstream.card import Card, Feature, StatePart, StateSpec
from lstmstream.model import load_model
from lstmstream.serve.decode import Decoder
from lstmstream.serve.encode import Encoder
from lstmstream.serve.engine import Engine
from lstmstream.serve.records import Headers, Message, RecordBatch
from lstmstream.serve.state import StateStore
from lstmstream.serve.step import OnnxStep, StepInput, StepOutput

DATA = Path(__file__).parent.parent / "data"
OUT, ALERTS, LETTERS = "out", "alerts", "letters"


def batch(events: Sequence[Event], *, topic: str = "in", headers: Sequence[Headers] | None = None) -> RecordBatch:
    return RecordBatch(
        topic,
        np.array([event.partition for event in events], dtype=np.int64),
        np.array([event.offset for event in events], dtype=np.int64),
        np.array([event.timestamp for event in events], dtype=np.int64),
        [event.key for event in events],
        [event.value for event in events],
        [()] * len(events) if headers is None else list(headers),
    )


def one(value: bytes | None, *, key: bytes | None = b"k", timestamp: int = 0) -> RecordBatch:
    return batch([Event(0, 0, timestamp, key, value)])


@functools.cache
def onnx_step(name: str) -> OnnxStep:
    return OnnxStep(load_model(str(DATA / f"{name}.onnx"), base=None), device="cpu")


def engine(
    model: str | Any,
    *,
    ttl_ms: int | None = None,
    late: str = "apply",
    partitions: Iterable[int] = (0,),
    alerts: str | None = ALERTS,
    **decoding: Any,
) -> Engine:
    """`model`: a name in tests/data, or a StepModel. The other arguments are the decoder's."""
    step = onnx_step(model) if isinstance(model, str) else model
    made = Engine(
        step,
        Decoder(step.card, **decoding),
        Encoder(step.card, output_topic=OUT, alerts_topic=alerts, dead_letter_topic=LETTERS),
        ttl_ms=ttl_ms,
        late=late,
        threshold=step.card.threshold,
    )
    for partition in partitions:
        made.states.open(partition)
    return made


def run(made: Engine, events: Sequence[Event], sizes: Iterable[int]) -> list[Message]:
    """All events in batches of these sizes; the messages."""
    messages: list[Message] = []
    at = 0
    for size in sizes:
        if at < len(events):
            messages += made.process(batch(events[at : at + size])).messages
            made.commit()
            at += size
    assert at >= len(events)
    return messages


def stage_of(message: Message) -> str:
    return dict(message.headers)["lstmstream.stage"].decode()  # type: ignore[union-attr]


def snapshot(states: StateStore) -> dict[tuple[int, bytes | None], tuple[bytes, int, int, int]]:
    """Every key that has seen an event: row bytes, steps, last timestamp, last offset."""
    return {
        (partition, key): (slab.rows[row].tobytes(), *slab.get(row)[1:])
        for partition, slab in states.slabs.items()
        for key, row in slab.index.items()
        if slab.steps[row]
    }


class NumpyStep:
    """A step in elementwise numpy, whose state holds all that came before; fails where the amount is 666."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.card = Card(
            name="numpy",
            version="1",
            task="anomaly",
            features=(Feature("amount", "number"),),
            state=StateSpec(2, (0.25, -1.0), (StatePart("sum", 0, (1,)), StatePart("count", 1, (1,)))),
            outputs=("state_out", "score"),
            threshold=None,
            fingerprint="f" * 32,
        )

    def step(self, given: StepInput) -> StepOutput:
        self.rounds.append(len(given.x))
        amount = np.nan_to_num(given.x[:, 0])
        pause = np.nan_to_num(given.elapsed, nan=np.float32(-3.0))
        total = given.state[:, 0] * np.float32(0.5) + amount + pause
        total[amount == np.float32(666)] = np.inf
        state = np.stack([total, given.state[:, 1] + np.float32(1)], axis=1)
        return StepOutput(state, total, None)
