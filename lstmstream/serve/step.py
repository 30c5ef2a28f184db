"""One step of the model for N different keys, on ONNX Runtime.

At load the model is tried (model_checks.py) before the first event reaches it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it starts a client that reports to its maker
import onnxruntime as ort

from lstmstream.errors import CannotServe
from lstmstream.extras import install_hint
from lstmstream.model import Model
from lstmstream.serve import model_checks
from lstmstream.serve.device_mover import DeviceMover, NotOnDeviceError
from lstmstream.serve.split_step import NotSplitError, SplitStep
from lstmstream.serve.step_model import Rounds, StepInput, StepOutput

REASON_CHARS = 600
_PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}  # float32 as it is: TF32 keeps 10 bits of 23

log = logging.getLogger(__name__)


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """What is printed to file descriptor 2 within: the runtime's libraries say there why they cannot be loaded."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        text = ""
        try:
            yield lambda: text
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            text = file.read().decode(errors="replace")


class OnnxStep:
    """A StepModel on ONNX Runtime, on the CPU or on CUDA."""

    def __init__(self, model: Model, *, device: str = "auto", threads: int = 1, exact: bool = True) -> None:
        """`exact` refuses a model whose rows depend on the batch. Raises CannotServe."""
        self.card = model.card
        self.model = model
        self._providers = _providers(device)
        self._threads = threads
        self.session, lack = self._open_first(model.content)
        self.device = "cuda" if self.session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        if lack is not None:
            reason = f"ONNX Runtime cannot use CUDA: {lack}"
            if device == "cuda":
                raise CannotServe(
                    f"device.device: cuda is set, but {reason}. Install what it names (the extra `gpu` brings CUDA and"
                    " cuDNN; libcuda.so.1 is part of NVIDIA's driver), or set device.device: cpu"
                )
            log.warning("the model runs on the CPU: %s", reason)
        self.inputs = [name for name in StepInput._fields if name in model.graph_inputs]
        self.outputs = ["state_out", "score", *(["prediction"] if "prediction" in model.outputs else [])]
        model_checks.warm_up(self)
        if exact:
            model_checks.check_rows_are_independent(self)

    def step(self, given: StepInput) -> StepOutput:
        """See StepModel."""
        state, score, *prediction = self.session.run(self.outputs, self.feed(given))
        return StepOutput(state, score, prediction[0] if prediction else None)

    @cached_property
    def split(self) -> SplitStep | None:
        """Made for the first batch: an evaluation, a training and an import never ask for rounds."""
        try:
            return SplitStep(self)
        except NotSplitError as reason:
            log.debug("the graph runs as a whole in each round: %s", reason)
            return None

    def begin_rounds(self, given: StepInput) -> Rounds | None:
        """See BatchedModel."""
        return None if self.device != "cpu" or self.split is None else self.split.begin_rounds(given)

    def device_mover(self) -> DeviceMover | None:
        """See DeviceModel. On the CPU, and where this model cannot do it on the GPU, None."""
        if self.device == "cpu":
            return None
        try:
            return DeviceMover(self)
        except NotOnDeviceError as reason:
            log.warning(
                "the states of the keys are kept on the host, and copied to the GPU with each batch: %s", reason
            )
            return None

    def feed(self, given: StepInput) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]]:
        """What the graph takes of it, by name."""
        return {name: getattr(given, name) for name in self.inputs}

    def _open_first(self, content: bytes) -> tuple[ort.InferenceSession, str | None]:
        """A session, and why it is on the CPU where CUDA was wanted. Raises CannotServe."""
        if "CUDAExecutionProvider" not in self._providers:
            return self.open_session(content), None
        _load_cuda_libraries()
        refused = ""
        session = None
        with captured_stderr() as printed:
            try:
                session = self.open_session(content)
            except CannotServe as error:  # a GPU that is not there, or a model that cannot be loaded anywhere
                refused = str(error)
        if session is not None and session.get_providers()[0] == "CUDAExecutionProvider":
            return session, None
        self._providers = ["CPUExecutionProvider"]
        return session or self.open_session(content), _reason(printed()) or refused or "no reason given"

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
            # Without its own fallback, which prints to standard output.
            providers = [(name, _PROVIDER_OPTIONS.get(name, {})) for name in self._providers]
            return ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime raises its own unrelated classes
            raise CannotServe(f"model {self.model.path}: ONNX Runtime cannot load it: {error}") from error


def _reason(printed: str) -> str:
    """Why CUDA could not be loaded, on one line: of what the runtime printed, the error of the dynamic linker."""
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", printed).split())
    found = re.search(r"with error: (.*?)(?: \d{4}-\d\d-\d\d |$)", text)
    return (found[1] if found else text)[:REASON_CHARS]


def _load_cuda_libraries() -> None:
    """Those that pip has installed (the extra `gpu`): ONNX Runtime looks only where the system keeps its libraries."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it lacks; the session's own error has the reason
        ort.preload_dlls()


def _providers(device: str) -> list[str]:
    there = ort.get_available_providers()
    if device == "cpu" or (device == "auto" and "CUDAExecutionProvider" not in there):
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in there:
        raise CannotServe(
            "device.device: cuda needs a GPU, but this onnxruntime has no CUDA; run: pip uninstall onnxruntime;"
            f" then, {install_hint('gpu')} (onnxruntime and onnxruntime-gpu cannot be installed together)"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]
