"""Foreign model files for the tests: makes them once a run, each framework in a process of its own, side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lstmstream.model import load_model
from lstmstream.serve.step import OnnxStep, StepInput

HERE = Path(__file__).parent


def make_all(folder: Path) -> None:
    """Files and recorded answers of torch and Keras in `folder`/torch and `folder`/keras."""
    running = []
    for name in ("torch", "keras"):
        (folder / name).mkdir()
        log = (folder / f"{name}.log").open("w")
        program = [sys.executable, str(HERE / f"foreign_{name}.py"), str(folder / name)]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        running.append((name, subprocess.Popen(program, stdout=log, stderr=log, env=environ), log))
    for name, process, log in running:
        code = process.wait(timeout=280)
        log.close()
        assert code == 0, f"{name}: {(folder / f'{name}.log').read_text()[-3000:]}"


def walk(path: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Serves x [B, T, F] event by event as the daemon does: predictions [B, T, P], scores [B, T]."""
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
