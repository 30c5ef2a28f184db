"""The encoder is fitted on the training split, and the inputs computed with it are those of the model file's graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from lstmstream.history.events import Events, sort_events
from lstmstream.history.fields import Chunk, Fields
from lstmstream.train import features
from lstmstream.train.export import Category, DenseHead, Elapsed, FeatureEncoder, Lstm, NetworkSpec, Number, build
from lstmstream.train.export.encoder import NUMBERS
from lstmstream.train.export.network_spec import as_float32
from lstmstream.train.features import category_features, fit_encoder, missing_flag_columns, transform
from lstmstream.train.schema import Features
from tests.train.reference_encoder import encode_in_float64


def history(x: Any, *, times: Any = None, texts: Any = None) -> Events:
    """One key's events with numbers x [N, F] and a category."""
    x = np.array(x, np.float32)
    x = x.reshape(len(x), -1)
    count = len(x)
    rows = Chunk(
        0,
        ["k"] * count,
        np.arange(count) * 1000 if times is None else np.array(times, np.int64),
        x,
        [list(texts or [None] * count)],
        None,
        None,
    )
    return sort_events([rows], Fields("k", "t", tuple(f"n{i}" for i in range(x.shape[1])), ("c",)))


def feature_options(**options: Any) -> Features:
    return Features.model_validate(options)


def number(values: Any, **options: Any) -> Number:
    events = history(values)
    (found,) = fit_encoder(events, np.arange(len(events)), feature_options(numbers=[{"name": "n0", **options}])).numbers
    return found


# --- fitting ------


def test_by_mean_and_deviation() -> None:
    values = np.random.default_rng(0).normal(5, 3, 1000).astype(np.float32)
    wide = values.astype(np.float64)
    assert number(values) == Number("n0", float(np.float32(wide.mean())), float(np.float32(wide.std())))


def test_by_median_and_quartiles() -> None:
    found = number([0, 1, 2, 3, 4, 5, 6, 7, 1000], scale="robust")
    assert found.centre == 4
    assert found.scale == pytest.approx(4 / 1.349, rel=1e-6)
    mostly = number([5.0] * 90 + [6.0] * 10, scale="robust")  # quartiles are equal: the deviation then
    assert (mostly.centre, mostly.scale) == (5, pytest.approx(0.3, rel=1e-6))
    normal = number(np.random.default_rng(0).normal(2, 7, 200_000), scale="robust")
    assert (normal.centre, normal.scale) == (pytest.approx(2, abs=0.1), pytest.approx(7, rel=0.02))


def test_logarithms_are_scaled_as_logarithms() -> None:
    values = np.array([-10.0, 0, 10, 1000])
    logs = np.sign(values) * np.log1p(np.abs(values))
    found = number(values, log=True)
    assert found.log
    assert (found.centre, found.scale) == (pytest.approx(logs.mean(), rel=1e-6), pytest.approx(logs.std(), rel=1e-6))


def test_not_scaled() -> None:
    assert number([1, 2, 900], scale="none") == Number("n0", 0, 1)


@pytest.mark.parametrize("unit", [1e-20, 1e-9, 1.0, 1e9, 1e20])
@pytest.mark.parametrize("scale", ["standard", "robust"])
def test_whatever_the_unit(unit: float, scale: str) -> None:
    values = np.random.default_rng(0).normal(size=200) * unit
    found = number(values, scale=scale)
    assert found.scale == pytest.approx(unit, rel=0.2)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e30, 1e-30, 16777217.0])
@pytest.mark.parametrize("scale", ["standard", "robust"])
def test_what_never_changes_is_not_blown_up(value: float, scale: str) -> None:
    found = number([value] * 1001, scale=scale)
    assert (found.centre, found.scale) == (float(np.float32(value)), 1.0)
    assert number([value, np.nan], scale=scale).scale == 1.0


def test_a_small_spread_at_a_large_value_is_scaled() -> None:
    values = np.float32(1.7e9 + 500 * np.sin(np.arange(1000) / 20))
    found = number(values)
    assert found.scale == pytest.approx(values.astype(np.float64).std(), rel=1e-6)
    assert np.abs((values - np.float32(found.centre)) / found.scale).max() < 2


def test_missing_values_leave_the_scale_alone_and_get_a_flag() -> None:
    with_holes, without = number([1, np.nan, 2, np.nan, 3]), number([1, 2, 3])
    assert with_holes == replace(without, flag_missing=True)
    assert not without.flag_missing
    assert number([np.nan, np.nan]) == Number("n0", 0, 1, flag_missing=True)
    events = history([1, 2, 3])
    flagged = fit_encoder(events, np.arange(3), feature_options(numbers=["n0"]), flag_missing=True)
    assert flagged.numbers[0].flag_missing


