"""Each event is of one part, and nothing of another part reaches what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lstmstream.errors import CannotServe
from lstmstream.train.history.data import Events, gather
from lstmstream.train.history.features import learn
from lstmstream.train.history.read import Fields, Part
from lstmstream.train.history.split import NAMES, NONE, TEST, TRAIN, VALIDATION, divide
from lstmstream.train.schema import Features, Split

DAY_MS = 86_400_000
START_MS = 1_522_540_800_000  # 2018-04-01
FIELDS = Fields("k", "t", ("n",), ("c",), part="p")


def split(**options: Any) -> Split:
    return Split.model_validate(options)


def history(
    times: list[int], *, keys: list[str] | None = None, x: Any = None, texts: Any = None, said: Any = None
) -> Events:
    count = len(times)
    rows = Part(
        0,
        keys or ["k"] * count,
        np.array(times, np.int64),
        np.array(x if x is not None else np.zeros(count), np.float32).reshape(count, 1),
        [list(texts or [None] * count)],
        None,
        list(said or [None] * count),
    )
    return gather([rows], FIELDS)


def days(count: int) -> Events:
    return history([START_MS + day * DAY_MS for day in range(count)])


# --- by time -----


def test_shares_of_the_events_by_time() -> None:
    parts = divide(days(100), split(), 0)
    assert parts.of.tolist() == [TRAIN] * 70 + [VALIDATION] * 15 + [TEST] * 15
    assert parts.of.dtype == np.int8
    assert parts.rows(VALIDATION).tolist() == list(range(70, 85))
    assert parts.rule == (
        "by time: train before 2018-06-10T00:00:00Z, validation from 2018-06-10T00:00:00Z,"
        " test from 2018-06-25T00:00:00Z"
    )


def test_time_is_that_of_the_event_whichever_the_key() -> None:
    order = np.random.default_rng(0).permutation(100)
    events = history([int(at) * 1000 for at in order], keys=[f"k{at % 7}" for at in order])
    parts = divide(events, split(), 0)
    assert [int(events.timestamp[parts.of == part].min()) for part in NAMES] == [0, 70_000, 85_000]
    assert [int(events.timestamp[parts.of == part].max()) for part in NAMES] == [69_000, 84_000, 99_000]


def test_equal_times_stay_together() -> None:
    events = history([0] * 65 + [1000] * 20 + [2000] * 15, keys=[f"k{i}" for i in range(100)])
    of = divide(events, split(), 0).of
    for time, part in ((0, TRAIN), (1000, VALIDATION), (2000, TEST)):
        assert set(of[events.timestamp == time].tolist()) == {part}


def test_no_test_part() -> None:
    parts = divide(days(100), split(test=0), 0)
    assert parts.of.tolist() == [TRAIN] * 85 + [VALIDATION] * 15
    assert "test" not in parts.rule


@pytest.mark.parametrize("dated", [False, True])
def test_the_gap_is_left_out_after_train_and_after_validation(dated: bool) -> None:
    dates = {"validation_from": "2018-06-10", "test_from": "2018-06-25T00:00Z"} if dated else {}
    of = divide(days(100), split(gap="5d", **dates), 0).of
    assert of.tolist() == [TRAIN] * 65 + [NONE] * 5 + [VALIDATION] * 10 + [NONE] * 5 + [TEST] * 15
    without_test = divide(days(100), split(gap="5d", test=0), 0).of
    assert without_test.tolist() == [TRAIN] * 80 + [NONE] * 5 + [VALIDATION] * 15


def test_dates() -> None:
    dates = {"train_from": "2018-04-11", "train_to": "2018-05-11", "validation_from": "2018-05-16",
             "test_from": "2018-05-21T02:00+02:00", "test_to": "2018-05-26T00:00:00Z"}  # fmt: skip
    of = divide(days(100), split(**dates), 0).of
    assert of.tolist() == ([NONE] * 10 + [TRAIN] * 30 + [NONE] * 5 + [VALIDATION] * 5 + [TEST] * 5 + [NONE] * 45)


def test_a_date_that_is_none_is_named() -> None:
    wrong = Split.model_construct(**{**split().__dict__, "test_from": "soon"})
    with pytest.raises(CannotServe, match=r"split.test_from: 'soon' is not an ISO 8601 time; write 2026-01-31"):
        divide(days(10), wrong, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=60),
    st.floats(0, 0.6),
    st.floats(0, 0.39),
    st.integers(0, 10),
    st.dictionaries(
        st.sampled_from(["train_from", "train_to", "validation_from", "test_from", "test_to"]),
        st.integers(1, 28).map(lambda day: f"1970-01-{day:02}"),
    ),
)
def test_parts_by_time_follow_each_other_with_the_gap_between(
    times: list[int], validation: float, test: float, gap: int, dates: dict[str, str]
) -> None:
    events = history([time * DAY_MS for time in times])
    try:
        of = divide(events, split(validation=validation, test=test, gap=f"{gap}d", **dates), 0).of
    except CannotServe:  # an empty part
        return
    assert len(of) == len(events)
    found = {part: events.timestamp[of == part] for part in NAMES}
    if not dates:
        assert found[TRAIN].max() < found[VALIDATION].min() - gap * DAY_MS
        if len(found[TEST]):
            assert found[VALIDATION].max() < found[TEST].min() - gap * DAY_MS
        if not gap:
            assert (of != NONE).all()


# --- by key, given -----


def keyed(names: list[str], each: int = 3) -> Events:
    return history([1000 * i for i in range(len(names) * each)], keys=[name for name in names for _ in range(each)])


def part_of_key(events: Events, of: np.ndarray) -> dict[str, set[int]]:
    return {key: set(of[slice(*events.starts[i : i + 2])].tolist()) for i, key in enumerate(events.keys)}


def test_a_key_has_one_part_which_other_keys_do_not_change() -> None:
    names = [f"card-{i}" for i in range(400)]
    few, many = keyed(names[:100]), keyed([*(f"new-{i}" for i in range(50)), *reversed(names)], each=1)
    one = part_of_key(few, divide(few, split(by="key"), 5).of)
    other = part_of_key(many, divide(many, split(by="key"), 5).of)
    assert all(len(parts) == 1 for parts in one.values())
    assert all(one[key] == other[key] for key in one)
    assert one != part_of_key(few, divide(few, split(by="key"), 6).of)  # another seed


def test_shares_of_the_keys() -> None:
    events = keyed([f"card-{i}" for i in range(5000)], each=1)
    parts = divide(events, split(by="key", validation=0.3, test=0.1), 0)
    shares = [float((parts.of == part).mean()) for part in (NONE, TRAIN, VALIDATION, TEST)]
    np.testing.assert_allclose(shares, [0, 0.6, 0.3, 0.1], atol=0.02)
    assert parts.rule == "by key: 0.3 of the keys validate, 0.1 test"
    assert TEST not in divide(events, split(by="key", test=0), 0).of


def test_parts_as_the_data_say() -> None:
    said = ["train", "test", None, "validation", "", "train"]
    parts = divide(history([1000 * i for i in range(6)], said=said), split(by="given", field="p"), 0)
    assert parts.of.tolist() == [TRAIN, TEST, NONE, VALIDATION, NONE, TRAIN]
    assert parts.rule == "as field 'p' says"


def test_parts_that_are_none() -> None:
    events = history([0, 1000, 2000], said=["train", "Test", "dev"])
    with pytest.raises(CannotServe, match=r"split.field: field 'p' holds 'Test', 'dev'; only train, validation, test"):
        divide(events, split(by="given", field="p"), 0)


# --- empty parts -----


@pytest.mark.parametrize(
    ("events", "options", "name", "counts"),
    [
        (days(1), {}, "train", "of 1 events 0 train, 0 validate, 1 test"),
        (days(10), {"validation": 0}, "validation", "of 10 events 8 train, 0 validate, 2 test"),
        (days(100), {"train_to": "2018-01-01"}, "train", "0 train, 15 validate, 15 test"),
        (days(100), {"gap": "90d"}, "train", "by time: train before 2018-03-12T00:00:00Z"),
        (days(100), {"by": "key"}, "train", "of 100 events 0 train, 0 validate, 100 test"),
        (history([0, 1], said=["train"] * 2), {"by": "given", "field": "p"}, "validation", "as field 'p' says"),
        (history([]), {}, "train", "of 0 events"),
    ],
)
def test_an_empty_part_is_refused(events: Events, options: dict[str, Any], name: str, counts: str) -> None:
    with pytest.raises(CannotServe) as caught:
        divide(events, split(**options), 1)
    text = str(caught.value)
    assert text.startswith(f"split: the {name} part is empty (")
    assert counts in text
    assert text.endswith("; change the shares or dates under split, or bring more data")


# --- nothing leaks -----


@settings(max_examples=60, deadline=None)
@given(
    st.integers(10, 80),
    st.integers(0, 10**6),
    st.sampled_from([{"by": "time"}, {"by": "time", "gap": "1d"}, {"by": "key"}, {"by": "given", "field": "p"}]),
)
def test_what_lies_outside_the_training_part_changes_nothing_that_is_learned(
    count: int, seed: int, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(seed)
    times = [int(day) * DAY_MS // 4 for day in random.integers(0, 100, count)]
    keys = [f"k{i}" for i in random.integers(0, 8, count)]
    said = random.choice(["train", "validation", "test", ""], count).tolist()
    x, texts = random.normal(size=count), random.choice(["a", "b", "c"], count).tolist()
    events = history(times, keys=keys, x=x, texts=texts, said=said)
    try:
        training = divide(events, split(**options), seed).rows(TRAIN)
    except CannotServe:
        assume(False)
    wanted = Features.model_validate(
        {"numbers": ["n"], "categories": [{"name": "c", "min_count": 1}, ], "elapsed": True}
    )  # fmt: skip

    learnt = np.zeros(count, np.bool_)
    learnt[training] = True
    outside = ~learnt
    changed = events.x.copy()
    changed[outside] = np.where(random.random((outside.sum(), 1)) < 0.5, np.nan, 1e9)
    codes = events.codes.copy()
    codes[outside] = 1 + random.integers(0, len(events.texts[0]), (outside.sum(), 1))
    elapsed = events.elapsed.copy()
    elapsed[outside] = 1e7
    other = Events(
        **{name: getattr(events, name) for name in Events.__slots__}
        | {"x": changed, "codes": codes, "elapsed": elapsed}
    )
    assert repr(learn(events, training, wanted)) == repr(learn(other, training, wanted))
    inside = events.x.copy()
    inside[training[0]] += 100
    moved = Events(**{name: getattr(events, name) for name in Events.__slots__} | {"x": inside})
    if len(training) > 1:
        assert repr(learn(events, training, wanted)) != repr(learn(moved, training, wanted))
