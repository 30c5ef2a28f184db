"""All events of a hot key in one call have the bits of single steps, or are stepped through one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.model import load_model
from lstmstream.model.graph_parts import GraphParts, split_graph
from lstmstream.model.onnx_proto import parse, serialise
from lstmstream.model.sequence_graph import sequence_content
from lstmstream.records import Observations
from lstmstream.serve import split_step
from lstmstream.serve.model_checks import probe
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.split_step import SplitRounds
from lstmstream.serve.step import OnnxStep
from tests.models import random_model

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"hidden": 8},
    "deep": {"hidden": 16, "layers": 3, "numbers": ("a", "b", "c"), "categories": {"shop": 30}, "clock": True},
}
KEYS = ([b"hot"] * 600, [b"%d" % (n % 5) for n in range(600)], [b"%d" % min(n % 40, n % 7 * 3) for n in range(600)])


def opened(folder: Path, name: str) -> OnnxStep:
    return OnnxStep(load_model(str(random_model(folder, **MODELS[name]))), device="cpu")


def answers(step: OnnxStep, keys: list[bytes | None], ttl_ms: int | None = None, seed: int = 0) -> list[bytes]:
    """Scores, predictions and states of two batches."""
    scorer = Scorer(step, Meaning(ttl_ms, "apply", 0.5))
    scorer.states.open(0)
    given = probe(step.card, rows=len(keys))
    source = np.random.default_rng(seed)
    times = 1_700_000_000_000 + np.cumsum(source.integers(0, 3_000, len(keys)))
    found = []
    for start in (0, len(keys) // 2):
        count = len(keys) // 2
        rows, numbers = given.rows(start, count), np.arange(count, dtype=np.int64)
        batch = (numbers, numbers * 0, start + numbers, keys[start : start + count], times[start : start + count])
        scored = scorer.score(Observations(*batch, rows.x, rows.categories))
        scorer.commit()
        found += [scored.predictions.score.tobytes(), scored.predictions.steps.tobytes()]
        if scored.predictions.prediction is not None:
            found.append(scored.predictions.prediction.tobytes())
    slab = scorer.states.slabs[0]
    return [*found, slab.rows.read(np.arange(slab.index.used_rows)).tobytes()]


@pytest.mark.parametrize("ttl_ms", [None, 2_500])
@pytest.mark.parametrize("keys", KEYS, ids=["one", "five", "many"])
@pytest.mark.parametrize("name", MODELS)
def test_a_hot_key_in_one_call_has_the_bits_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, keys: list[bytes | None], ttl_ms: int | None
) -> None:
    step = opened(tmp_path, name)
    calls = []
    real = SplitRounds.step_key
    monkeypatch.setattr(SplitRounds, "step_key", lambda *given: calls.append(len(given[1])) or real(*given))
    at_once = answers(step, keys, ttl_ms)
    assert step.split is not None
    assert step.split._sequence is not None
    assert calls or ttl_ms is not None  # an expired state begins again, which a sequence cannot
    step.split._sequence = None
    assert answers(step, keys, ttl_ms) == at_once
    step.split = None
    assert answers(step, keys, ttl_ms) == at_once


def test_a_sequence_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_weights(*given: Any) -> bytes | None:
        content = sequence_content(*given)
        assert content is not None
        model = parse(content)
        biases = next(tensor for tensor in model.graph.initializer if tensor.name == "B0")
        values = np.frombuffer(biases.raw_data, np.float32).copy()
        values[3] = np.nextafter(values[3], np.float32(9))
        biases.raw_data = values.tobytes()
        return serialise(model)

    monkeypatch.setattr(split_step, "sequence_content", other_weights)
    step = opened(tmp_path, "plain")
    assert step.split is not None
    assert step.split._sequence is None
    monkeypatch.undo()
    assert answers(step, KEYS[0]) == answers(opened(tmp_path, "plain"), KEYS[0])


def parts_of(content: bytes) -> GraphParts:
    parts = split_graph(content)
    assert parts is not None
    return parts


@pytest.mark.parametrize("attribute", ["direction", "activations"])
def test_what_may_hide_a_state_is_stepped_through(tmp_path: Path, attribute: str) -> None:
    """Backwards the first event would see the last; with Relu a state may be infinite in between."""
    content = load_model(str(random_model(tmp_path, hidden=8))).content
    types = {name: (1, [1, "N", 4]) for name in parts_of(content).step.inputs if name != "state"}
    assert sequence_content(content, parts_of(content).step, types) is not None
    model = parse(content)
    lstm = next(node for node in model.graph.node if node.op_type == "LSTM")
    if attribute == "direction":
        lstm.attribute.add(name="direction", type=3, s=b"reverse")
    else:
        lstm.attribute.add(name="activations", type=8, strings=[b"Sigmoid", b"Tanh", b"Relu"])
    changed = serialise(model)
    assert sequence_content(changed, parts_of(changed).step, types) is None


def test_a_node_between_two_layers_is_stepped_through(tmp_path: Path) -> None:
    content = load_model(str(random_model(tmp_path, hidden=8, layers=2))).content
    model = parse(content)
    nodes = list(model.graph.node)
    second = [node for node in nodes if node.op_type == "LSTM"][1]
    name = second.input[0]
    second.input[0] = "doubled"
    at = nodes.index(second)
    copies = [type(node)() for node in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    for number, copy in enumerate(copies):
        if number == at:
            model.graph.node.add(op_type="Add", input=[name, name], output=["doubled"])
        model.graph.node.add().CopyFrom(copy)
    changed = serialise(model)
    parts = parts_of(changed)
    types = {name: (1, [1, "N", 4]) for name in parts.step.inputs if name != "state"}
    assert sequence_content(changed, parts.step, types) is None