def test_elapsed_is_scaled_as_a_logarithm_of_seconds() -> None:
    events = history([0, 0, 0, 0], times=[0, 1000, 61_000, 3_661_000])
    encoder = fit_encoder(events, np.arange(4), feature_options(elapsed=True))
    logs = np.log1p([1, 60, 3600])
    assert encoder.elapsed == Elapsed(float(np.float32(logs.mean())), float(np.float32(logs.std())))
    assert (encoder.numbers, encoder.hour_of_day, encoder.day_of_week) == ((), False, False)
    clock = fit_encoder(events, np.arange(4), feature_options(hour_of_day=True, day_of_week=True))
    assert (clock.elapsed, clock.hour_of_day, clock.day_of_week) == (None, True, True)


def test_the_vocabulary_has_the_values_that_are_frequent_in_the_training_split() -> None:
    texts = ["other", "other", "other", "b", "a", "b", None, "a", "rare", "c"]
    events = history(np.zeros(10), texts=texts)
    (category,) = fit_encoder(events, np.arange(3, 10), feature_options(categories=["c"])).categories
    assert category.vocabulary == ("a", "b")  # `other` is in another split, `rare` and `c` are too rare
    assert category.table.shape == (3, 2)
    (every,) = fit_encoder(
        events, np.arange(3, 10), feature_options(categories=[{"name": "c", "min_count": 1, "width": 5}])
    ).categories
    assert every.vocabulary == ("a", "b", "c", "rare")
    assert every.table.shape == (5, 5)
    (none,) = fit_encoder(
        events, np.arange(3, 10), feature_options(categories=[{"name": "c", "min_count": 9}])
    ).categories
    assert (none.vocabulary, none.table.shape) == ((), (1, 2))


def test_of_too_many_values_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MAX_VOCABULARY", 2)
    events = history(np.zeros(7), texts=["x", "x", "y", "z", "z", "z", "y"])
    (category,) = fit_encoder(
        events, np.arange(7), feature_options(categories=[{"name": "c", "min_count": 1}])
    ).categories
    assert category.vocabulary == ("x", "z")


def test_buckets_and_widths() -> None:
    events = history(np.zeros(3), texts=["x", "y", "z"])

    def table(buckets: int) -> Category:
        (found,) = fit_encoder(
            events, np.arange(3), feature_options(categories=[{"name": "c", "buckets": buckets}])
        ).categories
        return found

    assert (table(99).vocabulary, table(99).buckets, table(99).table.shape) == (None, 99, (100, 10))
    assert table(1000).table.shape == (1001, 16)
    assert table(1).table.shape == (2, 2)
    encoder = FeatureEncoder(categories=(table(99),))
    assert [(f.name, f.kind, f.vocabulary, f.buckets) for f in category_features(encoder)] == [
        ("c", "category", None, 99)
    ]


def test_a_long_history_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MAX_SAMPLE_ROWS", 10)
    values = np.arange(95)
    events = history(values)
    (found,) = fit_encoder(events, np.arange(95), feature_options(numbers=["n0"])).numbers
    assert found.centre == values[::10].mean()


# --- transforming -----

RICH = FeatureEncoder(
    numbers=(
        Number("a", 1.5, 3.0, log=True, flag_missing=True),
        Number("b", -20.0, 0.37),
        Number("c", 0.25, 1e-3, flag_missing=True),
        Number("d", 2.0, 1.25, log=True),
    ),
    categories=(Category("s", np.arange(8, dtype=np.float32).reshape(4, 2), ("x", "y", "z")),),
    elapsed=Elapsed(3.0, 2.2),
    hour_of_day=True,
    day_of_week=True,
)
VARIANTS = {
    "rich": RICH,
    "no log": replace(RICH, numbers=RICH.numbers[1:3]),
    "all log, all flags": replace(RICH, numbers=(RICH.numbers[0],), elapsed=None),
    "no flags": replace(RICH, numbers=RICH.numbers[1:2], elapsed=None, hour_of_day=False),
    "elapsed alone": FeatureEncoder(elapsed=Elapsed(1.0, 2.0)),
    "hour alone": FeatureEncoder(hour_of_day=True),
    "day alone": FeatureEncoder(day_of_week=True),
    "numbers alone": FeatureEncoder(numbers=RICH.numbers),
}


