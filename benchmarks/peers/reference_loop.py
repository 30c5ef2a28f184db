"""The reference: micro-batches in one thread, states in memory, no guarantees.

consume → decode → gather → rounds of ONNX steps → scatter → encode → produce. A round holds the n-th event of each card
in the batch. Cards are ordered by their number of events, most first, so the cards of each round are the first rows of
the gathered states.
"""

from __future__ import annotations

import os

import msgspec
import numpy as np
import onnxruntime as ort
from confluent_kafka import Consumer, Producer

BATCH = 10_000


class Event(msgspec.Struct, gc=False):
    """One event, with the fields that are needed."""

    card_id: str
    ts: str
    amount: float
    f1: float
    f2: float
    f3: float
    f4: float
    f5: float
    f6: float
    f7: float


class Answer(msgspec.Struct, gc=False):
    """One record of the output."""

    card_id: str
    ts: str
    score: float


options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
rows: dict[str, int] = {}
states = np.zeros((1024, session.get_inputs()[1].shape[1]), np.float32)


def rows_of(events: list[Event]) -> np.ndarray:
    """[N] The row of each event's card; a new card gets the next one."""
    global states  # noqa: PLW0603 - the whole program is one loop
    found = np.array([rows.setdefault(event.card_id, len(rows)) for event in events])
    if len(rows) > len(states):
        grown = np.zeros((2 * len(rows), states.shape[1]), np.float32)
        grown[: len(states)] = states
        states = grown
    return found


def score_events(x: np.ndarray, row: np.ndarray) -> np.ndarray:
    """[N] The scores; the states of the cards go on."""
    order = np.argsort(row, kind="stable")
    sorted_rows = row[order]
    first = np.flatnonzero(np.r_[True, sorted_rows[1:] != sorted_rows[:-1]])
    count = np.diff(np.r_[first, len(row)])
    by_count = np.argsort(-count, kind="stable")
    first, count = first[by_count], count[by_count]
    cards = sorted_rows[first]
    gathered = states[cards]
    scores = np.empty(len(row), np.float32)
    size = len(cards)
    for number in range(count[0]):
        size = int(np.searchsorted(-count[:size], -number))  # cards with more events than `number`
        here = order[first[:size] + number]
        gathered[:size], scores[here] = session.run(["state_out", "score"], {"x": x[here], "state": gathered[:size]})
    states[cards] = gathered
    return scores


def main() -> None:
    """Run until a signal ends the process."""
    servers, output = os.environ["BOOTSTRAP"], os.environ["OUTPUT"]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": os.environ["GROUP"],
            "auto.offset.reset": "earliest",
            "queued.min.messages": 200_000,
            "fetch.wait.max.ms": 20,
            "max.partition.fetch.bytes": 16 << 20,
        }
    )
    consumer.subscribe([os.environ["INPUT"]])
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": 5,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    decoder, encoder = msgspec.json.Decoder(list[Event]), msgspec.json.Encoder()
    while True:
        messages = [message for message in consumer.consume(BATCH, 0.05) if not message.error()]
        if not messages:
            continue
        events = decoder.decode(b"[" + b",".join([message.value() or b"" for message in messages]) + b"]")
        x = np.array([(e.amount, e.f1, e.f2, e.f3, e.f4, e.f5, e.f6, e.f7) for e in events], np.float32)
        scores = score_events(x, rows_of(events)).tolist()
        answers = [Answer(event.card_id, event.ts, score) for event, score in zip(events, scores, strict=True)]
        values = encoder.encode_lines(answers).split(b"\n")
        for message, value in zip(messages, values, strict=False):  # after the last line there is an empty one
            producer.produce(output, value, message.key())
        producer.poll(0)
        while len(producer) > 500_000:
            producer.poll(0.05)


if __name__ == "__main__":
    main()
