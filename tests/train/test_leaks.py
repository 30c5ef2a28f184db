"""Leaks that are planted into data: each is named before training begins, or changes no figure of the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.schema import validate_training
from tests.train import planted_leaks
from tests.train.planted_leaks import LEAKS, Frame, Leak, settings

pytestmark = pytest.mark.torch


def warnings_of(folder: Path, frame: Frame, leak: Leak | None, world: str) -> tuple[str, ...]:
    """What training says before it begins."""
    frame.write_csv(folder / "history.csv")
    return prepare_dataset(validate_training(settings(leak, ["history.csv"], world), folder)).warnings


@pytest.mark.parametrize("leak", LEAKS, ids=[leak.name for leak in LEAKS])
def test_a_leak_is_named(tmp_path: Path, leak: Leak) -> None:
    frame = leak.plant(getattr(planted_leaks, leak.world)(), np.random.default_rng(1))
    said = warnings_of(tmp_path, frame, leak, leak.world)
    assert any(leak.said in text for text in said), said


@pytest.mark.parametrize("world", ["purchases", "sensors"])
@pytest.mark.parametrize("seed", range(5))
def test_data_without_a_leak(tmp_path: Path, world: str, seed: int) -> None:
    assert warnings_of(tmp_path, getattr(planted_leaks, world)(seed), None, world) == ()
