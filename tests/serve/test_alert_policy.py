"""The rules of docs/alerts.md, one by one; through whole daemons they are tested in tests/verify/test_alerts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from lstmstream.records import HELD_BACK, Notice, RecordBatch
from lstmstream.serve.alert_memory import AlertRules, Incident, RulesFrom, extend_history
from lstmstream.serve.alert_policy import MAX_HOURS, AlertPolicy
from lstmstream.serve.partition import Partition
from lstmstream.serve.restore_errors import RestoreErrors
from lstmstream.serve.scored import Scored
from lstmstream.serve.scorer import Meaning, Scorer
from lstmstream.serve.state import KeyState, Slab, StateStore
from lstmstream.serve.state_loader import StateLoader
from lstmstream.serve.state_records import pack_states
from lstmstream.serve.step_model import StepInput, StepOutput
from tests.serve.helpers import NumpyStep
from tests.serve.memory_world import INPUT, LETTERS, OUTPUT, World
from tests.serve.test_refusals import ALERTS, offset_of, refuse
from tests.serve.test_scorer import Seen, observations
from tests.serve.test_state_records import DIGEST

MINUTE_MS = 60_000
HOLD = AlertRules(1.0, 10 * MINUTE_MS, hold=True, end_record=True)
COOLDOWN = AlertRules(1.0, 10 * MINUTE_MS)


class Says(NumpyStep):
    """The score is the amount."""

    def step(self, given: StepInput) -> StepOutput:
        return StepOutput(given.state, given.x[:, 0], None)


def scorer(rules: AlertRules, *, late: str = "apply") -> Scorer:
    made = Scorer(Says(), Meaning(None, late, rules.threshold), policy=AlertPolicy(rules))
    made.states.open(0)
    return made


def events(*told: tuple[float, float], key: bytes = b"a", first: int = 0) -> list[Seen]:
    """(minute, score) of events of one key."""
    return [Seen(key, score, round(minute * MINUTE_MS), first + i, index=i) for i, (minute, score) in enumerate(told)]


def reasons(scored: Scored) -> list[str | None]:
    """Of each prediction: None below the threshold, "" for an alert that is published, or why it is not."""
    held = scored.predictions.held_back
    assert held is not None
    assert not (held[~scored.predictions.alert] > 0).any()
    return [HELD_BACK[code] if high else None for code, high in zip(held, scored.predictions.alert, strict=True)]


def members(notices: Sequence[Notice]) -> list[Any]:
    return [orjson.loads(b"{" + notice.members + b"}") for notice in notices]


# Times in minutes and scores; what becomes of each. The threshold is 1, the cooldown ten minutes.
CASES: dict[str, tuple[AlertRules, list[tuple[float, float, str | None]]]] = {
    "a cooldown counts from the alert": (
        COOLDOWN,
        [(0, 1, ""), (5, 2, "cooldown"), (9.999, 2, "cooldown"), (10, 1, ""), (15, 1, "cooldown"), (20, 1, "")],
    ),
    "hold counts from the newest event above": (
        HOLD,
        [(0, 1, ""), (5, 2, "hold"), (14, 2, "hold"), (23.999, 1, "hold"), (34, 1, "")],
    ),
    "one event below does not end it": (HOLD, [(0, 1, ""), (1, 0, None), (5, 1, "hold"), (15, 0, None), (16, 1, "")]),
    "events below end it by time": (HOLD, [(0, 1, ""), (5, 0, None), (10, 0, None), (11, 1, "")]),
    "late events within it do not move it back": (HOLD, [(0, 1, ""), (9, 1, "hold"), (2, 1, "hold"), (18, 1, "hold")]),
    "an event far before it is not part of it": (HOLD, [(60, 1, ""), (50, 1, ""), (51, 1, "hold"), (61, 1, "")]),
    "one wrong clock does not keep a key silent": (COOLDOWN, [(525_600, 1, ""), (0, 1, ""), (1, 1, "cooldown")]),
    "a threshold in float32": (COOLDOWN._replace(threshold=0.1), [(0, float(np.float32(0.1)), "")]),
}


@pytest.mark.parametrize("sizes", [1, 3, 100])
@pytest.mark.parametrize("case", CASES)
def test_a_key(case: str, sizes: int) -> None:
    """In any batches."""
    rules, told = CASES[case]
    made, found = scorer(rules), []
    seen = events(*((minute, score) for minute, score, _ in told))
    for start in range(0, len(seen), sizes):
        found += reasons(made.score(observations(seen[start : start + sizes])))
        made.commit()
    assert found == [reason for _, _, reason in told]


def test_an_end_record_tells_of_its_incident() -> None:
    made = scorer(HOLD)
    scored = made.score(observations(events((0, 1), (3, 1), (4, 1), (20, 0), (21, 1), (40, 1), first=7)))
    assert [(notice.index, notice.kind) for notice in scored.predictions.notices] == [(3, "ended"), (5, "ended")]
    assert [one["ended"] for one in members(scored.predictions.notices)] == [
        {"started": "1970-01-01T00:00:00.000Z", "last": "1970-01-01T00:04:00.000Z", "offset": 7, "held_back": 2},
        {"started": "1970-01-01T00:21:00.000Z", "last": "1970-01-01T00:21:00.000Z", "offset": 11, "held_back": 0},
    ]
    for rules in (COOLDOWN, HOLD._replace(end_record=False)):
        assert scorer(rules).score(observations(events((0, 1), (20, 0)))).predictions.notices == []


def test_a_limit_and_its_summary() -> None:
    made = scorer(AlertRules(1.0, max_per_hour=2))
    seen = events((0, 1), (1, 1), (2, 1), (59, 5), (61, 0), (58, 1), (62, 1), (121, 0))
    seen[1] = seen[1]._replace(key=b"b")
    scored = made.score(observations(seen))
    assert reasons(scored) == ["", "", "max_per_hour", "max_per_hour", None, "max_per_hour", "", None]
    first, second = scored.predictions.notices
    assert (first.index, second.index, first.kind) == (4, 7, "summary")
    hour = {"hour": "1970-01-01T00:00:00.000Z", "alerts": 2}
    assert members([first, second]) == [
        {"summary": {"partition": 0, "hours": [{**hour, "held_back": 2, "first_offset": 2, "last_offset": 3}]}},
        {"summary": {"partition": 0, "hours": [{**hour, "held_back": 1, "first_offset": 5, "last_offset": 5}]}},
    ]


def test_a_wrong_clock_does_not_disturb_the_count_of_an_hour() -> None:
    made = scorer(AlertRules(1.0, max_per_hour=1))
    assert reasons(made.score(observations(events((0, 1), (525_600, 1), (1, 1))))) == ["", "", "max_per_hour"]
    made.commit()
    many = [(60.0 * hour, 0.0) for hour in range(1, MAX_HOURS)]
    assert reasons(made.score(observations(events(*many, (2, 1)))))[-1] == ""
    hours = [hour.number for hour in made.states.slabs[0].alert_hours]
    assert len(hours) == MAX_HOURS
    assert hours[-1] == 0


def test_a_muted_key_has_no_incident() -> None:
    made = scorer(HOLD)
    made.score(observations(events((0, 1))))
    made.commit()
    assert set(made.states.slabs[0].incidents) == {b"a"}
    muted = Scorer(Says(), Meaning(None, "apply", 1.0), policy=AlertPolicy(HOLD._replace(mute=("?",))))
    slab = muted.states.open(0)
    slab.put(b"a", made.states.slabs[0].get(made.states.slabs[0].index[b"a"]))
    scored = muted.score(observations(events((1, 1), (2, 0), first=1)))
    assert reasons(scored) == ["mute", None]
    assert scored.predictions.notices == []
    assert slab.incidents == {}


def test_silent_events_and_dead_letters_do_not_count() -> None:
    made = scorer(HOLD)
    silent = np.array([True, False, False, True])
    scored = made.score(observations(events((0, 1), (1, float("inf")), (2, 1), (3, 1))), silent)
    assert scored.predictions.index.tolist() == [0, 2, 3]
    assert reasons(scored)[1] == ""
    assert made.states.slabs[0].incidents == {b"a": Incident(2 * MINUTE_MS, 2 * MINUTE_MS, 2, 0)}


def test_a_late_event_that_only_moves_the_incident_is_not_replayed_twice() -> None:
    """With `late: score` it leaves the state as it is, and its key changes all the same."""
    made = scorer(HOLD, late="score")
    made.score(observations(events((5, 1))))
    made.commit()
    late = observations(events((4, 1), first=9))
    changed = made.score(late).changed[0]
    made.commit()
    slab = made.states.slabs[0]
    assert (changed.rows.tolist(), changed.first_offsets.tolist()) == ([slab.index[b"a"]], [9])
    assert slab.get(slab.index[b"a"])[1:] == (1, 5 * MINUTE_MS, 9, 0, Incident(5 * MINUTE_MS, 5 * MINUTE_MS, 0, 1))
    made.replay(late, None, AlertPolicy(HOLD))
    assert slab.incidents[b"a"].held_back == 1


def test_a_rollback_takes_everything_back() -> None:
    made = scorer(HOLD._replace(max_per_hour=1))
    made.score(observations(events((0, 1), (30, 1), (31, 1))))
    made.commit()
    slab = made.states.slabs[0]
    before = dict(slab.incidents), slab.alert_hours
    for _ in range(2):  # two in flight
        made.score(observations([*events((50, 0), (70, 1), first=9), Seen(b"new", 2.0, 9, 11, index=2)]))
    assert (slab.incidents, slab.alert_hours) != before
    made.rollback()
    made.rollback()
    assert (slab.incidents, slab.alert_hours) == before


def test_the_history_of_settings() -> None:
    first, second = AlertRules(0.5), AlertRules(0.6)
    history = extend_history((), 10, first)
    assert history == (RulesFrom(10, first),)
    assert extend_history(history, 30, first) == history
    longer = extend_history(history, 30, second)
    assert longer == (RulesFrom(10, first), RulesFrom(30, second))
    assert extend_history(longer, 30, first) == history  # nothing was answered with the second
    assert extend_history(longer, 20, second) == (RulesFrom(10, first), RulesFrom(20, second))


def test_an_end_record_that_its_topic_refuses_takes_the_prediction_with_it() -> None:
    """The event becomes a dead letter of the stage `publish`; what the policy remembers has it all the same."""
    world = World(
        output={"topic": OUTPUT, "alerts_topic": ALERTS, "threshold": 0.0},
        alerts={"cooldown": "10m", "hold": True, "end_record": True},
    )
    world.start()
    world.settle()
    world.broker.on_write = refuse(ALERTS, {2})
    for number, amount in enumerate((1000, 1000, -100_000, 1000_000)):
        world.now_s += 1000 if number else 0
        world.produce(b"k", orjson.dumps({"amount": amount}), partition=0)
    world.settle()
    assert [offset_of(record.headers) for record in world.broker.topics[LETTERS].logs[0]] == [2]
    told = [orjson.loads(record.value or b"") for record in world.broker.topics[ALERTS].logs[0]]
    assert [(one["source"]["offset"], "ended" in one) for one in told] == [
        (0, False),
        (1, True),
        (1, False),
        (3, False),
    ]
    assert world.broker.topics[INPUT].logs[0][-1].offset == 3


def test_states_with_and_without_an_incident_are_loaded_together() -> None:
    """The newest record of a key counts, also where an older one has an incident."""
    kept, states = Slab(2), StateStore(np.zeros(2, np.float32))
    incident = Incident(1, 2, 3, 4)
    for number in range(5):
        kept.put(b"%d" % number, KeyState(np.full(2, number, np.float32), 1, 7, number))
    loader = StateLoader(Partition(0, 0, states), DIGEST, RestoreErrors("in", 0, "states", "group"))
    for offset, with_incident in enumerate(([b"1", b"3"], [b"1"])):
        kept.incidents = dict.fromkeys(with_incident, incident)
        keys, values = pack_states(kept, kept.index.rows(), DIGEST, 0)
        places, times = np.zeros(5, np.int64), np.full(5, offset)
        loader.take(RecordBatch("states", places, times, times, keys, values, [()] * 5))
        slab = states.slabs[0]
        assert {key: slab.get(row).incident for key, row in slab.index.items()} == {
            b"%d" % number: incident if b"%d" % number in with_incident else None for number in range(5)
        }
        assert [slab.get(slab.index[b"%d" % number]).row[0] for number in range(5)] == [0, 1, 2, 3, 4]
    assert loader.damaged == {}
