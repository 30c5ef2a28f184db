"""One model over its own states: an observation is one prediction or one dead letter, and batches can be in flight."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lstmstream.records import Observations
from lstmstream.serve.scored import Scored
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state import CLEAN
from lstmstream.serve.step_model import StepInput, StepOutput
from tests.serve.helpers import NumpyStep, snapshot, tables

POISON = 666.0
TTL_MS = 5_000


class Seen(NamedTuple):
    """One observation; its position in the batch's records is `index`."""

    key: bytes | None
    amount: float = 1.0
    timestamp: int = 0
    offset: int = 0
    partition: int = 0
    index: int = 0


def observations(seen: Sequence[Seen]) -> Observations:
    return Observations(
        index=np.array([one.index for one in seen], np.int64),
        partitions=np.array([one.partition for one in seen], np.int64),
        offsets=np.array([one.offset for one in seen], np.int64),
        keys=[one.key for one in seen],
        timestamps=np.array([one.timestamp for one in seen], np.int64),
        x=np.array([[one.amount] for one in seen], np.float32).reshape(len(seen), 1),
        categories=np.empty((len(seen), 0), np.int64),
    )


def scorer(
    *, model: Any = None, ttl_ms: int | None = None, late: str = "apply", threshold: float | None = None, **named: Any
) -> Scorer:
    made = Scorer(model or NumpyStep(), Meaning(ttl_ms, late, threshold), **named)
    for partition in range(2):
        made.states.open(partition)
    return made


def keys_of(made: Scorer, partition: int = 0) -> set[bytes | None]:
    return set(made.states.slabs[partition].index)


def stages(scored: Scored) -> list[tuple[int, str]]:
    """Of the dead letters, whose order is that of the rounds."""
    return sorted((letter.index, letter.stage) for letter in scored.dead_letters)


def test_predictions_name_the_records_they_belong_to() -> None:
    made = scorer(threshold=3.0)
    batch = [
        Seen(b"a", 6.0, index=1),
        Seen(b"b", POISON, index=3),
        Seen(b"a", 2.0, index=4, offset=1),
        Seen(None, 5.0, index=7, offset=2),
    ]
    scored = made.score(observations(batch))
    assert scored.predictions.index.tolist() == [1, 4, 7]
    assert scored.predictions.score.tolist() == [0.125 + 6 - 3, 3.125 / 2 + 2, 0.125 + 5 - 3]
    assert scored.predictions.alert.tolist() == [True, True, False]
    assert scored.predictions.steps.tolist() == [1, 2, 1]
    assert scored.predictions.prediction is None
    assert stages(scored) == [(3, "step")]
    assert "not finite" in scored.dead_letters[0].message


def test_the_threshold_is_compared_in_float32_and_none_never_alerts() -> None:
    class Says(NumpyStep):
        def step(self, given: StepInput) -> StepOutput:
            return StepOutput(given.state, given.x[:, 0], None)

    for threshold in (0.1, 1e-45, 16_777_217.0):
        edge = np.float32(threshold)
        amounts = [np.nextafter(edge, np.float32(-1e9)), edge]
        batch = observations([Seen(b"k", float(amount), offset=i) for i, amount in enumerate(amounts)])
        assert scorer(model=Says(), threshold=threshold).score(batch).predictions.alert.tolist() == [False, True]
        assert not scorer(model=Says()).score(batch).predictions.alert.any()


