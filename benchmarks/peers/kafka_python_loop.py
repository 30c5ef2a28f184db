"""The plain loop with kafka-python: one event, one step, one record; states in a dict, no guarantees."""

from __future__ import annotations

import json
import os

import numpy as np
import onnxruntime as ort
from kafka import KafkaConsumer, KafkaProducer

FEATURES = ("amount", "f1", "f2", "f3", "f4", "f5", "f6", "f7")

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
initial = np.zeros((1, session.get_inputs()[1].shape[1]), np.float32)

consumer = KafkaConsumer(
    os.environ["INPUT"],
    bootstrap_servers=os.environ["BOOTSTRAP"],
    group_id=os.environ["GROUP"],
    auto_offset_reset="earliest",
    value_deserializer=json.loads,
)
producer = KafkaProducer(
    bootstrap_servers=os.environ["BOOTSTRAP"], value_serializer=lambda value: json.dumps(value).encode()
)
states: dict[bytes, np.ndarray] = {}

for record in consumer:
    event = record.value
    x = np.array([[event[name] for name in FEATURES]], np.float32)
    state, score = session.run(["state_out", "score"], {"x": x, "state": states.get(record.key, initial)})
    states[record.key] = state
    answer = {"card_id": event["card_id"], "ts": event["ts"], "score": float(score[0])}
    producer.send(os.environ["OUTPUT"], key=record.key, value=answer)
