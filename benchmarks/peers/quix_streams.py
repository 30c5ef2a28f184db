"""Quix Streams: a stateful function per event; states in RocksDB with a changelog topic, exactly once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from quixstreams import Application, State

FEATURES = ("amount", "f1", "f2", "f3", "f4", "f5", "f6", "f7")

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
initial = np.zeros((1, session.get_inputs()[1].shape[1]), np.float32)


def score_event(event: dict[str, Any], state: State) -> dict[str, Any]:
    """One step with the card's state."""
    row = state.get_bytes("row")
    before = initial if row is None else np.frombuffer(row, np.float32)[None]
    x = np.array([[event[name] for name in FEATURES]], np.float32)
    after, score = session.run(["state_out", "score"], {"x": x, "state": before})
    state.set_bytes("row", after.tobytes())
    return {"card_id": event["card_id"], "ts": event["ts"], "score": float(score[0])}


app = Application(
    broker_address=os.environ["BOOTSTRAP"],
    consumer_group=os.environ["GROUP"],
    auto_offset_reset="earliest",
    processing_guarantee="exactly-once",
    state_dir=os.environ["STATE_DIR"],
    loglevel="WARNING",
)
events = app.topic(os.environ["INPUT"], key_deserializer="str", value_deserializer="json")
scores = app.topic(os.environ["OUTPUT"], key_serializer="str", value_serializer="json")
app.dataframe(events).apply(score_event, stateful=True).to_topic(scores)

if __name__ == "__main__":
    app.run()
