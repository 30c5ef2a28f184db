"""The engine against the reference: batching, rollback, replay, expiry, lateness and dead letters change no bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lstmstream.serve.engine import Engine
from lstmstream.serve.scored import ChangedRows
from tests.serve.helpers import (
    ALERTS,
    DATA,
    LETTERS,
    OUT,
    Message,
    NumpyStep,
    batch,
    engine,
    flatten,
    messages_of,
    run,
    snapshot,
    stage_of,
    tables,
)
from tests.serve.reference import Answer, Event, Reference

START_MS = 1_767_609_067_123
TTL_MS = 5_000
POISONED = ("poisoned_score", "poisoned_state_out", "poisoned_prediction")

pytestmark = pytest.mark.usefixtures("either_place")

keys = st.sampled_from([None, b"", b"a", b"b", b"\x00", b"\x01a", b"\x02", b"\xff\xfe", "ключ".encode(), b"x" * 300])
amounts = st.sampled_from([None, 0, -1.5, 3, 12.25, 1e6, 666, 1e39, True, "7"]) | st.floats(
    allow_nan=False, allow_infinity=False, width=32
)
pauses = st.sampled_from([0, 1, 999, TTL_MS - 1, TTL_MS, TTL_MS + 1, 70_000, -1, -1_500, -TTL_MS - 1])
fields = st.fixed_dictionaries(
    {"amount": amounts},
    optional={
        "merchant": st.fixed_dictionaries({"risk": st.floats(-3, 3)}) | st.sampled_from([None, 5, {}]),
        "channel": st.sampled_from(["web", "app", "fax", None, 3, 1.5]),
        "device": st.fixed_dictionaries({"id": st.text(max_size=3) | st.integers(0, 99)}),
    },
)
broken = st.sampled_from([None, b"", b"{", b"[]", b'{"amount":NaN}', b'{"amount":1e400}', b"\xff"])
values = st.one_of(
    fields.map(lambda doc: json.dumps(doc).encode()), fields.map(lambda doc: json.dumps(doc).encode()), broken
)


@st.composite
def streams(draw: Any, *, most: int = 50) -> list[Event]:
    """Events of three partitions, offsets with gaps, times that go back now and then."""
    few = draw(st.lists(st.tuples(st.integers(0, 2), keys), min_size=1, max_size=5))
    drawn = draw(st.lists(st.tuples(st.sampled_from(few), values, pauses), min_size=1, max_size=most))
    offsets, now, events = [7, 0, 10**12], START_MS, []
    for (partition, key), value, pause in drawn:
        now += pause
        offsets[partition] += 1 + (pause % 2)
        events.append(Event(partition, offsets[partition], now, key, value))
    return events


sizes = st.lists(st.integers(1, 12), min_size=60, max_size=60)


def by_topic(messages: list[Message]) -> dict[tuple[str, int], list[Message]]:
    """Each partition of each topic, in its order: what a reader sees."""
    seen: dict[tuple[str, int], list[Message]] = {}
    for message in messages:
        seen.setdefault((message.topic, message.partition), []).append(message)
    return seen


def plenty(count: int) -> list[Event]:
    """A fixed stream: many keys of very different weight, every feature, late and expired events, poison."""
    rng = np.random.default_rng(4)
    events, now = [], START_MS
    for i in range(count):
        now += int(rng.choice([0, 40, 900, 6_000, -300]))
        doc = {"amount": float(np.float32(rng.lognormal(2, 2))), "merchant": {"risk": float(rng.normal())}}
        doc |= {"channel": str(rng.choice(["web", "app", "fax"])), "device": {"id": int(rng.integers(50))}}
        value = b"{" if i % 97 == 0 else json.dumps(doc).encode()
        key = None if i % 31 == 0 else b"key-%d" % min(int(rng.zipf(1.3)), 400)
        events.append(Event(int(rng.integers(3)), 10 + i, now, key, value))
    return events


@pytest.mark.parametrize("model", ["small", "many"])
def test_batching_changes_no_byte(model: str) -> None:
    events = plenty(1_500)
    settings_ = {"partitions": range(3), "ttl_ms": TTL_MS, "include": ["device.id", "channel"]}
    alone = engine(model, **settings_)
    expected = by_topic(run(alone, events, [1] * len(events)))
    assert len(expected[OUT, 0]) > 400
    for size in (7, 64, 512, len(events)):
        together = engine(model, **settings_)
        assert by_topic(run(together, events, [size] * len(events))) == expected
        assert snapshot(together.scorer.states) == snapshot(alone.scorer.states)


@given(streams(), sizes, st.sampled_from(["apply", "score", "drop"]), st.sampled_from([None, TTL_MS]))
@settings(max_examples=120, deadline=None)
def test_any_batching_is_the_reference(events: list[Event], splits: list[int], late: str, ttl_ms: int | None) -> None:
    check_against_reference("small", events, splits, late=late, ttl_ms=ttl_ms, include=("amount", "device.id"))


@pytest.mark.parametrize("model", POISONED)
@given(streams(), sizes, st.sampled_from(["apply", "score", "drop"]), st.sampled_from([None, TTL_MS]))
@settings(max_examples=40, deadline=None)
def test_poison_in_any_output_is_the_reference(
    model: str, events: list[Event], splits: list[int], late: str, ttl_ms: int | None
) -> None:
    check_against_reference(model, events, splits, late=late, ttl_ms=ttl_ms)


def check_against_reference(
    model: str,
    events: list[Event],
    splits: list[int],
    *,
    late: str,
    ttl_ms: int | None,
    include: tuple[str, ...] = (),
    **named: str,
) -> list[Answer | str]:
    """Predictions, alerts, dead letters and states of the engine, each against the reference."""
    reference = Reference(DATA / f"{model}.onnx", ttl_ms=ttl_ms, late=late, include=include, **named)
    expected = [reference.answer(event) for event in events]
    made = engine(model, partitions=range(3), ttl_ms=ttl_ms, late=late, include=include, **named)
    found = by_topic(run(made, events, splits))
    for partition in range(3):
        pairs = [(e, a) for e, a in zip(events, expected, strict=True) if e.partition == partition]
        answers = [Message(OUT, partition, a.key, a.value, e.timestamp, ()) for e, a in pairs if isinstance(a, Answer)]
        letters = [(a, e.key, e.value, e.timestamp) for e, a in pairs if isinstance(a, str)]
        is_alert = [a.alert for _, a in pairs if isinstance(a, Answer)]
        alerts = [m._replace(topic=ALERTS) for m, alert in zip(answers, is_alert, strict=True) if alert]
        assert [m.value for m in found.get((OUT, partition), [])] == [m.value for m in answers]
        assert found.get((OUT, partition), []) == answers
        assert found.get((ALERTS, partition), []) == alerts
        found_letters = found.get((LETTERS, partition), [])
        assert [(stage_of(m), m.key, m.value, m.timestamp_ms) for m in found_letters] == letters
    states = {where: (r.state.tobytes(), r.steps, r.last_timestamp) for where, r in reference.memory.items()}
    assert {where: seen[:3] for where, seen in snapshot(made.scorer.states).items()} == states
    return expected


def test_each_way_of_the_meaning_is_taken() -> None:
    """The streams above reach every line of section 4: counted here, so that no strategy goes blind unseen."""

    def event(offset: int, ms: int, amount: float) -> Event:
        return Event(0, offset, START_MS + ms, b"a", b'{"amount":%g}' % amount)

    ways = [
        event(0, 0, 1),
        event(1, TTL_MS, 2),  # exactly the ttl: still the same state
        event(2, 2 * TTL_MS + 1, 666),  # expired, and poison: the expiry is undone
        event(3, 2 * TTL_MS, 3),  # so this is the third
        event(4, TTL_MS, 4),  # late
        event(5, 3 * TTL_MS + 1, 5),  # expired
        event(6, 3 * TTL_MS, 666),  # late and poison
        event(7, 3 * TTL_MS + 1, 7),  # at the same time as the last: not late
    ]

    def steps(late: str) -> list[int | str]:
        found = check_against_reference("poisoned_score", ways, [8], late=late, ttl_ms=TTL_MS)
        return [json.loads(one.value)["steps"] if isinstance(one, Answer) else one for one in found]

    assert steps("apply") == [1, 2, "step", 3, 4, 1, "step", 2]
    assert steps("score") == [1, 2, "step", 3, 3, 1, "step", 2]
    assert steps("drop") == [1, 2, "step", 3, "late", 1, "late", 2]
    made = engine("poisoned_score", ttl_ms=TTL_MS, late="score")
    result = made.process(batch(ways))
    assert (result.late_events, result.expired) == (2, 1)


@pytest.mark.parametrize("late", ["apply", "score", "drop"])
def test_times_before_1970_are_times_as_others(late: str) -> None:
    times = [-5_000_000, -3_000_000, -4_000_000, 0, 1]
    events = [Event(0, i, 5, b"a", b'{"at":%d}' % (10**11 * -2 + ms)) for i, ms in enumerate(times)]
    check_against_reference("small", events, [2, 3], late=late, ttl_ms=None, timestamp="at")


@given(st.integers(0, 2**53))
@example(987_654_321)
@example(16_777_217)
def test_elapsed_is_computed_in_float64(pause_ms: int) -> None:
    class Elapsed(NumpyStep):
        def step(self, given: Any) -> Any:
            return super().step(given)._replace(score=np.nan_to_num(given.elapsed, nan=-1))

    pause_ms %= 253_402_300_799_999
    events = [Event(0, 0, 0, b"a", b"{}"), Event(0, 1, pause_ms, b"a", b"{}")]
    scores = engine(Elapsed()).process(batch(events)).predictions.score
    assert scores.tobytes() == np.array([-1, pause_ms / 1000], np.float32).tobytes()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", 5, -0.0, True, None, {}, 2**53, 2**53 + 1, 10**400]),
            st.sampled_from(
                [
                    "2026-01-05T10:31:07.1239Z",
                    "2026-01-05",
                    "soon",
                    1767609067,
                    1767609067.1239,
                    1767609067123,
                    None,
                    [],
                ]
            )
            | st.integers(-(10**15), 10**15)
            | st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=12,
    )
)
@example([("a", 1.96547737e16)])  # 17 digits that begin like a date's
@settings(max_examples=60, deadline=None)
def test_key_and_time_from_fields_are_the_reference(pairs: list[tuple[Any, Any]]) -> None:
    events = [
        Event(0, i, -1 if i % 3 == 0 else 5, b"not this", json.dumps({"at": {"who": who, "when": when}}).encode())
        for i, (who, when) in enumerate(pairs)
    ]
    reference = Reference(DATA / "small.onnx", key="at.who", timestamp="at.when")
    expected = [reference.answer(event) for event in events]
    result = engine("small", key="at.who", timestamp="at.when", alerts=None).process(batch(events))
    values = result.outputs.predictions.values
    found = {int(i): value for i, value in zip(result.predictions.index, values, strict=True)}
    found |= {letter.index: letter.stage.encode() for letter in result.dead_letters}
    assert [found[i] for i in range(len(events))] == [a.encode() if isinstance(a, str) else a.value for a in expected]


def nested(levels: int, inner: bytes = b"") -> bytes:
    return b"[" * levels + inner + b"]" * levels


carried = st.sampled_from(
    [
        b'"x"', b"7", b"-1.5", b"true", b"null", b"{}", b'{"f":[1,"1e400"]}', b'"1e400"', b"9007199254740993",
        b"1e400", b"[[-1e400]]", b'{"x":{"y":1e400}}', nested(254), nested(255), nested(254, b"1"), nested(255, b"1"),
        nested(254, b"null"), nested(255, b"null"), nested(254, b"1e400"), nested(600),
    ]
)  # fmt: skip


@given(st.lists(st.tuples(carried, carried, st.sampled_from([b"1", b"true"])), min_size=1, max_size=9))
@settings(max_examples=200, deadline=None)
def test_what_is_published_of_an_event_decides_nothing_about_its_state(docs: list[tuple[bytes, bytes, bytes]]) -> None:
    """Carried fields that cannot be written are left out, an output key that is none is null; the event counts."""
    events = [
        Event(0, i, START_MS + i, b"k", b'{"amount":%b,"f":%b,"who":{"id":%b}}' % (amount, f, who))
        for i, (f, who, amount) in enumerate(docs)
    ]
    answers = check_against_reference(
        "small", events, [4, 5], late="apply", ttl_ms=None, include=("f", "who", "who.id"), output_key="who.id"
    )
    assert [isinstance(answer, Answer) for answer in answers] == [amount == b"1" for *_, amount in docs]


@given(streams(most=20), st.dictionaries(st.integers(0, 3), st.integers(0, 40) | st.integers(10**12, 10**12 + 40)))
@settings(max_examples=60, deadline=None)
def test_a_batch_that_is_cut_at_an_offset_is_two_batches(events: list[Event], offsets: dict[int, int]) -> None:
    """Each partition at its own offset, in order on both sides; one without an offset is all on the first side."""
    headers = [[("n", b"%d" % i)] for i in range(len(events))]
    whole = batch(events, topic="t", headers=headers)
    parts = whole.split_at(offsets)
    numbers = range(len(events))
    before = [i for i in numbers if events[i].offset < offsets.get(events[i].partition, 2**63 - 1)]
    after = [i for i in numbers if i not in before]
    for part, wanted in zip(parts, (before, after), strict=True):
        expected = batch([events[i] for i in wanted], topic="t", headers=[headers[i] for i in wanted])
        assert messages_of(part) == messages_of(expected)
        assert (part.topic, part.offsets.tolist()) == ("t", expected.offsets.tolist())
        assert part.offsets.dtype == part.partitions.dtype == np.int64
    together, cut = engine(NumpyStep(), partitions=range(3)), engine(NumpyStep(), partitions=range(3))
    together.process(whole)
    for part in parts:
        cut.process(part)
    assert snapshot(cut.scorer.states) == snapshot(together.scorer.states)


def test_where_a_batch_is_cut() -> None:
    events = [Event(p, o, 0, b"k", b"{}") for p, o in [(0, 3), (1, 3), (0, 5), (1, 5), (0, 6)]]

    def cut(offsets: dict[int, int]) -> tuple[list[tuple[int, int]], ...]:
        return tuple(
            list(zip(p.partitions.tolist(), p.offsets.tolist(), strict=True)) for p in batch(events).split_at(offsets)
        )

    everything = [(0, 3), (1, 3), (0, 5), (1, 5), (0, 6)]
    assert cut({0: 5}) == ([(0, 3), (1, 3), (1, 5)], [(0, 5), (0, 6)])  # from this offset on
    assert cut({0: 4}) == cut({0: 5}), "an offset without a record cuts before the next one"
    assert cut({0: 7}) == cut({}) == cut({2: 0}) == (everything, [])
    assert cut({0: 0, 1: 0}) == ([], everything)
    assert len(batch([]).split_at({0: 3})[1]) == 0


@given(streams(), streams(), st.sampled_from(["apply", "score", "drop"]))
@settings(max_examples=60, deadline=None)
def test_rollback_leaves_no_trace(before: list[Event], attempt: list[Event], late: str) -> None:
    made = engine("poisoned_score", partitions=range(3), ttl_ms=TTL_MS, late=late)
    untouched = engine("poisoned_score", partitions=range(3), ttl_ms=TTL_MS, late=late)
    run(made, before, [len(before)])
    run(untouched, before, [len(before)])
    keys_before = {p: dict(slab.index) for p, slab in made.scorer.states.slabs.items()}
    kept = None
    for _ in range(2):
        made.process(batch(attempt))
        made.rollback()
        made.rollback()  # without a batch, nothing happens
        assert {p: slab.index for p, slab in made.scorer.states.slabs.items()} == keys_before
        left = tables(made.scorer.states)
        assert kept in (None, left), "and the second attempt gives each new key the same row"
        kept = left
        assert snapshot(made.scorer.states) == snapshot(untouched.scorer.states)
    assert run(made, attempt, [len(attempt)]) == run(untouched, attempt, [len(attempt)])
    assert snapshot(made.scorer.states) == snapshot(untouched.scorer.states)


def test_rollback_survives_growth_of_the_slab() -> None:
    made = engine(NumpyStep())
    few = [Event(0, i, START_MS, b"%d" % i, b"{}") for i in range(10)]
    many = [Event(0, 10 + i, START_MS, b"%d" % i, b'{"amount":3}') for i in range(2_000)]
    run(made, few, [10])
    before = snapshot(made.scorer.states)
    made.process(batch(many))
    made.rollback()
    assert snapshot(made.scorer.states) == before
    assert len(made.scorer.states.slabs[0]) == 10
    run(made, [Event(0, 2010, START_MS, b"new", b"{}")], [1])
    assert snapshot(made.scorer.states)[0, b"new"][1:] == (1, START_MS, 2010, 0)


def test_a_failing_model_can_be_rolled_back() -> None:
    class Breaks(NumpyStep):
        def step(self, given: Any) -> Any:
            if len(self.rounds) == 3:
                raise RuntimeError("out of memory")
            return super().step(given)

    made = engine(Breaks())
    events = [Event(0, i, START_MS, b"a" if i < 4 else b"b", b"{}") for i in range(6)]
    run(made, events[:1], [1])
    before = snapshot(made.scorer.states)
    with pytest.raises(RuntimeError):
        made.process(batch(events[1:]))
    made.rollback()
    assert snapshot(made.scorer.states) == before
    assert list(made.scorer.states.slabs[0].index) == [b"a"]


@given(streams(), sizes, sizes, st.sampled_from(["apply", "score", "drop"]), st.data())
@settings(max_examples=60, deadline=None)
def test_replay_over_states_of_any_age(
    events: list[Event], splits: list[int], others: list[int], late: str, data: st.DataObject
) -> None:
    """Each key's state as it stood after some batch or other; replay from the beginning ends in the same states."""
    made = engine("poisoned_score", partitions=range(3), ttl_ms=TTL_MS, late=late)
    kept: dict[tuple[int, bytes | None], Any] = {}
    at = 0
    for size in splits:
        run(made, events[at : at + size], [size])
        at += size
        for where in sorted(snapshot(made.scorer.states), key=repr):
            if data.draw(st.integers(0, 3)) == 0:
                slab = made.scorer.states.slabs[where[0]]
                kept[where] = slab.get(slab.index[where[1]])
        if at >= len(events):
            break
    again = engine("poisoned_score", partitions=range(3), ttl_ms=TTL_MS, late=late)
    for (partition, key), state in kept.items():
        again.scorer.states.slabs[partition].put(key, state)
    at = 0
    for size in others:
        part = events[at : at + size]
        if part:
            before = snapshot(again.scorer.states)
            named = names_of(again, again.replay(batch(part)))
            after = snapshot(again.scorer.states)
            assert named == {where for where in after if after[where] != before.get(where)}
        at += size
    assert snapshot(again.scorer.states) == snapshot(made.scorer.states)