def feed_for(encoder: FeatureEncoder, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def holes(values: np.ndarray) -> np.ndarray:
        return np.where(random.random(values.shape) < 0.25, np.nan, values).astype(np.float32)

    wide = random.normal(size=(rows, len(encoder.numbers))) * 10 ** random.uniform(-5, 5, (rows, len(encoder.numbers)))
    wide[:3] = np.array([[0.0], [3e38], [-3e38]])
    times = random.integers(-(10**13), 10**13, rows)
    times[:4] = [0, -1, 86_399_999, -62_135_596_800_000]
    return {
        "x": holes(wide),
        "elapsed": holes(random.exponential(size=rows) * 10 ** random.uniform(-3, 7, rows)),
        "timestamp": times,
        "categories": random.integers(0, 4, (rows, len(encoder.categories))),
    }


def of_graph(encoder: FeatureEncoder, feed: dict[str, np.ndarray]) -> np.ndarray:
    """The encoded inputs [rows, width] that the exported step computes."""
    width = encoder.width
    layer = Lstm(np.zeros((4, width), np.float32), np.zeros((4, 1), np.float32), np.zeros(8, np.float32))
    network = NetworkSpec(encoder, (layer,), DenseHead(np.ones((1, 1), np.float32), np.zeros(1, np.float32)))
    model = build(network)
    made = {output for node in model.graph.node for output in node.output}
    name = "encoded" if "encoded" in made else next(
        name for name in ("clock", NUMBERS) if name in made
    )  # fmt: skip
    model.graph.output.add().name = name
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = {one.name for one in session.get_inputs()}
    rows = len(feed["timestamp"])
    there = feed | {"state": np.zeros((rows, network.state.size), np.float32)}
    (found,) = session.run([name], {name: values for name, values in there.items() if name in given})
    assert found.shape == (rows, width)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_inputs_are_those_of_the_graph(variant: str) -> None:
    encoder = VARIANTS[variant]
    feed = feed_for(encoder, 500)
    found = transform(encoder, feed["x"], feed["elapsed"], feed["timestamp"])
    assert found.dtype == np.float32
    assert found.shape == (500, encoder.dense_width)
    graph = of_graph(encoder, feed)[:, : encoder.dense_width]
    waves = 2 * (encoder.hour_of_day + encoder.day_of_week)
    plain = slice(0, encoder.dense_width - waves)
    np.testing.assert_allclose(found[:, plain], graph[:, plain], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found[:, plain.stop :], graph[:, plain.stop :], rtol=0, atol=2e-6)  # float32 angles
    reference = encode_in_float64(encoder, feed | {"x": feed["x"][:, : len(encoder.numbers)]})[:, : encoder.dense_width]
    np.testing.assert_allclose(found, reference, rtol=1e-4, atol=2e-5)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= encoder.limit


def test_the_same_for_any_shape() -> None:
    feed = feed_for(RICH, 60)
    flat = transform(RICH, feed["x"], feed["elapsed"], feed["timestamp"])
    shaped = transform(
        RICH, feed["x"].reshape(5, 12, 4), feed["elapsed"].reshape(5, 12), feed["timestamp"].reshape(5, 12)
    )
    assert shaped.shape == (5, 12, RICH.dense_width)
    np.testing.assert_array_equal(shaped.reshape(60, -1), flat)


def test_missing_is_zero_with_a_flag_and_the_rest_is_cut() -> None:
    nothing = transform(
        RICH, np.full((1, 4), np.nan, np.float32), np.full(1, np.nan, np.float32), np.zeros(1, np.int64)
    )
    assert nothing[0, :8].tolist() == [0] * 5 + [1] * 3
    far = transform(RICH, np.array([[0, -3e38, 3e38, 0]], np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64))
    assert far[0, 1:3].tolist() == [-1e4, 1e4]
    assert far[0, 5:8].tolist() == [0] * 3


def test_clock_at_known_times() -> None:
    encoder = FeatureEncoder(hour_of_day=True, day_of_week=True)
    monday = 4 * 86_400_000  # 1970-01-05
    times = np.array([monday, monday + 6 * 3_600_000, monday - 7 * 86_400_000])
    found = transform(encoder, np.empty((3, 0), np.float32), np.empty(3, np.float32), times)
    np.testing.assert_allclose(found[0], [0, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found[1, :2], [1, 0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_no_dense_input_at_all() -> None:
    encoder = FeatureEncoder(categories=RICH.categories)
    assert transform(encoder, np.empty((3, 0), np.float32), np.empty(3, np.float32), np.zeros(3, np.int64)).shape == (
        3,
        0,
    )


@pytest.mark.parametrize("elapsed", [None, Elapsed(1.0, 2.0)])
def test_flag_columns_are_where_the_flags_are(elapsed: Elapsed | None) -> None:
    encoder = replace(RICH, elapsed=elapsed)
    columns = missing_flag_columns(encoder)
    assert [column is None for column in columns] == [False, True, False, True]
    for place, column in enumerate(columns):
        x = np.zeros((1, 4), np.float32)
        rest = np.zeros(1, np.float32), np.zeros(1, np.int64)
        before = transform(encoder, x, *rest)[0]
        x[0, place] = np.nan
        after = transform(encoder, x, *rest)[0]
        changed = np.flatnonzero((before == 0) & (after == 1)).tolist()
        assert changed == ([] if column is None else [column])


def test_scaling_is_in_the_bits_of_float32() -> None:
    found = number(np.random.default_rng(0).normal(1 / 3, 1 / 7, 100))
    assert (found.centre, found.scale) == tuple(as_float32([found.centre, found.scale]).tolist())
