"""What the tests of the engine share: batches from plain events, engines over the models in tests/data."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstmstream.model import load_model
from lstmstream.model.card import Card, Feature, StatePart, StateSpec
from lstmstream.records import Headers, RecordBatch
from lstmstream.serve.decode import Decoder
from lstmstream.serve.device_memory import DeviceMemory
from lstmstream.serve.device_slab import DeviceSlab
from lstmstream.serve.encode import Encoder, Outputs, OutputTopics
from lstmstream.serve.engine import Engine
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state import Slab, StateStore
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepInput, StepOutput
from tests.serve.reference import Event

DATA = Path(__file__).parent.parent / "data"
OUT, ALERTS, LETTERS = "out", "alerts", "letters"
_CARD_THRESHOLD: Any = object()


class Message(NamedTuple):
    """One record of a RecordBatch, so that assertions read as a list of records."""

    topic: str
    partition: int  # BY_KEY where the key decides
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers


def messages_of(records: RecordBatch) -> list[Message]:
    columns = (records.partitions.tolist(), records.keys, records.values, records.timestamps.tolist(), records.headers)
    return [Message(records.topic, *one) for one in zip(*columns, strict=True)]


def flatten(outputs: Outputs) -> list[Message]:
    """Predictions, then alerts, then dead letters."""
    return [message for records in outputs.batches() for message in messages_of(records)]


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


def device_slab(size: int) -> DeviceSlab:
    """A slab on the device `cpu`."""
    return DeviceSlab(size, DeviceMemory("cpu"), onnx_step("small").open_session)


def engine(
    model: str | Any,
    *,
    ttl_ms: int | None = None,
    late: str = "apply",
    threshold: float | None = _CARD_THRESHOLD,
    partitions: Iterable[int] = (0,),
    alerts: str | None = ALERTS,
    include: Sequence[str] = (),
    output_key: str | None = None,
    reasons: int = 0,
    **decoding: Any,
) -> Engine:
    """`model`: a name in tests/data, or a StepModel. The last arguments are the decoder's."""
    step = onnx_step(model) if isinstance(model, str) else model
    meaning = Meaning(ttl_ms, late, step.card.threshold if threshold is _CARD_THRESHOLD else threshold)
    made = Engine(
        Decoder(step.card, **decoding),
        Scorer(step, meaning, reasons=reasons > 0),
        Encoder(step.card, OutputTopics(OUT, alerts, LETTERS), include=include, output_key=output_key, reasons=reasons),
    )
    for partition in partitions:
        made.scorer.states.open(partition)
    return made


def run(made: Engine, events: Sequence[Event], sizes: Iterable[int]) -> list[Message]:
    """All events in batches of these sizes; what was written."""
    messages: list[Message] = []
    at = 0
    for size in sizes:
        if at < len(events):
            messages += flatten(made.process(batch(events[at : at + size])).outputs)
            made.commit()
            at += size
    assert at >= len(events)
    return messages


def stage_of(message: Message) -> str:
    return dict(message.headers)["lstmstream.stage"].decode()  # type: ignore[union-attr]


def snapshot(states: StateStore) -> dict[tuple[int, bytes | None], tuple[bytes, int, int, int, int]]:
    """Every key that has seen an event: row bytes, steps, last timestamp, last offset, failures."""
    return {
        (partition, key): ((state := slab.get(row)).row.tobytes(), *state[1:5])
        for partition, slab in states.slabs.items()
        for key, row in slab.index.items()
        if slab.steps[row]
    }


def tables(states: StateStore) -> dict[int, tuple[dict[bytes | None, int], list[int]]]:
    """Each partition's keys with their row numbers, and the row numbers of no key, in the order of their next use."""
    return {partition: (dict(slab.index), free_rows(slab)) for partition, slab in states.slabs.items()}


def free_rows(slab: Slab) -> list[int]:
    """The row numbers that the next keys get."""
    return slab.index.free_rows()


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
        pause = np.nan_to_num(given.elapsed, nan=-3.0)
        total = given.state[:, 0] * np.float32(0.5) + amount + pause
        total[amount == np.float32(666)] = np.inf
        state = np.stack([total, given.state[:, 1] + np.float32(1)], axis=1)
        return StepOutput(state, total, None)
