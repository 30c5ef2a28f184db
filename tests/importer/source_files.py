"""Model files of other frameworks for the tests of `import`, and a way to run what was imported.

Those of torch and Keras are made once a test run, each framework in a process of its own, in parallel.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import orjson
import pytest

from lstmstream.errors import CannotServe
from lstmstream.importer.command import import_model
from lstmstream.importer.sequence_graph import SequenceGraph
from lstmstream.model import load_model
from lstmstream.serve.step import OnnxStep
from lstmstream.serve.step_model import StepInput

HERE = Path(__file__).parent
F, H = 3, 4  # of the small files


def one_thread() -> dict[str, str]:
    """The environment of a program that makes or reads model files beside others."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def make_all(folder: Path) -> None:
    """Files and recorded answers of torch and Keras in `folder`/torch and `folder`/keras."""
    running = []
    for name in ("torch", "keras"):
        (folder / name).mkdir()
        log = (folder / f"{name}.log").open("w")
        program = [sys.executable, str(HERE / f"{name}_models.py"), str(folder / name)]
        running.append((name, subprocess.Popen(program, stdout=log, stderr=log, env=one_thread()), log))
    for name, process, log in running:
        code = process.wait(timeout=840)
        log.close()
        assert code == 0, f"{name}: {(folder / f'{name}.log').read_text()[-3000:]}"


def serve(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs x [B, T, F] event by event as the daemon does: predictions [B, T, P], scores [B, T]."""
    step = OnnxStep(load_model(path), device="cpu")
    rows = len(x)
    nothing = np.zeros((rows, 0), np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.float32)
    state = np.tile(np.array(step.card.state.initial, np.float32), (rows, 1))
    predictions, scores = [], []
    for event in range(x.shape[1]):
        out = step.step(StepInput(np.ascontiguousarray(x[:, event], np.float32), *nothing, state))
        state = out.state
        assert out.prediction is not None
        predictions.append(out.prediction)
        scores.append(out.score)
    return np.stack(predictions, axis=1), np.stack(scores, axis=1)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return (0.5 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def lstm_file(path: Path, *, length: int | None = None, whole: bool = False) -> Path:
    """A plain LSTM with a sigmoid head, as ONNX."""
    graph = SequenceGraph(F, length)
    graph.recurrent(
        "LSTM", draw(4 * H, F), draw(4 * H, H, seed=1), draw(8 * H, seed=2), ["sigmoid", "tanh"],
        linear_before_reset=None, whole=whole,
    )  # fmt: skip
    graph.dense(draw(H, 1, seed=3), draw(1, seed=4))
    graph.activate("sigmoid")
    path.write_bytes(graph.to_bytes())
    return path


def edited(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def keras_file(
    path: Path, *, change: Any = None, kernel: Any = None, outside: Path | None = None, more: Any = None
) -> Path:
    """A .keras file by hand: LSTM(2) over 3 features. `more` is given the group of its weights."""
    layers = [
        {"class_name": "InputLayer", "config": {"name": "i", "batch_shape": [None, None, 3], "dtype": "float32"}},
        {"class_name": "LSTM", "config": {
            "name": "l", "return_sequences": False, "use_bias": True,
            "activation": "tanh", "recurrent_activation": "sigmoid",
        }},
    ]  # fmt: skip
    config = {"class_name": "Sequential", "config": {"layers": layers}}
    metadata = {"keras_version": "3.15.1"}
    if change:
        change(config, metadata)
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        group = file.create_group("layers/lstm/cell/vars")
        if outside is not None:
            group["0"] = h5py.ExternalLink(str(outside), "/secret")
        else:
            group["0"] = draw(3, 8) if kernel is None else kernel
        group["1"], group["2"] = draw(2, 8, seed=1), draw(8, seed=2)
        if more:
            more(group)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", orjson.dumps(config))
        archive.writestr("metadata.json", orjson.dumps(metadata))
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def refusal(file: Path, **options: Any) -> str:
    out = file.parent / "refused.onnx"
    with pytest.raises(CannotServe) as refused:
        import_model(file, out=out, **options)
    assert not out.exists()
    return str(refused.value)
