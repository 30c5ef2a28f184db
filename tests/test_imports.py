"""What a command loads: the daemon, `score` and `evaluate` no optional package, and no command another's packages."""

from __future__ import annotations

import subprocess
import sys

import pytest

BASE_INSTALL = [
    "lstmstream.serve.process",
    "lstmstream.serve.score",
    "lstmstream.transport.kafka",
    "lstmstream.transport.clients.choose",
    "lstmstream.transport.memory",
    "lstmstream.model",
    "lstmstream.config",
    "lstmstream.demo.run",
    "lstmstream.evaluation.command",
    "lstmstream.evaluation.baselines",
    "lstmstream.evaluation.comparison",
    "lstmstream.evaluation.thresholds",
    "lstmstream.history.topics",
    "lstmstream.history.split",
]


@pytest.mark.parametrize("module", BASE_INSTALL)
def test_the_base_install_loads_no_optional_package(module: str) -> None:
    probe = f"import sys, {module}; print(sorted({{'torch', 'onnx', 'polars', 'h5py'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_the_command_alone_loads_no_large_package() -> None:
    large = {"confluent_kafka", "kafka", "numpy", "onnxruntime", "polars", "pydantic", "torch", "yaml"}
    probe = f"import sys, lstmstream.cli; print(sorted({large} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_loading_the_runtime_starts_no_telemetry() -> None:
    probe = "import os, lstmstream.serve.step; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "1\n"
