"""State rows on a device give the bits of rows on the host, stay where they are, and give their places back.

The device is `cpu`: the same calls as on a GPU, on the memory of the host.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from lstmstream.model import load_model
from lstmstream.model.graph_parts import moves_state
from lstmstream.model.onnx_proto import parse, serialise
from lstmstream.records import Observations
from lstmstream.serve import device_mover
from lstmstream.serve.device_choice import make_observations
from lstmstream.serve.device_memory import DeviceArray, DeviceMemory, DeviceSession
from lstmstream.serve.device_mover import DeviceMover, NotOnDeviceError
from lstmstream.serve.fast_rounds import HostMover, Mover
from lstmstream.serve.model_checks import probe
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state import StateStore
from lstmstream.serve.state_records import pack_states
from lstmstream.serve.state_rows import HostRows
from lstmstream.serve.step import OnnxStep
from tests.models import poisoned_model, random_model, write
from tests.serve.helpers import device_slab, onnx_step, snapshot
from tests.serve.memory_world import card

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"hidden": 8},
    "deep": {"hidden": 16, "layers": 2, "numbers": ("a", "b", "c"), "categories": {"shop": 30}},
}


def opened(folder: Path, **network: Any) -> OnnxStep:
    return OnnxStep(load_model(str(random_model(folder, **network))), device="cpu")


def in_partitions(batch: Observations, number: int) -> Observations:
    """As a poll gives them: partition after partition."""
    partitions = np.array([int(key or b"0") % number for key in batch.keys], np.int64)
    order = np.argsort(partitions, kind="stable")
    sorted_batch = batch.take(order)
    return Observations(
        np.arange(len(order)), partitions[order], sorted_batch.offsets, sorted_batch.keys, sorted_batch.timestamps,
        sorted_batch.x, sorted_batch.categories,
    )  # fmt: skip


def life(step: OnnxStep, mover: Mover, ttl_ms: int | None) -> list[Any]:
    """What is seen of batches with hot, new and expired keys, of which some are rolled back, one or two in flight."""
    scorer = Scorer(step, Meaning(ttl_ms, "apply", 0.5), mover=mover)
    for partition in range(3):
        scorer.states.open(partition)
    seen: list[Any] = []
    for number, batch in enumerate(make_observations(step.card, batches=12, events=700, keys=4_000, zipf=0.9)):
        scored = scorer.score(in_partitions(batch, 3))
        p = scored.predictions
        seen.append([p.score.tobytes(), p.steps.tolist(), scored.expired, scored.late_events])
        seen.append(None if p.prediction is None else p.prediction.tobytes())
        if number % 4 == 2:
            continue  # a second batch is in flight with it
        if number % 4 == 3:
            scorer.rollback()
            seen.append(snapshot(scorer.states))
        scorer.commit()
    seen.append(snapshot(scorer.states))
    return seen


@pytest.mark.parametrize("whole", [False, True], ids=["in parts", "whole"])
@pytest.mark.parametrize("ttl_ms", [None, 900])
@pytest.mark.parametrize("name", MODELS)
def test_the_bits_are_those_of_rows_on_the_host(tmp_path: Path, name: str, ttl_ms: int | None, whole: bool) -> None:
    step = opened(tmp_path, **MODELS[name])
    if whole:
        step.split = None
    mover = DeviceMover(step)
    began = mover.backend.capacity
    found = life(step, mover, ttl_ms)
    assert mover.backend.capacity > began, "it grew on the way"
    assert found == life(step, HostMover(step), ttl_ms)


def test_a_batch_moves_rows_in_place_and_none_crosses_the_bus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    step = opened(tmp_path, **MODELS["deep"])
    size = step.card.state.size
    mover = DeviceMover(step)
    scorer = Scorer(step, Meaning(None, "apply", 0.5), mover=mover)
    slab = scorer.states.open(0)
    first, second = make_observations(step.card, batches=2, events=500, keys=200, zipf=1.0)
    scorer.score(first)
    scorer.commit()
    crossed: list[tuple[int, ...]] = []
    upload, download = DeviceMemory.upload, DeviceArray.numpy

    def up(memory: DeviceMemory, values: Any) -> DeviceArray:
        crossed.append(values.shape)
        return upload(memory, values)

    def down(array: DeviceArray) -> Any:
        crossed.append(array.shape)
        return download(array)

    monkeypatch.setattr(DeviceMemory, "upload", up)
    monkeypatch.setattr(DeviceArray, "numpy", down)
    before, keys = mover.backend.array, len(slab)
    scorer.score(second)
    scorer.rollback()
    scorer.score(second)
    scorer.commit()
    assert mover.backend.array is before
    assert crossed
    assert not [shape for shape in crossed if shape[-1:] == (size,) and shape != (1, size)], "but for the initial row"
    crossed.clear()
    pack_states(slab, np.arange(keys), b"digest00", 0)
    assert (keys, size) in crossed, "rows that are written to the state topic do"


def test_all_events_of_a_hot_key_are_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys among them, and one that occurs in the rounds before too."""
    step = opened(tmp_path, **MODELS["deep"])
    mover = DeviceMover(step)
    (batch,) = make_observations(step.card, batches=1, events=400, keys=60, zipf=1.6)
    calls: list[int] = []
    run_into = DeviceSession.run_into

    def counted(session: DeviceSession, *given: Any) -> None:
        calls.append(1 if session is mover.sequence else 0)
        run_into(session, *given)

    outcomes = []
    for one in (mover, HostMover(step)):
        scorer = Scorer(step, Meaning(None, "apply", 0.5), mover=one)
        scorer.states.open(0)
        with monkeypatch.context() as patch:
            patch.setattr(DeviceSession, "run_into", counted)
            scored = scorer.score(batch)
        scorer.commit()
        outcomes.append([scored.predictions.score.tobytes(), snapshot(scorer.states)])
    assert outcomes[0] == outcomes[1]
    most = max(batch.keys.count(key) for key in batch.keys)
    assert 1 < sum(calls) <= 8
    assert len(calls) < most / 3, "fewer calls than the most frequent key has events"


