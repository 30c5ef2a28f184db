"""A graph in three parts gives the bits of the whole, or is used whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lstmstream.model import load_model
from lstmstream.model.graph_parts import GraphPart, part_content, split_graph
from lstmstream.records import Observations
from lstmstream.serve import split_step
from lstmstream.serve.model_checks import probe
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.split_step import NotSplitError, SplitStep
from lstmstream.serve.step import OnnxStep
from tests.models import random_model

MODELS: dict[str, dict[str, Any]] = {
    "plain": {"hidden": 8},
    "deep": {"hidden": 16, "layers": 2, "numbers": ("a", "b", "c"), "categories": {"shop": 30}},
    "without elapsed": {"hidden": 8, "elapsed": False},
}


def opened(folder: Path, name: str) -> OnnxStep:
    return OnnxStep(load_model(str(random_model(folder, **MODELS[name]))), device="cpu")


@pytest.mark.parametrize("name", MODELS)
def test_rounds_have_the_bits_of_single_steps(tmp_path: Path, name: str) -> None:
    step = opened(tmp_path, name)
    given = probe(step.card, rows=40)
    rounds = step.begin_rounds(given)
    assert rounds is not None
    state, expected = given.state[:20], given.state[:20]
    scores, predictions = [], []
    for start, stop in ((0, 20), (20, 32), (32, 39), (39, 40)):
        n = stop - start
        out = step.step(given.rows(start, n)._replace(state=expected[:n]))
        scores.append(out.score)
        predictions.append(out.prediction)
        expected = out.state
        state = rounds.step(start, stop, state[:n])
        assert state.tobytes() == expected.tobytes()
    score, prediction = rounds.outputs()
    assert score.tobytes() == np.concatenate(scores).tobytes()
    if prediction is not None:
        assert prediction.tobytes() == np.concatenate([p for p in predictions if p is not None]).tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_most_of_the_graph_runs_once_for_a_batch(tmp_path: Path, name: str) -> None:
    content = load_model(str(random_model(tmp_path, **MODELS[name]))).content
    parts = split_graph(content)
    assert parts is not None
    assert len(parts.step.nodes) < len(parts.before.nodes) + len(parts.after.nodes)
    assert "state" in parts.step.inputs
    assert parts.step.outputs[0] == "state_out"


def test_a_part_that_differs_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = opened(tmp_path, "plain")
    real = split_step._session

    class Wrong:
        def __init__(self, session: Any) -> None:
            self.session = session

        def run(self, *given: Any) -> list[Any]:
            first, *others = self.session.run(*given)
            return [np.nextafter(first, np.float32(9)), *others]

    def session(whole: Any, content: bytes, part: GraphPart, types: Any) -> Any:
        found = real(whole, content, part, types)
        return Wrong(found) if part.outputs[:1] == ["state_out"] else found

    monkeypatch.setattr(split_step, "_session", session)
    with pytest.raises(NotSplitError, match="results"):
        SplitStep(step)


def test_a_part_that_cannot_be_loaded_leaves_the_graph_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = opened(tmp_path, "plain")
    monkeypatch.setattr(split_step, "part_content", lambda *given: part_content(*given)[:-40])
    with pytest.raises(NotSplitError):
        SplitStep(step)


def test_a_scorer_gives_the_same_with_and_without(tmp_path: Path) -> None:
    """Hot keys, new keys, expired states."""
    step = opened(tmp_path, "deep")
    source = np.random.default_rng(3)
    answers = []
    for split in (step.split, None):
        step.split = split
        scorer = Scorer(step, Meaning(50_000, "apply", 0.5))
        scorer.states.open(0)
        source = np.random.default_rng(3)
        given = probe(step.card, rows=600)
        for start in range(0, 600, 150):
            rows = given.rows(start, 150)
            keys: list[bytes | None] = [b"%d" % key for key in np.minimum(source.zipf(1.5, 150), 40)]
            numbers = np.arange(150, dtype=np.int64)
            times = 1_700_000_000_000 + np.cumsum(source.integers(0, 3_000, 150))
            scored = scorer.score(
                Observations(numbers, numbers * 0, start + numbers, keys, times, rows.x, rows.categories)
            )
            scorer.commit()
            answers.append([scored.predictions.score.tobytes(), scored.predictions.steps.tolist(), scored.expired])
        slab = scorer.states.slabs[0]
        answers.append([slab.rows.read(np.arange(slab.index.used_rows)).tobytes()])
    assert step.split is None
    assert answers[:5] == answers[5:]
