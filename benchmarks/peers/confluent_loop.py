"""The plain loop with confluent-kafka: one event, one step, one record; states in a dict, no guarantees."""

from __future__ import annotations

import json
import os

import numpy as np
import onnxruntime as ort
from confluent_kafka import Consumer, Producer

FEATURES = ("amount", "f1", "f2", "f3", "f4", "f5", "f6", "f7")

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
initial = np.zeros((1, session.get_inputs()[1].shape[1]), np.float32)

consumer = Consumer(
    {
        "bootstrap.servers": os.environ["BOOTSTRAP"],
        "group.id": os.environ["GROUP"],
        "auto.offset.reset": "earliest",
    }
)
consumer.subscribe([os.environ["INPUT"]])
producer = Producer({"bootstrap.servers": os.environ["BOOTSTRAP"]})
states: dict[bytes, np.ndarray] = {}

while True:
    message = consumer.poll(1.0)
    if message is None or message.error():
        continue
    key, value = message.key(), message.value()
    assert key is not None
    assert value is not None
    event = json.loads(value)
    x = np.array([[event[name] for name in FEATURES]], np.float32)
    state, score = session.run(["state_out", "score"], {"x": x, "state": states.get(key, initial)})
    states[key] = state
    answer = {"card_id": event["card_id"], "ts": event["ts"], "score": float(score[0])}
    while True:
        try:
            producer.produce(os.environ["OUTPUT"], json.dumps(answer).encode(), key)
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)
