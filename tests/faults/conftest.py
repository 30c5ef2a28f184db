"""Every fault strikes on both clients. Tests without the marker `short_fault` run in `make test-faults` only."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker.conftest import client
from tests.broker.conftest import pytest_collection_modifyitems as leave_out_other_client

ALL_FAULTS = "LSTMSTREAM_TEST_FAULTS"  # the variable that `make test-faults` sets
HERE = Path(__file__).parent

__all__ = ["client"]


@pytest.fixture
def seed() -> int:
    """Gives the events and the faults; set $LSTMSTREAM_TEST_SEED to have others."""
    return int(os.environ.get("LSTMSTREAM_TEST_SEED", "1"))


@pytest.fixture(autouse=True)
def sockets_of_outages() -> Iterator[None]:
    """kafka-python leaves sockets open whose connection failed: they are collected while that is no error."""
    yield
    gc.collect()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_other_client(config, items)
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))
    if os.environ.get(ALL_FAULTS):
        return
    left_out = [
        item for item in items if item.path.is_relative_to(HERE) and item.get_closest_marker("short_fault") is None
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