def names_of(made: Engine, changed: dict[int, ChangedRows]) -> set[tuple[int, bytes | None]]:
    """(partition, key) of the rows that a replay names."""
    slabs = made.scorer.states.slabs
    return {(p, key) for p, change in changed.items() for key in slabs[p].index.keys_at(change.rows)}


def test_replay_names_the_rows_that_changed_by_their_first_offset() -> None:
    made = engine(NumpyStep(), partitions=(0, 1))
    events = [Event(p, o, START_MS, k, b"{}") for p, o, k in [(0, 3, b"a"), (1, 1, b"z"), (0, 4, b"b"), (0, 9, b"a")]]
    changes = made.replay(batch(events))
    slab = made.scorer.states.slabs[0]
    assert changes[0].rows.tolist() == [slab.index[b"a"], slab.index[b"b"]]
    assert changes[0].first_offsets.tolist() == [3, 4]
    again = made.replay(batch(events))  # all seen
    assert names_of(made, again) == set()
    bad = made.replay(batch([Event(0, 10, START_MS, b"a", b"{"), Event(1, 10, START_MS, b"a", b'{"amount":666}')]))
    assert names_of(made, bad) == set()


def test_a_hot_key_takes_a_round_for_each_event() -> None:
    step = NumpyStep()
    made = engine(step)
    hot = [Event(0, 2 * i, START_MS + i, b"hot", b'{"amount":1}') for i in range(400)]
    cold = [Event(0, 2 * i + 1, START_MS + i, b"%d" % (i // 2), b"{}") for i in range(200)]
    mixed = sorted(hot + cold, key=lambda event: event.offset)
    together = run(made, mixed, [len(mixed)])
    assert step.rounds == [101, 101] + [1] * 398
    alone = engine(NumpyStep())
    assert together == run(alone, mixed, [1] * len(mixed))
    assert snapshot(made.scorer.states)[0, b"hot"][1:] == (400, START_MS + 399, 798, 0)


GOOD = b'{"amount":2,"channel":"web"}'
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from([2**53 + 1, 1e39]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
anything = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("amount", "merchant", "channel", "device", "other"), json_values),
).map(lambda doc: json.dumps(doc).encode())
mutilated = st.tuples(anything, st.integers(0, 200), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + 1 :]
)


@given(
    st.lists(
        st.tuples(
            st.none() | st.binary(max_size=5),
            st.none() | st.binary(max_size=30) | anything | mutilated,
            st.sampled_from([-1, 0, -2, START_MS, 253_402_300_799_999, 253_402_300_800_000, 2**63 - 1, -(2**63)]),
            st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2),
        ),
        max_size=8,
    )
)
@example([(b"k", b'{"other":1e400,"channel":"\\ud800"}', START_MS, [])])
@example([(b"k", b'{"merchant":1e400,"other":%d,"device":99999999999999999999}' % 2**64, START_MS, [])])
@example([(b"k", b'{"other":' + b"[" * 600 + b"]" * 600 + b"}", START_MS, [])])
@settings(max_examples=300, deadline=None)
def test_any_record_gives_one_answer_or_one_dead_letter(records: list[tuple[Any, Any, int, Any]]) -> None:
    """The neighbours before, between and after are answered as if it were not there."""
    events = []
    for i, (key, value, timestamp, _) in enumerate(records):
        events += [Event(0, 2 * i, START_MS + i, b"good", GOOD), Event(1, 2 * i + 1, timestamp, key, value)]
    headers = [h for one in records for h in ((), one[3])]
    made = engine("small", partitions=(0, 1), include=["other", "device"])
    result = made.process(batch(events, headers=headers))
    made.commit()
    messages = flatten(result.outputs)
    good = events[::2]
    alone = engine("small", partitions=(0, 1), include=["other", "device"])
    expected = run(alone, good, [len(good)]) if good else []
    assert [m for m in messages if m.partition == 0] == expected
    answered = [int(i) for i in result.predictions.index if i % 2]
    dead = [letter.index for letter in result.dead_letters]
    assert sorted(answered + dead) == list(range(1, len(events), 2))
    for message in messages:
        if message.topic == LETTERS:
            event = next(
                e for e in events if str(e.offset) == dict(message.headers)["__streams.errors.offset"].decode()
            )
            assert (message.key, message.value) == (event.key, event.value)
        else:
            json.loads(message.value, parse_constant=pytest.fail)
    assert not any(stage not in {"decode", "validate"} for stage in (letter.stage for letter in result.dead_letters))