def test_a_sequence_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = device_mover.sequence_step_content
    monkeypatch.setattr(
        device_mover, "sequence_step_content", lambda content, initial: real(content, [i + 1 for i in initial])
    )
    assert DeviceMover(onnx_step("small")).sequence is None
    monkeypatch.undo()
    assert DeviceMover(onnx_step("small")).sequence is not None


def test_a_state_that_is_not_finite_is_found_in_any_round(tmp_path: Path) -> None:
    path = poisoned_model(tmp_path, where="state_out", magic=666.0)
    step = OnnxStep(load_model(str(path)), device="cpu")
    amounts = np.array([[1.0], [2.0], [666.0], [4.0], [5.0]], np.float32)
    numbers = np.arange(5, dtype=np.int64)
    outcomes = []
    for mover in (DeviceMover(step), HostMover(step)):
        scorer = Scorer(step, Meaning(None, "apply", 0.5), mover=mover)
        scorer.states.open(0)
        batch = Observations(
            numbers, numbers * 0, numbers, [b"a", b"b", b"a", b"a", b"b"], numbers, amounts, np.empty((5, 0), np.int64)
        )
        scored = scorer.score(batch)
        scorer.commit()
        assert [letter.index for letter in scored.dead_letters] == [2]
        outcomes.append([scored.predictions.score.tobytes(), snapshot(scorer.states)])
    assert outcomes[0] == outcomes[1]