@pytest.mark.parametrize("part", ["state", "score", "prediction"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_a_dead_letter_and_its_state_stays(part: str, bad: float) -> None:
    class Fails(NumpyStep):
        def step(self, given: StepInput) -> StepOutput:
            out = super().step(given)
            out = out._replace(prediction=np.stack([out.score, out.score], axis=1))
            if self.fails:
                getattr(out, part)[-1:, ...] = bad
            return out

        fails = False

    model = Fails()
    made = scorer(model=model)
    made.score(observations([Seen(b"a"), Seen(b"b", offset=1)]))
    made.commit()
    before = snapshot(made.states)
    model.fails = True
    scored = made.score(observations([Seen(b"a", offset=2, index=0), Seen(b"b", offset=3, index=1)]))
    made.commit()
    assert (scored.predictions.index.tolist(), stages(scored)) == ([0], [(1, "step")])
    assert scored.predictions.prediction is not None
    assert scored.predictions.prediction.shape == (1, 2)
    after = snapshot(made.states)
    assert after[0, b"b"] == before[0, b"b"]
    assert after[0, b"a"][1:] == (2, 0, 2, 0)
    assert scored.changed[0].rows.tolist() == [made.states.slabs[0].index[b"a"]]


def test_a_key_with_only_dead_letters_of_stage_step_leaves_no_row() -> None:
    made = scorer()
    for amounts in ([POISON], [POISON, POISON]):
        batch = observations([Seen(b"bad", amount, offset=i, partition=1) for i, amount in enumerate(amounts)])
        assert len(made.score(batch).dead_letters) == len(amounts)
        made.commit()
        assert (keys_of(made, 1), len(made.states.slabs[1])) == (set(), 0)
        made.replay(batch)
        assert keys_of(made, 1) == set()
        made.score(batch)
        made.rollback()
        assert keys_of(made, 1) == set()
    made.score(observations([Seen(b"bad", POISON), Seen(b"bad", 1.0, offset=1), Seen(b"new", 1.0, offset=2)]))
    made.commit()
    assert snapshot(made.states).keys() == {(0, b"bad"), (0, b"new")}
    assert keys_of(made) == {b"bad", b"new"}
    assert set(made.states.slabs[0].index.values()) == {0, 1}


def test_a_late_event_that_is_only_scored_or_dropped_makes_no_step() -> None:
    late = [Seen(b"a", 1.0, 10_000), Seen(b"a", 2.0, 9_000, offset=1, index=1), Seen(b"a", 3.0, 10_000, 2, index=2)]
    for policy, steps, dead, last in (
        ("apply", [1, 2, 3], [], 2),
        ("score", [1, 1, 2], [], 2),
        ("drop", [1, 2], [(1, "late")], 2),
    ):
        made = scorer(late=policy)
        scored = made.score(observations(late))
        assert (scored.predictions.steps.tolist(), stages(scored)) == (steps, dead)
        assert (scored.late_events, scored.expired) == (1, 0)
        assert snapshot(made.states)[0, b"a"][1:] == (steps[-1], 10_000, last, 0)
    assert scored.dead_letters[0].message.startswith("the event is 1000 ms older than the newest of its key")


def test_an_expired_state_begins_anew_and_is_counted_where_it_moves() -> None:
    made = scorer(ttl_ms=TTL_MS)
    times = [0, TTL_MS, 2 * TTL_MS + 1, 4 * TTL_MS]
    amounts = [1.0, 1.0, POISON, 1.0]
    pairs = enumerate(zip(times, amounts, strict=True))
    scored = made.score(observations([Seen(b"a", amount, at, offset=i, index=i) for i, (at, amount) in pairs]))
    assert (scored.predictions.steps.tolist(), stages(scored), scored.expired) == ([1, 2, 1], [(2, "step")], 1)


def test_the_rows_that_changed_are_named_by_the_offset_of_their_first_change() -> None:
    made = scorer()
    seen = [(0, 5, b"b"), (0, 6, b"a"), (1, 1, b"a"), (0, 7, b"b"), (0, 9, b"dead"), (0, 11, b"c")]
    batch = [Seen(key, POISON if key == b"dead" else 1.0, 0, offset, partition) for partition, offset, key in seen]
    changed = made.score(observations(batch)).changed
    index = made.states.slabs[0].index
    assert changed.keys() == {0, 1}
    assert changed[0].rows.tolist() == [index[b"b"], index[b"a"], index[b"c"]]
    assert changed[0].first_offsets.tolist() == [5, 6, 11]
    assert changed[1].first_offsets.tolist() == [1]


def test_nothing_gives_nothing() -> None:
    made = scorer()
    scored = made.score(observations([]))
    assert (len(scored.predictions.index), scored.dead_letters, scored.changed) == (0, [], {})
    made.commit()
    assert made.replay(observations([])) == {}


def test_stages_are_timed() -> None:
    entered: list[str] = []

    class Watch:
        def __init__(self, stage: str) -> None:
            self.stage = stage

        def __enter__(self) -> None:
            entered.append(self.stage)

        def __exit__(self, *_: object) -> None:
            entered.append(f"end of {self.stage}")

    scorer(timer=Watch).score(observations([Seen(b"a")]))
    assert [stage for stage in entered if not stage.startswith("end")] == ["gather", "step", "stage"]
    assert entered[1::2] == ["end of gather", "end of step", "end of stage"]


def test_the_card_is_the_models() -> None:
    model = NumpyStep()
    model.card = dataclasses.replace(model.card, name="another")
    assert scorer(model=model).card is model.card


seen = st.builds(
    Seen,
    st.sampled_from([None, b"", b"a", b"b", b"c"]),
    st.sampled_from([1.0, -2.5, 7.25, POISON, float("nan")]),
    st.integers(0, 3 * TTL_MS),
    partition=st.integers(0, 1),
)
lives = st.lists(st.lists(seen, max_size=6) | st.sampled_from(["commit", "rollback"]), max_size=25)


@given(lives, st.sampled_from(["apply", "score", "drop"]), st.sampled_from([None, TTL_MS]))
@settings(max_examples=200, deadline=None)
def test_batches_in_flight_are_as_those_that_were_kept_one_after_the_other(
    life: list[Any], late: str, ttl_ms: int | None
) -> None:
    """What was rolled back was never there: another scorer is given the other batches, and is never told to undo."""
    made = scorer(late=late, ttl_ms=ttl_ms)
    in_flight: list[tuple[Observations, Scored]] = []
    kept: list[tuple[Observations, Scored]] = []
    offset = 0
    for what in life:
        if what == "commit":
            made.commit()
            kept += in_flight[:1]
            del in_flight[:1]
        elif what == "rollback":
            made.rollback()
            del in_flight[-1:]
        elif len(in_flight) < 2:
            batch = observations([one._replace(offset=offset + i, index=i) for i, one in enumerate(what)])
            offset += len(what)
            in_flight.append((batch, made.score(batch)))
    kept += in_flight
    for _ in in_flight:
        made.commit()
    alone = scorer(late=late, ttl_ms=ttl_ms)
    for batch, scored in kept:
        again = alone.score(batch)
        alone.commit()
        assert again.predictions.score.tobytes() == scored.predictions.score.tobytes()
        assert again.predictions.steps.tolist() == scored.predictions.steps.tolist()
        assert stages(again) == stages(scored)
    assert snapshot(made.states) == snapshot(alone.states)
    assert {p: set(keys) for p, (keys, _) in tables(made.states).items()} == {
        p: set(keys) for p, (keys, _) in tables(alone.states).items()
    }


def test_replay_skips_for_each_key_what_its_state_has_seen() -> None:
    made = scorer()
    batch = [Seen(b"a", 1.0, 0, 0), Seen(b"b", 2.0, 0, 1), Seen(b"a", 3.0, 0, 2), Seen(b"c", POISON, 0, 3)]
    made.score(observations(batch[:2]))
    made.commit()
    changed = made.replay(observations(batch))
    assert changed[0].rows.tolist() == [made.states.slabs[0].index[b"a"]]
    assert changed[0].first_offsets.tolist() == [2]
    assert keys_of(made) == {b"a", b"b"}
    live = scorer()
    live.score(observations(batch))
    live.commit()
    assert snapshot(made.states) == snapshot(live.states)
    assert made.replay(observations(batch))[0].rows.tolist() == []
    made.rollback()  # the replayed are committed
    assert snapshot(made.states) == snapshot(live.states)
    slab = made.states.slabs[0]
    assert (slab.first_unwritten[: slab.index.used_rows] == CLEAN).all(), "who replays says what is dirty"


def test_nothing_is_replayed_while_a_batch_is_in_flight() -> None:
    """A replay ends its own batch, and the oldest one is ended first."""
    made = scorer()
    made.score(observations([Seen(b"a")]))
    with pytest.raises(AssertionError, match="in flight"):
        made.replay(observations([Seen(b"a", partition=1)]))
    made.rollback()
    assert snapshot(made.states) == {}
