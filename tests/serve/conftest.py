"""Where state rows are: what holds for one place holds for the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from lstmstream.serve.device_mover import DeviceMover
from lstmstream.serve.fast_rounds import HostMover
from lstmstream.serve.state_rows import HostBackend, StateBackend
from lstmstream.serve.step import OnnxStep
from tests.serve.helpers import device_slab
from tests.serve.memory_world import FakeStep

PLACES = ["host", "device"]


@pytest.fixture(scope="module", params=PLACES)
def make_backend(request: pytest.FixtureRequest) -> Callable[[int], StateBackend]:
    """Backends for rows of a size: in arrays, and on the device `cpu`."""
    return device_slab if request.param == "device" else lambda _size: HostBackend()


@pytest.fixture(scope="module", params=PLACES)
def either_place(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs the tests of a file twice: with state rows on the host, and on the device `cpu`."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "device":
            patch.setattr(OnnxStep, "device_mover", _mover)
            patch.setattr(FakeStep, "device_mover", _copying_mover, raising=False)
        yield


def _mover(step: OnnxStep) -> DeviceMover:
    return DeviceMover(step)


def _copying_mover(step: FakeStep) -> HostMover:
    """Rows are on the device, and come to the host to be moved."""
    mover = HostMover(step)
    mover.backend = device_slab(step.card.state.size)
    return mover
