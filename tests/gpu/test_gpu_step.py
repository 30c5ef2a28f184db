"""On a GPU: scores, states and what is expired are those of the CPU, nearly; what is copied is the same bit for bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.model import Model, load_model
from lstmstream.serve.device_choice import make_observations
from lstmstream.serve.device_mover import DeviceMover
from lstmstream.serve.fast_rounds import HostMover
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state_rows import SlabRows
from lstmstream.serve.step import OnnxStep
from tests.models import random_model
from tests.serve.helpers import snapshot
from tests.serve.test_device import in_partitions

NEAR = {"rtol": 1e-4, "atol": 1e-4}  # after several hundred steps of a key; one step is within 1e-5
NETWORKS: dict[str, dict[str, Any]] = {
    "one layer": {"hidden": 8},
    "two layers": {"hidden": 64, "layers": 2, "numbers": ("a", "b", "c"), "categories": {"shop": 30}},
    "classes": {"hidden": 32, "numbers": ("a", "b"), "outputs": 4, "clock": True},
}
BUILTIN = "builtin:anomaly:cpu,memory"
MODELS = [*NETWORKS, BUILTIN]


def opened(name: str, folder: Path) -> tuple[OnnxStep, OnnxStep]:
    """The model on the CPU, and on the GPU."""
    model: Model = load_model(name if name == BUILTIN else str(random_model(folder, **NETWORKS[name])))
    return OnnxStep(model, device="cpu"), OnnxStep(model, device="cuda")


def scorer_on(step: OnnxStep, ttl_ms: int | None = None) -> Scorer:
    scorer = Scorer(step, Meaning(ttl_ms, "apply", 0.5))
    for partition in range(3):
        scorer.states.open(partition)
    return scorer


@pytest.mark.parametrize("ttl_ms", [None, 900])
@pytest.mark.parametrize("name", MODELS)
def test_many_batches_are_scored_as_on_the_cpu(
    name: str, ttl_ms: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With new keys, hot keys, several partitions and batches that are rolled back, which leave states as they were."""
    cpu, gpu = opened(name, tmp_path)
    assert (cpu.device, gpu.device) == ("cpu", "cuda")
    on_cpu, on_gpu = scorer_on(cpu, ttl_ms), scorer_on(gpu, ttl_ms)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    for number, batch in enumerate(make_observations(cpu.card, batches=8, events=900, keys=3_000, zipf=1.0)):
        parts = in_partitions(batch, 3)
        wanted = on_cpu.score(parts)
        if number % 4 == 3:
            before = snapshot(on_gpu.states)
            on_gpu.score(parts)
            on_gpu.rollback()
            assert snapshot(on_gpu.states) == before
        found = on_gpu.score(parts)
        for scorer in (on_cpu, on_gpu):
            scorer.commit()
        assert (found.expired, found.late_events) == (wanted.expired, wanted.late_events)
        assert found.predictions.steps.tolist() == wanted.predictions.steps.tolist()
        np.testing.assert_allclose(found.predictions.score, wanted.predictions.score, **NEAR)
        if wanted.predictions.prediction is not None:
            assert found.predictions.prediction is not None
            np.testing.assert_allclose(found.predictions.prediction, wanted.predictions.prediction, **NEAR)
    one, other = snapshot(on_cpu.states), snapshot(on_gpu.states)
    assert list(one) == list(other)
    rows = [np.array([np.frombuffer(state[0], np.float32) for state in states.values()]) for states in (one, other)]
    np.testing.assert_allclose(rows[1], rows[0], **NEAR)
    assert [state[1:] for state in one.values()] == [state[1:] for state in other.values()]


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_are_kept_on_the_gpu(name: str, tmp_path: Path) -> None:
    _, gpu = opened(name, tmp_path)
    mover = gpu.device_mover()
    assert isinstance(mover, DeviceMover)
    assert mover.backend.array.owner.device_name() == "cuda"


@pytest.mark.parametrize("name", MODELS)
def test_the_other_keys_of_a_batch_make_little_difference(name: str, tmp_path: Path) -> None:
    _, gpu = opened(name, tmp_path)
    (batch,) = make_observations(gpu.card, batches=1, events=300, keys=20, zipf=0.5)
    together = scorer_on(gpu).score(batch).predictions.score
    alone = scorer_on(gpu)
    scores = []
    for number in range(len(batch.keys)):
        scores.append(alone.score(batch.take(np.array([number]))).predictions.score[0])
        alone.commit()
    np.testing.assert_allclose(together, scores, **NEAR)


def test_rows_are_kept_bit_for_bit_while_the_slab_grows(tmp_path: Path) -> None:
    _, gpu = opened("two layers", tmp_path)
    mover = DeviceMover(gpu)
    size = mover.backend.size
    rows: SlabRows = mover.backend.open(size, 500)
    values = np.random.default_rng(5).standard_normal((500, size)).astype(np.float32)
    rows.write(np.arange(500), values)
    rows.grow(200_000)
    assert rows.read(np.arange(500)).tobytes() == values.tobytes()
    rows.fill(np.arange(100), values[0])
    assert rows.read(np.arange(100)).tobytes() == np.tile(values[0], (100, 1)).tobytes()
    rows.close()
    again = mover.backend.open(size, 200_000)
    assert mover.backend.capacity < 300_000, "its places were given back"
    again.close()


def test_a_gpu_without_enough_memory_says_so(tmp_path: Path) -> None:
    _, gpu = opened("two layers", tmp_path)
    rows = DeviceMover(gpu).backend.open(256, 500)
    with pytest.raises(MemoryError, match="no memory on the GPU"):
        rows.grow(1 << 30)  # 1 TiB
    values = np.ones((500, 256), np.float32)
    rows.write(np.arange(500), values)
    assert rows.read(np.arange(500)).tobytes() == values.tobytes()


def test_all_of_a_hot_key_is_as_on_the_host(tmp_path: Path) -> None:
    """A long run of one key, which is one call where its graph allows: the recurrence goes on inside it."""
    cpu, gpu = opened("two layers", tmp_path)
    (batch,) = make_observations(cpu.card, batches=1, events=2_000, keys=1, zipf=0.0)
    on_cpu, on_gpu = (Scorer(step, Meaning(None, "apply", None)) for step in (cpu, gpu))
    for scorer in (on_cpu, on_gpu):
        scorer.states.open(0)
    wanted, found = (scorer.score(batch).predictions.score for scorer in (on_cpu, on_gpu))
    np.testing.assert_allclose(found, wanted, **NEAR)


def test_rows_on_the_host_with_the_model_on_the_gpu(tmp_path: Path) -> None:
    """What is done where the rows cannot be on the GPU."""
    cpu, gpu = opened("two layers", tmp_path)
    (batch,) = make_observations(cpu.card, batches=1, events=700, keys=100, zipf=1.0)
    scores = []
    for step in (cpu, gpu):
        scorer = Scorer(step, Meaning(None, "apply", None), mover=HostMover(step))
        scorer.states.open(0)
        scores.append(scorer.score(batch).predictions.score)
    np.testing.assert_allclose(scores[1], scores[0], **NEAR)
