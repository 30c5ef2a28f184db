"""Each event is of one split, and nothing of another split reaches what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lstmstream.errors import CannotServe
from lstmstream.history.events import Events, sort_events
from lstmstream.history.fields import Chunk, Fields
from lstmstream.history.split import NONE, SPLIT_NAMES, TEST, TRAIN, VALIDATION, coverage, split_events
from lstmstream.train.features import fit_encoder
from lstmstream.train.schema import Features, SplitOptions

DAY_MS = 86_400_000
START_MS = 1_522_540_800_000  # 2018-04-01
FIELDS = Fields("k", "t", ("n",), ("c",), split="p")


def split(**options: Any) -> SplitOptions:
    return SplitOptions.model_validate(options)


def history(
    times: list[int], *, keys: list[str] | None = None, x: Any = None, texts: Any = None, said: Any = None
) -> Events:
    count = len(times)
    rows = Chunk(
        0,
        keys or ["k"] * count,
        np.array(times, np.int64),
        np.array(x if x is not None else np.zeros(count), np.float32).reshape(count, 1),
        [list(texts or [None] * count)],
        None,
        list(said or [None] * count),
    )
    return sort_events([rows], FIELDS)


def days(count: int) -> Events:
    return history([START_MS + day * DAY_MS for day in range(count)])


# --- by time -----


def test_shares_of_the_events_by_time() -> None:
    division = split_events(days(100), split(), 0)
    assert division.labels.tolist() == [TRAIN] * 70 + [VALIDATION] * 15 + [TEST] * 15
    assert division.labels.dtype == np.int8
    assert division.rows(VALIDATION).tolist() == list(range(70, 85))
    assert division.description == (
        "by time: train before 2018-06-10T00:00:00Z, validation from 2018-06-10T00:00:00Z,"
        " test from 2018-06-25T00:00:00Z"
    )


def test_time_is_that_of_the_event_whichever_the_key() -> None:
    order = np.random.default_rng(0).permutation(100)
    events = history([int(at) * 1000 for at in order], keys=[f"k{at % 7}" for at in order])
    division = split_events(events, split(), 0)
    assert [int(events.timestamp[division.labels == part].min()) for part in SPLIT_NAMES] == [0, 70_000, 85_000]
    assert [int(events.timestamp[division.labels == part].max()) for part in SPLIT_NAMES] == [69_000, 84_000, 99_000]


def test_equal_times_stay_together() -> None:
    events = history([0] * 65 + [1000] * 20 + [2000] * 15, keys=[f"k{i}" for i in range(100)])
    labels = split_events(events, split(), 0).labels
    for time, part in ((0, TRAIN), (1000, VALIDATION), (2000, TEST)):
        assert set(labels[events.timestamp == time].tolist()) == {part}


def test_no_test_split() -> None:
    division = split_events(days(100), split(test=0), 0)
    assert division.labels.tolist() == [TRAIN] * 85 + [VALIDATION] * 15
    assert "test" not in division.description


@pytest.mark.parametrize("dated", [False, True])
def test_the_gap_is_left_out_after_train_and_after_validation(dated: bool) -> None:
    dates = {"validation_from": "2018-06-10", "test_from": "2018-06-25T00:00Z"} if dated else {}
    labels = split_events(days(100), split(gap="5d", **dates), 0).labels
    assert labels.tolist() == [TRAIN] * 65 + [NONE] * 5 + [VALIDATION] * 10 + [NONE] * 5 + [TEST] * 15
    without_test = split_events(days(100), split(gap="5d", test=0), 0).labels
    assert without_test.tolist() == [TRAIN] * 80 + [NONE] * 5 + [VALIDATION] * 15


def test_dates() -> None:
    dates = {"train_from": "2018-04-11", "train_to": "2018-05-11", "validation_from": "2018-05-16",
             "test_from": "2018-05-21T02:00+02:00", "test_to": "2018-05-26T00:00:00Z"}  # fmt: skip
    labels = split_events(days(100), split(**dates), 0).labels
    assert labels.tolist() == ([NONE] * 10 + [TRAIN] * 30 + [NONE] * 5 + [VALIDATION] * 5 + [TEST] * 5 + [NONE] * 45)


def test_a_gap_is_kept_where_the_end_of_training_is_given() -> None:
    dates = {"train_to": "2018-06-05", "validation_from": "2018-06-10", "gap": "5d"}
    labels = split_events(days(100), split(**dates), 0).labels
    assert labels.tolist()[60:75] == [TRAIN] * 5 + [NONE] * 5 + [VALIDATION] * 5
    for more in ({"train_to": "2018-06-06"}, {"train_to": "2018-06-10"}, {"gap": "6d"}):
        with pytest.raises(CannotServe, match=r"leaves less than split.gap before the start of the validation split"):
            split_events(days(100), split(**dates | more), 0)
    with pytest.raises(CannotServe, match="; write 2018-06-05T00:00:00Z or earlier, or remove one of the two"):
        split_events(days(100), split(**dates | {"train_to": "2018-06-08"}), 0)


def test_shares_count_no_events_that_only_warm_up() -> None:
    """800 events before `train_from`, 100 after `test_to`: the shares are of the 100 between."""
    labels = split_events(days(1000), split(train_from="2020-06-09", test_to="2020-09-17"), 0).labels
    assert [int((labels == part).sum()) for part in (NONE, TRAIN, VALIDATION, TEST)] == [900, 70, 15, 15]
    assert labels.tolist()[800:900] == [TRAIN] * 70 + [VALIDATION] * 15 + [TEST] * 15


def test_a_date_that_is_none_is_named() -> None:
    wrong = SplitOptions.model_construct(**{**split().__dict__, "test_from": "soon"})
    with pytest.raises(CannotServe, match=r"split.test_from: 'soon' is not an ISO 8601 time; write 2026-01-31"):
        split_events(days(10), wrong, 0)


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
def test_splits_by_time_follow_each_other_with_the_gap_between(
    times: list[int], validation: float, test: float, gap: int, dates: dict[str, str]
) -> None:
    events = history([time * DAY_MS for time in times])
    try:
        labels = split_events(events, split(validation=validation, test=test, gap=f"{gap}d", **dates), 0).labels
    except CannotServe:  # an empty split
        return
    assert len(labels) == len(events)
    found = {part: events.timestamp[labels == part] for part in SPLIT_NAMES}
    if not dates:
        assert found[TRAIN].max() < found[VALIDATION].min() - gap * DAY_MS
        if len(found[TEST]):
            assert found[VALIDATION].max() < found[TEST].min() - gap * DAY_MS
        if not gap:
            assert (labels != NONE).all()


# --- by key, given -----


def keyed(names: list[str], each: int = 3) -> Events:
    return history([1000 * i for i in range(len(names) * each)], keys=[name for name in names for _ in range(each)])


def split_of_key(events: Events, labels: np.ndarray) -> dict[str, set[int]]:
    return {key: set(labels[slice(*events.starts[i : i + 2])].tolist()) for i, key in enumerate(events.keys)}


def test_a_key_has_one_split_which_other_keys_do_not_change() -> None:
    names = [f"card-{i}" for i in range(400)]
    few, many = keyed(names[:100]), keyed([*(f"new-{i}" for i in range(50)), *reversed(names)], each=1)
    one = split_of_key(few, split_events(few, split(by="key"), 5).labels)
    other = split_of_key(many, split_events(many, split(by="key"), 5).labels)
    assert all(len(parts) == 1 for parts in one.values())
    assert all(one[key] == other[key] for key in one)
    assert one != split_of_key(few, split_events(few, split(by="key"), 6).labels)  # another seed


def test_shares_of_the_keys() -> None:
    events = keyed([f"card-{i}" for i in range(5000)], each=1)
    division = split_events(events, split(by="key", validation=0.3, test=0.1), 0)
    shares = [float((division.labels == part).mean()) for part in (NONE, TRAIN, VALIDATION, TEST)]
    np.testing.assert_allclose(shares, [0, 0.6, 0.3, 0.1], atol=0.02)
    assert division.description == "by key: 0.3 of the keys validation, 0.1 test"
    assert TEST not in split_events(events, split(by="key", test=0), 0).labels


def test_numbered_keys_are_drawn_as_if_at_random() -> None:
    """Of machine-100 to machine-899, no last digit, and no pair of seeds, stands out."""
    names = [f"machine-{i}" for i in range(100, 900)]
    events = keyed(names, each=1)
    chosen = np.array([split_events(events, split(by="key"), seed).labels == TEST for seed in range(30)])
    sizes = chosen.sum(axis=1)
    assert 60 < sizes.min() <= sizes.max() < 180  # 120 expected, 5 standard deviations are 50
    digit = np.array([int(name[-1]) for name in events.keys])
    by_digit = np.array([chosen[:, digit == last].sum(axis=1) for last in range(10)])  # 12 of 80 expected
    assert by_digit.min() > 0
    squares = ((by_digit - sizes / 10) ** 2 / (sizes / 10 * 0.85)).sum(axis=0)  # chi-squared, 9 degrees of freedom
    assert squares.max() < 40
    shared = chosen.astype(int) @ chosen.T  # keys that are in the test split with both seeds: 0.15 * 120 = 18
    overlap = shared[np.triu_indices(30, 1)] / (2 * 120 - shared[np.triu_indices(30, 1)])
    assert 0.02 < overlap.min() <= overlap.mean() <= overlap.max() < 0.17  # 0.081 by chance
    assert overlap.mean() == pytest.approx(0.081, abs=0.01)


def test_splits_by_a_field_of_the_data() -> None:
    said = ["train", "test", None, "validation", "", "train"]
    division = split_events(history([1000 * i for i in range(6)], said=said), split(by="given", field="p"), 0)
    assert division.labels.tolist() == [TRAIN, TEST, NONE, VALIDATION, NONE, TRAIN]
    assert division.description == "by field 'p'"


def test_unknown_names_of_splits() -> None:
    events = history([0, 1000, 2000], said=["train", "Test", "dev"])
    with pytest.raises(
        CannotServe, match=r"split.field: field 'p' holds 'Test', 'dev'; it should hold only train, validation, test"
    ):
        split_events(events, split(by="given", field="p"), 0)


# --- empty splits -----


@pytest.mark.parametrize(
    ("events", "options", "name", "counts"),
    [
        (days(1), {}, "train", "of 1 event 0 train, 0 validation, 1 test"),
        (days(10), {"validation": 0}, "validation", "of 10 events 8 train, 0 validation, 2 test"),
        (days(100), {"train_to": "2018-01-01"}, "train", "0 train, 15 validation, 15 test"),
        (days(100), {"gap": "90d"}, "train", "by time: train before 2018-03-12T00:00:00Z"),
        (days(100), {"by": "key"}, "validation", "of 100 events 100 train, 0 validation, 0 test"),
        (history([0, 1], said=["train"] * 2), {"by": "given", "field": "p"}, "validation", "by field 'p'"),
        (history([]), {}, "train", "of 0 events"),
    ],
)
def test_an_empty_split_is_refused(events: Events, options: dict[str, Any], name: str, counts: str) -> None:
    with pytest.raises(CannotServe) as caught:
        split_events(events, split(**options), 1)
    text = str(caught.value)
    assert text.startswith(f"split: the {name} split is empty (")
    assert counts in text
    remedy = "; change the fractions or dates under split, or add more data"
    if options.get("by") == "key":
        remedy = "; the data have 1 key(s): change the fractions or training.seed, or add more keys"
    assert text.endswith(remedy)


def test_few_keys_without_a_test_split_are_refused() -> None:
    """Else the report would show the split that chose epoch and threshold, and say nothing."""
    events, messages = keyed([f"pump-{i}" for i in range(6)]), []
    for seed in range(40):
        try:
            assert TEST in split_events(events, split(by="key", validation=0.3), seed).labels
        except CannotServe as refused:
            messages.append(str(refused))
    refusals = [text for text in messages if text.startswith("split: the test split is empty")]
    assert refusals
    assert all("the data have 6 key(s): change the fractions or training.seed" in text for text in refusals)
    assert all(text.endswith(", or do without a test split (split.test: 0)") for text in refusals)
    given = history([0, 1000], said=["train", "validation"])
    assert TEST not in split_events(given, split(by="given", field="p"), 0).labels  # the user's own choice


# --- what part of the stream -----


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "time"}, None),
        ({"by": "key"}, None),
        ({"by": "given", "field": "p"}, lambda i: ("train", "validation", "test")[i // 1000]),  # by time
        ({"by": "given", "field": "p"}, lambda i: ("train", "train", "validation", "test")[i % 100 % 4]),  # by key
        ({"by": "given", "field": "p"}, lambda i: ("train", "validation", "test", "train")[i // 100 % 4]),  # days
    ],
)
def test_the_rate_of_a_split_is_that_of_the_stream(options: dict[str, Any], said: Any) -> None:
    """100 keys with an event each per day, for 30 days: whatever the split, it stands for 100 events per day."""
    times = [START_MS + i // 100 * DAY_MS + i for i in range(3000)]
    names = None if said is None else [said(i) for i in range(3000)]
    events = history(times, keys=[f"k{i % 100}" for i in range(3000)], said=names)
    division = split_events(events, split(**options), 0)
    for label in SPLIT_NAMES:
        rows = division.rows(label)
        span_days, share = coverage(events, division, label, options["by"])
        if span_days is None:
            span_days = float(np.ptp(events.timestamp[rows])) / DAY_MS
        # n days have n - 1 between them
        assert len(rows) / span_days / share == pytest.approx(100, rel=1.5 / span_days)


# --- nothing leaks -----


@settings(max_examples=60, deadline=None)
@given(
    st.integers(10, 80),
    st.integers(0, 10**6),
    st.sampled_from([{"by": "time"}, {"by": "time", "gap": "1d"}, {"by": "key"}, {"by": "given", "field": "p"}]),
)
def test_what_lies_outside_the_training_split_changes_nothing_that_is_learned(
    count: int, seed: int, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(seed)
    times = [int(day) * DAY_MS // 4 for day in random.integers(0, 100, count)]
    keys = [f"k{i}" for i in random.integers(0, 8, count)]
    said = random.choice(["train", "validation", "test", ""], count).tolist()
    x, texts = random.normal(size=count), random.choice(["a", "b", "c"], count).tolist()
    events = history(times, keys=keys, x=x, texts=texts, said=said)
    try:
        training = split_events(events, split(**options), seed).rows(TRAIN)
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
    assert repr(fit_encoder(events, training, wanted)) == repr(fit_encoder(other, training, wanted))
    inside = events.x.copy()
    inside[training[0]] += 100
    moved = Events(**{name: getattr(events, name) for name in Events.__slots__} | {"x": inside})
    if len(training) > 1:
        assert repr(fit_encoder(events, training, wanted)) != repr(fit_encoder(moved, training, wanted))
