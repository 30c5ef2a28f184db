"""One step of the model for N different keys, on ONNX Runtime.

At load the model is tried (model_checks.py) before the first event reaches it.
"""

from __future__ import annotations

import os

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it starts a client that reports to its maker
import onnxruntime as ort

from lstmstream.errors import CannotServe
from lstmstream.extras import install_hint
from lstmstream.model import Model
from lstmstream.serve import model_checks
from lstmstream.serve.step_model import StepInput, StepOutput


class OnnxStep:
    """A StepModel on ONNX Runtime, on the CPU or on CUDA."""

    def __init__(self, model: Model, *, device: str = "auto", threads: int = 1, exact: bool = True) -> None:
        """`exact` refuses a model whose rows depend on the batch. Raises CannotServe."""
        self.card = model.card
        self.model = model
        self._providers = _providers(device)
        self._threads = threads
        self.session = self.open_session(model.content)
        self.device = "cuda" if self.session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        self._inputs = [name for name in StepInput._fields if name in model.graph_inputs]
        self.outputs = ["state_out", "score", *(["prediction"] if "prediction" in model.outputs else [])]
        model_checks.warm_up(self)
        if exact:
            model_checks.check_rows_are_independent(self)

    def step(self, given: StepInput) -> StepOutput:
        """See StepModel."""
        state, score, *prediction = self.session.run(self.outputs, self.feed(given))
        return StepOutput(state, score, prediction[0] if prediction else None)

    def feed(self, given: StepInput) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]]:
        """What the graph takes of it, by name."""
        return {name: getattr(given, name) for name in self._inputs}

    def open_session(self, content: bytes) -> ort.InferenceSession:
        """A session over other bytes with the same options. Raises CannotServe."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Bytes that happen to look like the runtime's own format would pass by all our checks.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        try:
            return ort.InferenceSession(content, options, providers=self._providers)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise CannotServe(f"model {self.model.path}: ONNX Runtime cannot load it: {error}") from error


def _providers(device: str) -> list[str]:
    there = ort.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in there):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in there:
        raise CannotServe(
            "device.device: cuda asks for a GPU, and this onnxruntime has no CUDA; run: pip uninstall onnxruntime;"
            f" then, {install_hint('gpu')} (onnxruntime and onnxruntime-gpu cannot be installed together)"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