def test_a_state_that_is_finite_again_later_is_found_too(tmp_path: Path) -> None:
    """state_out = clip(state, -1, 1) + x * x, score = clip(state, -1, 1)."""
    nodes = [
        helper.make_node("Clip", ["state", "low", "high"], ["old"]),
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Add", ["old", "square"], ["state_out"]),
        helper.make_node("Gather", ["old", "first"], ["score"], axis=1),
    ]
    rows = {name: helper.make_tensor_value_info(name, 1, ["N", 2]) for name in ("state", "state_out")}
    x, score = helper.make_tensor_value_info("x", 1, ["N", 1]), helper.make_tensor_value_info("score", 1, ["N"])
    constants = [helper.make_tensor(name, 1, [], [value]) for name, value in (("low", -1.0), ("high", 1.0))]
    constants.append(helper.make_tensor("first", 7, [], [0]))
    graph = helper.make_graph(nodes, "g", [x, rows["state"]], [rows["state_out"], score], constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    step = OnnxStep(load_model(str(write(tmp_path / "m.onnx", proto, card()))), device="cpu")
    numbers = np.arange(4, dtype=np.int64)
    amounts = np.array([[1.0], [1e30], [2.0], [3.0]], np.float32)
    outcomes = []
    for mover in (DeviceMover(step), HostMover(step)):
        scorer = Scorer(step, Meaning(None, "apply", 0.5), mover=mover)
        scorer.states.open(0)
        batch = Observations(numbers, numbers * 0, numbers, [b"a"] * 4, numbers, amounts, np.empty((4, 0), np.int64))
        scored = scorer.score(batch)
        scorer.commit()
        assert [letter.index for letter in scored.dead_letters] == [1]
        outcomes.append([scored.predictions.score.tobytes(), snapshot(scorer.states)])
    assert outcomes[0] == outcomes[1]


def test_a_partition_that_is_closed_gives_its_places_back() -> None:
    slab = device_slab(2)
    capacity = 0
    for _ in range(3):
        rows = [slab.open(2, 256) for _ in range(20)]
        assert slab.capacity == capacity or not capacity
        capacity = slab.capacity
        for number, one in enumerate(rows):
            one.write(np.arange(256), np.full((256, 2), number, np.float32))
        for number, one in enumerate(rows):
            assert (one.read(np.arange(256)) == number).all(), "no place is given twice"
        for one in rows:
            one.close()
            one.close()


def test_a_partition_that_begins_again_gives_its_places_back() -> None:
    slab = device_slab(2)
    store = StateStore(np.zeros(2, np.float32), slab)
    for _ in range(40):
        store.open(0)
    store.close(0)
    store.open(1)
    assert slab.capacity < 2_000


def test_rows_survive_growth() -> None:
    slab = device_slab(3)
    rows = slab.open(3, 700)
    values = np.random.default_rng(5).standard_normal((700, 3)).astype(np.float32)
    rows.write(np.arange(700), values)
    rows.grow(40_000)
    assert rows.read(np.arange(700)).tobytes() == values.tobytes()
    assert rows.row_bytes == 8 + 3 * 4, "and its place"
    assert slab.capacity >= 40_000


def test_a_device_without_memory_for_more_rows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = device_slab(3).open(3, 700)
    values = np.ones((700, 3), np.float32)
    rows.write(np.arange(700), values)

    def full(*_given: Any) -> None:
        raise RuntimeError("bad allocation")

    with monkeypatch.context() as patch:
        patch.setattr(DeviceMemory, "empty", full)
        with pytest.raises(MemoryError, match=r"no memory on the GPU for \d+ bytes of states, .* state\.max_keys"):
            rows.grow(40_000)
    assert rows.read(np.arange(700)).tobytes() == values.tobytes()


def test_a_device_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = device_mover.step_content
    monkeypatch.setattr(device_mover, "step_content", lambda content, initial: real(content, [i + 1 for i in initial]))
    with pytest.raises(NotOnDeviceError, match="results"):
        DeviceMover(onnx_step("small"))


def test_a_device_without_memory_leaves_the_rows_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = opened(tmp_path, **MODELS["plain"])
    assert step.device_mover() is None
    assert caplog.records == []

    def full(*_given: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(step, "device", "cuda")
    monkeypatch.setattr(DeviceMemory, "empty", full)
    scorer = Scorer(step, Meaning(None, "apply", 0.5))
    (warning,) = caplog.records
    assert "kept on the host" in warning.getMessage()
    assert "out of memory" in warning.getMessage()
    scorer.states.open(0)
    assert isinstance(scorer.states.slabs[0].rows, HostRows)
    given = probe(step.card, rows=1)
    one = np.zeros(1, np.int64)
    assert len(scorer.score(Observations(one, one, one, [b"a"], one, given.x, given.categories)).predictions.index) == 1


def test_a_new_state_that_does_not_come_of_the_old_one_is_kept_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime may then write the row before it is read."""
    step = onnx_step("small")
    monkeypatch.setattr(step, "split", None)
    model = parse(step.model.content)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == "state":
                node.input[place] = "other"
    assert moves_state(step.model.content)
    assert not moves_state(serialise(model))
    monkeypatch.setattr(device_mover, "moves_state", lambda _content: moves_state(serialise(model)))
    with pytest.raises(NotOnDeviceError, match="does not depend"):
        DeviceMover(step)
