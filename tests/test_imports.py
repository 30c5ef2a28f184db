"""What a command loads: the serving side never torch or onnx, and no command the other's side."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVING = [
    "lstmstream.serve.run",
    "lstmstream.serve.score",
    "lstmstream.transport.kafka_python",
    "lstmstream.transport.memory",
    "lstmstream.model",
    "lstmstream.config",
    "lstmstream.demo.run",
]


@pytest.mark.parametrize("module", SERVING)
def test_the_serving_side_never_loads_torch_or_onnx(module: str) -> None:
    probe = f"import sys, {module}; print(sorted({{'torch', 'onnx'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_command_alone_loads_neither_kafka_nor_onnxruntime() -> None:
    probe = "import sys, lstmstream.cli; print(sorted({'onnxruntime', 'polars', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_loading_the_runtime_starts_no_telemetry() -> None:
    probe = "import os, lstmstream.serve.step; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
