"""The model, one event at a time: ONNX Runtime over the checked bytes of the file, one row in each run."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it starts a client that reports to its maker
import onnxruntime as ort

from lstmstream.errors import CannotServe
from lstmstream.model import Model
from lstmstream.records import Floats


class RowOutput(NamedTuple):
    """What the model returns for one event."""

    state: Floats  # [1, S]
    score: np.float32
    prediction: Floats | None  # [P]
    finite: bool


class RowModel:
    """Runs one row. On the CPU, with one thread."""

    def __init__(self, model: Model) -> None:
        """Raises CannotServe."""
        card = model.card
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            self._session = ort.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise CannotServe(f"model {model.path}: ONNX Runtime cannot load it: {error}") from error
        self.x = np.empty((1, card.number_columns), np.float32)  # to be filled before each run, as the next three
        self.categories = np.zeros((1, len(card.categories)), np.int64)
        self.timestamp = np.zeros(1, np.int64)
        self.elapsed = np.zeros(1, np.float32)
        self.initial = np.array([card.state.initial], np.float32)
        inputs: dict[str, Any] = {
            "x": self.x,
            "categories": self.categories,
            "timestamp": self.timestamp,
            "elapsed": self.elapsed,
            "state": self.initial,
        }
        self._inputs = {name: array for name, array in inputs.items() if name in model.graph_inputs}
        self._outputs = ["state_out", "score", *(["prediction"] if "prediction" in model.outputs else [])]

    def run(self, state: Floats) -> RowOutput:
        """One step from `state` [1, S] with what `x` and the others hold."""
        self._inputs["state"] = state
        new_state, score, *rest = self._session.run(self._outputs, self._inputs)
        prediction = rest[0][0] if rest else None
        finite = bool(np.isfinite(score[0])) and _finite(new_state) and (prediction is None or _finite(prediction))
        return RowOutput(new_state, score[0], prediction, finite)


def _finite(values: Floats) -> bool:
    """A finite sum needs finite terms; where the sum is not finite, look at each."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()) or np.isfinite(values).all())


def may_use_gpu(device: str) -> bool:
    """Whether a daemon with this `device.device` may have used a GPU: with `auto`, where this ONNX Runtime has CUDA."""
    return device == "cuda" or (device == "auto" and "CUDAExecutionProvider" in ort.get_available_providers())
