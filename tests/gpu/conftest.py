"""Tests that need an NVIDIA GPU: `make test-gpu` runs them, `make test` leaves them out, and without one they fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.broker import harness

VARIABLE = "LSTMSTREAM_TEST_GPU"  # set by `make test-gpu`
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def kafka_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client library makes no difference to the GPU, and this one needs no extra."""
    monkeypatch.setattr(harness, "CLIENT", "kafka-python")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    return None if os.environ.get(VARIABLE) or collection_path == Path(__file__) else True
