"""A batch whose observations all move their states is scored at once, and gives the same bits as round by round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.records import Observations
from lstmstream.serve import scorer as scorer_module
from lstmstream.serve.scored import Scored
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.step_model import StepInput, StepOutput
from tests.serve.memory_world import MAGIC, FakeStep, card

pytestmark = pytest.mark.usefixtures("either_place")

KEYS = (b"a", b"b", b"c", None)
START_MS = 1_700_000_000_000
LARGE = 1.5
event = st.tuples(
    st.integers(0, 1),  # partition
    st.sampled_from(KEYS),
    st.sampled_from([0, 0, 1, 40, -30, 5_000]),  # milliseconds since the event before
    st.sampled_from([1.0, -2.5, 1.0, 7.25, MAGIC]),  # the model fails at MAGIC
)
batches = st.lists(st.lists(event, min_size=0, max_size=12), min_size=1, max_size=6)


class FailingStep(FakeStep):
    """Reads the time too. At MAGIC the new state alone is not finite; where the mean is large, no output is."""

    def step(self, given: StepInput) -> StepOutput:
        state, score, prediction = super().step(given)
        score = score + np.nan_to_num(given.elapsed, nan=-1.0)
        magic = given.x[:, 0] == np.float32(MAGIC)
        state = np.where(magic[:, None], np.float32(np.inf), state)
        score = np.where(magic, np.float32(0), score)
        score = np.where(given.state[:, 0] > LARGE, np.float32(np.nan), score)
        return StepOutput(state.astype(np.float32), score.astype(np.float32), prediction)


def observations(events: list[Any], first_offset: int, now_ms: int) -> Observations:
    n = len(events)
    return Observations(
        index=np.arange(n, dtype=np.int64),
        partitions=np.array([partition for partition, *_ in events], np.int64),
        offsets=first_offset + np.arange(n, dtype=np.int64),
        keys=[key for _, key, *_ in events],
        timestamps=now_ms + np.cumsum([pause for _, _, pause, _ in events], dtype=np.int64),
        x=np.array([[amount] for *_, amount in events], np.float32).reshape(n, 1),
        categories=np.empty((n, 0), np.int64),
    )


def seen(one: Scorer, scored: Scored) -> list[Any]:
    """All that came of a batch, and all that is kept."""
    p = scored.predictions
    outcome: list[Any] = [p.index.tolist(), p.score.tobytes(), p.steps.tolist(), p.alert.tolist(), scored.dead_letters]
    outcome += [scored.late_events, scored.expired, scored.resets]
    outcome += [{n: (c.rows.tolist(), c.first_offsets.tolist()) for n, c in scored.changed.items()}]
    for slab in one.states.slabs.values():
        rows = sorted(slab.index.values())
        outcome += [
            slab.rows.read(np.array(rows, np.int64)).tobytes(),
            slab.steps[rows].tolist(),
            slab.last_timestamp[rows].tolist(),
        ]
        outcome += [slab.last_offset[rows].tolist(), slab.failures[rows].tolist()]
    return outcome


@given(batches, st.sampled_from(["apply", "score", "drop"]), st.sampled_from([None, 50]), st.integers(1, 3))
@settings(max_examples=400, deadline=None)
def test_at_once_is_round_by_round(drawn: list[Any], late: str, ttl_ms: int | None, reset_after: int) -> None:
    meaning = Meaning(ttl_ms, late, 0.5, reset_after)
    outcomes: list[list[Any]] = []
    for at_once in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not at_once:
                patch.setattr(scorer_module, "run_rounds", lambda *_args, **_options: None)
            one = Scorer(FailingStep(card()), meaning)
            one.states.open(0), one.states.open(1)
            offset, now_ms, outcome = 0, START_MS, []
            for events in drawn:
                batch = observations(events, offset, now_ms)
                offset += len(events)
                now_ms = int(batch.timestamps[-1]) if events else now_ms
                outcome.append(seen(one, one.score(batch)))
                one.commit()
            outcomes.append(outcome)
    assert outcomes[0] == outcomes[1]


def test_the_usual_batch_is_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a round of its own")

    monkeypatch.setattr(Scorer, "_run_round", fail)
    one = Scorer(FailingStep(card()), Meaning(50, "apply", 0.5))
    one.states.open(0)
    events = [(0, b"a", 10, 1.0), (0, b"b", 10, 2.0), (0, b"a", 100, 3.0), (0, b"a", -20, 4.0)]
    assert one.score(observations(events, 0, START_MS)).predictions.steps.tolist() == [1, 1, 1, 2]


class Counting(FakeStep):
    """Adds one to the state in each step, but for the first of a batch, which leaves it in the same array."""

    def step(self, given: StepInput) -> StepOutput:
        first = len(given.x) > 1
        return StepOutput(given.state if first else given.state + np.float32(1), given.x[:, 0], None)


def test_the_states_before_a_batch_outlive_a_model_that_returns_its_argument() -> None:
    one = Scorer(Counting(card()), Meaning(None, "apply", 0.5))
    slab = one.states.open(0)
    two_keys = [(0, b"a", 0, 1.0), (0, b"b", 0, 1.0)]
    one.score(observations(two_keys, 0, START_MS))
    one.commit()
    assert slab.get(slab.index[b"a"]).row.tolist() == [0.5, 0.0]
    one.score(observations([*two_keys, (0, b"a", 0, 1.0)], 2, START_MS))
    assert slab.get(slab.index[b"a"]).row.tolist() == [1.5, 1.0]
    one.rollback()
    assert slab.get(slab.index[b"a"]).row.tolist() == [0.5, 0.0]
