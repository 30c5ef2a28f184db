"""Evaluated events for tests, from plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstmstream.evaluation.metrics import Evaluated

DAY = 86_400_000
EMPTY = np.empty((0, 0), np.float32)


def evaluated(
    score: Any,
    label: Any = (),
    *,
    task: str = "classify",
    names: tuple[str, ...] = ("0", "1"),
    sequence: Any = None,
    timestamp: Any = None,
    prediction: Any = None,
    truth: Any = None,
    naive: Any = None,
) -> Evaluated:
    count = len(score)

    def floats(values: Any) -> np.ndarray:
        return EMPTY if values is None else np.array(values, np.float32).reshape(count, -1)

    return Evaluated(
        task=task,
        sequence=np.arange(count) if sequence is None else np.array(sequence),
        timestamp=np.arange(count) * DAY if timestamp is None else np.array(timestamp),
        score=np.array(score, np.float32),
        prediction=None if prediction is None else floats(prediction),
        label=np.array(label, np.int64),
        truth=floats(truth),
        names=names,
        naive=floats(naive),
    )
