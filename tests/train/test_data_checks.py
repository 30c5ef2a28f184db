"""Data that cannot be trained on are refused, and misleading data cause warnings, each with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.history.events import Events, load_events, order_classes
from lstmstream.history.fields import Fields
from lstmstream.history.split import TRAIN, VALIDATION, Split, split_events
from lstmstream.train import data_checks
from lstmstream.train.features import fit_encoder
from lstmstream.train.schema import TrainConfig, validate_training

ROWS = 400
CONSTANT = "in the training split, so nothing can be learned from it; leave it out"

START_S = 1_600_000_000


def config_of(**sections: Any) -> TrainConfig:
    tree: dict[str, Any] = {
        "name": "m",
        "task": "classify",
        "data": {"path": "x.parquet", "key": "card", "timestamp": "time"},
        "features": {"numbers": ["amount", "age"], "categories": ["shop"]},
        "target": {"field": "fraud"},
    }
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    return validate_training(tree, Path())


def frame_of(**columns: Any) -> pl.DataFrame:
    random = np.random.default_rng(0)
    table = {
        "card": [f"c{i % 8}" for i in range(ROWS)],
        "time": [START_S + i for i in range(ROWS)],
        "amount": random.normal(size=ROWS),
        "age": random.integers(20, 60, ROWS),
        "shop": random.choice(["a", "b", "c"], ROWS),
        "fraud": (random.random(ROWS) < 0.3).astype(int),
    }
    return pl.DataFrame(table | columns)


class Data:
    """Data on disk, read and split as training does it."""

    def __init__(
        self, folder: Path, frame: pl.DataFrame, classes: tuple[str, ...] = ("0", "1"), **sections: Any
    ) -> None:
        file = folder / "x.parquet"
        frame.write_parquet(file)
        self.config = config = config_of(**sections)
        fields = Fields(
            config.data.key,
            config.data.timestamp,
            tuple(number.name for number in config.features.numbers),
            tuple(category.name for category in config.features.categories),
            label=config.target.field,
        )
        self.events: Events = order_classes(load_events([file], fields), classes)
        self.split: Split = split_events(self.events, config.split, 0)
        self.loss_masks = {"train": self._loss_mask(TRAIN), "validation": self._loss_mask(VALIDATION)}

    def _loss_mask(self, label: int) -> np.ndarray:
        """Events with a label, or with a next event in the same split."""
        in_split = self.split.labels == label
        if self.config.task == "classify":
            return in_split & (self.events.label >= 0)
        key = self.events.key_indices()
        return in_split & np.append(in_split[1:] & (key[1:] == key[:-1]), False)

    def errors(self) -> list[str]:
        return data_checks.errors(self.events, self.split, self.config, self.loss_masks)

    def warnings(self) -> list[str]:
        """The warnings about data without errors."""
        assert self.errors() == []
        return data_checks.warnings(self.events, self.split, self.config)


def test_good_data_cause_no_warning(tmp_path: Path) -> None:
    assert Data(tmp_path, frame_of()).warnings() == []
    forecast = Data(tmp_path, frame_of(), task="forecast", target={"field": None})
    assert forecast.warnings() == []


# --- each sentence -----


def test_a_missing_column(tmp_path: Path) -> None:
    with pytest.raises(CannotServe) as caught:
        Data(tmp_path, frame_of().rename({"amount": "Amount"}))
    assert str(caught.value) == (
        f"{tmp_path / 'x.parquet'}: no field 'amount'; the fields are 'card', 'time', 'Amount', 'age', 'shop',"
        " 'fraud'; did you mean 'Amount'? Use that name, or rename the field in the data"
    )


def test_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(CannotServe) as caught:
        Data(tmp_path, frame_of(), split={"train_to": "1969-12-31"})
    assert str(caught.value) == (
        "split: the train split is empty (by time: train before 1969-12-31T00:00:00Z, validation from"
        " 2020-09-13T12:31:20Z, test from 2020-09-13T12:32:20Z; of 400 events 0 train, 60 validation, 60 test);"
        " change the fractions or dates under split, or add more data"
    )


def test_a_split_of_events_at_one_time(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match=r"; all events have the time 2020-09-13.*Z: check data"):
        Data(tmp_path, frame_of(time=[START_S] * ROWS))


def test_a_split_without_labels(tmp_path: Path) -> None:
    late = [i % 2 if i < 200 else None for i in range(ROWS)]
    assert Data(tmp_path, frame_of(fraud=late)).errors() == [
        "split: the validation split has no event with a label in 'fraud'; change the fractions or dates under split"
    ]


def test_a_split_without_anything_to_forecast(tmp_path: Path) -> None:
    once = [f"c{i % 8}" if i < 280 else f"new-{i}" for i in range(ROWS)]
    assert Data(tmp_path, frame_of(card=once), task="forecast", target={"field": None}).errors() == [
        (
            "split: the validation split has no event that is followed by another event of its key in the same split;"
            " change the fractions or dates under split"
        )
    ]


def test_only_one_class(tmp_path: Path) -> None:
    assert Data(tmp_path, frame_of(fraud=[0] * ROWS), classes=("0",)).errors() == [
        "target.field: 'fraud' has only one value, '0'; two classes are needed"
    ]
    late = [int(i > 300) for i in range(ROWS)]
    assert Data(tmp_path, frame_of(fraud=late)).errors() == [
        (
            "target.field: in the training split 'fraud' is always '0'; two classes are needed there:"
            " change the dates under split, or use more data"
        )
    ]


def test_a_class_that_is_not_in_the_training_split(tmp_path: Path) -> None:
    grades = [i % 2 if i < 300 else 2 for i in range(ROWS)]
    assert Data(tmp_path, frame_of(fraud=grades), classes=("0", "1", "2", "9")).errors() == [
        "target.field: the training split has no '2', '9'; leave the class out, or change split"
    ]


def test_class_weights_for_another_number_of_classes(tmp_path: Path) -> None:
    assert Data(tmp_path, frame_of(), training={"class_weights": [1, 2, 3]}).errors() == [
        "training.class_weights: has 3 values, and there are 2 classes: 0, 1"
    ]
    assert Data(tmp_path, frame_of(), training={"class_weights": [1, 2]}).warnings() == []


def test_constant_features(tmp_path: Path) -> None:
    data = Data(tmp_path, frame_of(age=[42.5] * ROWS, shop=["a"] * ROWS))
    assert data.warnings() == [
        f"age is always 42.5 {CONSTANT}",
        f"shop always has the same value {CONSTANT}",
    ]
    later = Data(tmp_path, frame_of(age=[42.5] * 280 + [1.0] * 120, shop=["a"] * 280 + ["b"] * 120))
    assert len(later.warnings()) == 2  # what changes after the training split does not matter
    nothing = Data(tmp_path, frame_of(shop=pl.Series([None] * ROWS, dtype=pl.String)))
    assert nothing.warnings() == [
        "shop is always missing in the training split, so nothing can be learned from it; leave it out"
    ]
    holes = Data(tmp_path, frame_of(age=[42.5, None] * 200, shop=["a", None] * 200))
    assert holes.warnings() == []  # that a value is missing may be informative


def test_what_changes_outside_the_sample_is_not_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_checks, "MAX_SAMPLE_ROWS", 10)
    data = Data(tmp_path, frame_of(card=["c"] * ROWS, age=[0] * 13 + [1] + [0] * 386))
    assert data.warnings() == []


def test_keys_with_one_event(tmp_path: Path) -> None:
    every = Data(tmp_path, frame_of(card=[f"c{i}" for i in range(ROWS)]))
    assert every.warnings() == [
        "every key has only one event, so there is nothing to remember; is 'card' the right key?"
    ]
    most = Data(tmp_path, frame_of(card=[f"c{i}" if i < 300 else f"c{i % 4}" for i in range(ROWS)]))
    assert most.warnings() == ["296 of 300 keys have only one event; a state is of no use for them"]
    few = Data(tmp_path, frame_of(card=[f"c{i}" if i < 100 else f"d{i % 150}" for i in range(ROWS)]))
    assert few.warnings() == []
    forecast = Data(tmp_path, frame_of(card=[f"c{i}" for i in range(ROWS)]), task="forecast", target={"field": None})
    assert forecast.errors() == [
        (
            "data: no key has more than 1 event(s), so there is nothing to forecast"
            " (data.key is 'card': 400 keys, 400 events)"
        )
    ]
    far = Data(tmp_path, frame_of(), task="forecast", target={"field": None, "horizon": 50})
    assert ["no key has more than 50 event(s)" in error for error in far.errors()] == [True]


def test_times_in_another_unit(tmp_path: Path) -> None:
    for times in (list(range(ROWS)), [START_S / 60 + i for i in range(ROWS)]):
        (warning,) = Data(tmp_path, frame_of(time=times)).warnings()
        assert warning.startswith("all times of 'time' lie before 1971 (latest: 1970-")
        assert warning.endswith(
            "; numbers are read as seconds below 1e11, else as milliseconds: is the unit a different one?"
        )


def test_a_time_that_stands_for_none(tmp_path: Path) -> None:
    times = [START_S + i for i in range(ROWS - 1)] + [253_402_214_400_000]  # ms: 9999-12-31
    (warning,) = Data(tmp_path, frame_of(time=times)).warnings()
    assert warning.startswith("the latest time of 'time' is 9999-12-31T00:00:00Z, more than a year from now: is it a")


def test_labels_that_are_a_measurement(tmp_path: Path) -> None:
    labels = [str(i / 8) for i in range(ROWS)]
    (error,) = Data(tmp_path, frame_of(fraud=labels), classes=tuple(labels)).errors()
    assert error.endswith(
        "; 'fraud' has 400 different values, as a measurement has: forecast it (task: forecast), or write a class for"
        " each range of values"
    )


def test_values_that_differ_in_case_or_spaces(tmp_path: Path) -> None:
    labels, shops = ["ok", "fault", "Ok", "fault "] * (ROWS // 4), ["a b", "A  b", "c", "d"] * (ROWS // 4)
    data = Data(tmp_path, frame_of(fraud=labels, shop=shops), classes=("ok", "Ok", "fault", "fault "))
    said = [text for text in data.warnings() if "count as different ones" in text]
    assert [text.split(" has values")[0] for text in said] == ["target.field: fraud", "shop"]
    assert "'Ok', 'ok'; 'fault', 'fault '." in said[0]
    assert "'A  b', 'a b'." in said[1]


def test_unsorted_time(tmp_path: Path) -> None:
    times = [START_S + i for i in range(ROWS)]
    times[40], times[32] = times[32], times[40]  # both of key c0
    (warning,) = Data(tmp_path, frame_of(time=times)).warnings()
    assert warning == (
        "the rows are not in chronological order (first: key 'c0', row 40); they were sorted. In the stream they should"
        " arrive in order too: see input.late"
    )


WAVE = 500 * np.sin(np.arange(ROWS) / 8 / 20)  # of each of the eight cards: a slow wave
COARSE = "amount changes by less than float32 can tell apart: at values like "
COARSE_LOG = "amount changes by less than float32 can tell apart after log: true"


@pytest.mark.parametrize(
    ("amount", "log", "beginning"),
    [
        pytest.param(1.7e9 + WAVE, False, f"{COARSE}1.7e+09 its steps are 128.", id="large offset"),
        pytest.param(-1.7e9 - WAVE, False, f"{COARSE}1.7e+09 its steps are 128.", id="negative"),
        pytest.param(1.7e12 + 60_000.0 * np.arange(ROWS) / 8, False, f"{COARSE}1.7e+12", id="milliseconds"),
        pytest.param(3e7 + np.arange(ROWS) // 8, False, f"{COARSE}3e+07 its steps are 2.", id="counter"),
        pytest.param(
            1.7e9 + 1e5 * (np.arange(ROWS) % 8) + WAVE, False, f"{COARSE}1.7e+09", id="only the levels of cards differ"
        ),
        pytest.param(1 + 1e-7 * WAVE / 500, False, f"{COARSE}1 its steps are 1.19209e-07.", id="tiny changes"),
        pytest.param(1.7e9 + WAVE, True, f"{COARSE}1.7e+09", id="large offset with log"),
        pytest.param(1e6 + np.arange(ROWS) // 8 % 2 * 4, True, COARSE_LOG, id="lost by log"),
        pytest.param(1e6 + WAVE, False, "", id="offset that float32 resolves"),
        pytest.param(WAVE, False, "", id="around 0"),
        pytest.param(20_000.0 * (np.arange(ROWS) // 8 % 5), True, "", id="log of amounts"),
        pytest.param(np.where(np.arange(ROWS) % 3 == 0, np.nan, WAVE), False, "", id="missing values"),
        pytest.param(np.where(np.arange(ROWS) % 24 > 8, np.nan, 1.7e9 + WAVE), False, COARSE, id="coarse and missing"),
    ],
)
def test_numbers_that_float32_cannot_tell_apart(tmp_path: Path, amount: np.ndarray, log: bool, beginning: str) -> None:
    numbers = [{"name": "amount", "log": log}, "age"]
    found = Data(tmp_path, frame_of(amount=amount), features={"numbers": numbers}).warnings()
    assert len(found) == bool(beginning), found
    assert "".join(found).startswith(beginning)


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        (
            np.arange(ROWS),
            "amount lies outside the range of the training split (0 to 279) in 100% of the validation",
        ),
        (-np.arange(ROWS), "amount lies outside the range of the training split (-279 to 0) in 100% of the validation"),
        (
            np.where(np.arange(ROWS) < 310, WAVE, WAVE + 2000),
            "(0 to 500) in 50% of the validation",
        ),
        (np.where(np.arange(ROWS) < 311, WAVE, WAVE + 2000), ""),
        (np.where(np.arange(ROWS) % 20 == 0, np.arange(ROWS), np.nan), ""),  # three values
    ],
)
def test_numbers_that_leave_the_range_of_training(tmp_path: Path, amount: np.ndarray, message: str) -> None:
    found = Data(tmp_path, frame_of(amount=amount)).warnings()
    assert len(found) == bool(message), found
    assert message in "".join(found)


def test_the_timestamp_as_a_number(tmp_path: Path) -> None:
    times = [1_000_000 + 60 * i for i in range(ROWS)]
    features = {"numbers": ["amount", "age", "time"]}
    found = [text for text in Data(tmp_path, frame_of(time=times), features=features).warnings() if "outside" in text]
    assert len(found) == 1
    assert found[0].endswith("It is data.timestamp: leave it out, and use features.elapsed, hour_of_day or day_of_week")


def test_numbers_that_are_too_small_to_be_scaled(tmp_path: Path) -> None:
    (warning,) = Data(tmp_path, frame_of(amount=WAVE * 1e-40)).warnings()
    assert warning == (
        "amount has values so small (up to 5e-38) that float32 cannot scale them, so nothing can be learned from it;"
        " use other units, in these data and in the stream"
    )
    assert Data(tmp_path, frame_of(amount=WAVE * 1e-30)).warnings() == []


def test_a_forecast_of_coarse_numbers(tmp_path: Path) -> None:
    frame = frame_of(amount=1.7e9 + WAVE)
    target = {"field": None, "fields": ["amount"]}
    (warning,) = Data(tmp_path, frame, task="forecast", target=target).warnings()
    assert warning == (
        f"{COARSE}1.7e+09 its steps are 128. Use the difference from the previous event, or subtract a fixed offset,"
        " in these data and in the stream; as it is, its forecast is a multiple of 128"
    )
    (warning,) = Data(tmp_path, frame, task="forecast", target=target | {"fields": ["age"]}).warnings()
    assert "forecast" not in warning  # it is an input only


def test_a_number_that_float32_makes_constant(tmp_path: Path) -> None:
    (warning,) = Data(tmp_path, frame_of(amount=1.7e9 + 10 * WAVE / 500)).warnings()
    assert warning == (
        f"amount is always 1.7e+09 {CONSTANT} (float32 values are 128 apart there, and smaller changes are lost: if it"
        " does change, subtract a fixed offset before training and in the stream)"
    )


def test_labelled_anomalies_in_the_training_split(tmp_path: Path) -> None:
    label = [int(i % 100 == 0) for i in range(ROWS)]
    (warning,) = Data(tmp_path, frame_of(fraud=label), task="anomaly").warnings()
    assert warning == (
        "3 of 280 events of the training split are labelled as anomalies. The model learns from all events, so it may"
        " learn such faults as normal; train on a time without them (split.train_from, train_to), or leave these events"
        " out"
    )
    late = [int(i % 100 == 0 and i > 280) for i in range(ROWS)]
    assert Data(tmp_path, frame_of(fraud=late), task="anomaly").warnings() == []


def test_features_without_any_value(tmp_path: Path) -> None:
    holes = Data(tmp_path, frame_of(amount=[float("nan")] * ROWS, age=pl.Series([None] * ROWS, dtype=pl.Float64)))
    assert holes.errors() == [
        (
            "features.numbers: amount has no value in the training split (280 events); leave it out, or use data that"
            " have it"
        ),
        "features.numbers: age has no value in the training split (280 events); leave it out, or use data that have it",
    ]
    later = Data(tmp_path, frame_of(amount=[None] * 280 + [1.0] * 120))
    assert ["amount has no value" in error for error in later.errors()] == [True]
    one = Data(tmp_path, frame_of(amount=[1.0] + [None] * 399))
    assert one.warnings() == []


@pytest.mark.parametrize("rate", [0.5, 0.02])
def test_a_label_that_leaks(tmp_path: Path, rate: float) -> None:
    random = np.random.default_rng(3)
    label = (random.random(ROWS) < rate).astype(int)
    label[:4] = [0, 1, 0, 1]
    noise = random.random(ROWS)
    leak = (
        "alone predicts 'fraud' (area under the ROC curve 1.000); if it is not known at the time of the event, it is a"
        " leak: leave it out"
    )
    missing = (
        "whether amount is missing alone predicts 'fraud' (area under the ROC curve 1.000); if it is filled in when the"
        " label is known, it is a leak: leave it out"
    )
    for amount in (label, 1 - label, label * 3.0 + noise, noise - label * 3.0):
        data = Data(tmp_path, frame_of(fraud=label, amount=amount))
        assert data.warnings() == [f"amount {leak}"]
    holes = Data(tmp_path, frame_of(fraud=label, amount=np.where(label == 1, np.nan, 7.0)))
    assert holes.warnings() == [missing]
    copied = Data(tmp_path, frame_of(fraud=label, shop=np.where(label == 1, "chargeback", "ok")))
    assert copied.warnings() == [f"shop {leak}"]
    three = Data(tmp_path, frame_of(fraud=np.arange(ROWS) % 3, age=10 * (np.arange(ROWS) % 3)), classes=("0", "1", "2"))
    assert three.warnings() == [f"age {leak}"]


def test_a_good_feature_is_no_leak(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    label = (random.random(ROWS) < 0.3).astype(int)
    good = Data(tmp_path, frame_of(fraud=label, amount=2.5 * label + random.normal(size=ROWS)))
    assert good.warnings() == []
    almost = label.copy()
    almost[::25] = 1 - almost[::25]
    assert Data(tmp_path, frame_of(fraud=label, amount=almost, shop=almost.astype(str))).warnings() == []
    identity = Data(tmp_path, frame_of(shop=[f"s{i}" for i in range(ROWS)]))
    assert identity.warnings() == []  # an id that never comes again is no leak
    unlabelled = Data(tmp_path, frame_of(fraud=[1, 0] * 20 + [None] * 240 + [1, 0] * 60, amount=[1.0, 0.0] * 200))
    assert not any("alone" in text for text in unlabelled.warnings())  # 40 labels are too few to say so


def test_missing_labels(tmp_path: Path) -> None:
    holes = [None if i % 4 == 0 else i % 2 for i in range(ROWS)]
    warning = "70 of 280 events of the training split have no label; they update the state and are not in the loss"
    assert Data(tmp_path, frame_of(fraud=holes)).warnings() == [warning]
    (warning,) = Data(tmp_path, frame_of(fraud=holes), target={"per": "sequence"}).warnings()
    assert warning.startswith("2 of 8 keys have no label at their last event")


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_checks, "_free_bytes", lambda: 2 * 2**30)
    config = config_of(model={"hidden": 512, "layers": 2})
    data_checks.check_memory(config, keys=1000, width=20)
    with pytest.raises(CannotServe) as caught:
        data_checks.check_memory(config, keys=1_000_000, width=20)
    states_gib = 4 * 1_000_000 * (512 + 512) * 2 / 2**30
    batch_gib = 64 * 64 * (40 * 4 * 512 * 2 + 8 * 20) / 2**30
    assert str(caught.value) == (
        f"training: needs about {states_gib + batch_gib:.1f} GiB ({states_gib:.1f} GiB for the states of 1,000,000"
        f" keys, {batch_gib:.1f} GiB for a batch of 64 x 64 events), and 2.0 GiB are free; make training.batch,"
        " training.steps or model.hidden smaller"
    )
    data_checks.check_memory(
        config_of(model={"hidden": 512, "layers": 2, "window": 8}), keys=1_000_000, width=20
    )  # no states
    with pytest.raises(CannotServe, match=r"a batch of 6000 x 64 events"):
        data_checks.check_memory(config_of(model={"hidden": 512}, training={"batch": 6000}), keys=1, width=20)
    monkeypatch.setattr(data_checks, "_free_bytes", lambda: None)
    data_checks.check_memory(config, keys=1_000_000, width=20)


def test_free_memory() -> None:
    free = data_checks._free_bytes()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(("limit", "free"), [("1000000", 1_000_000 - 700_000 + 200_000), ("max", None)])
def test_the_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int | None
) -> None:
    monkeypatch.setattr(data_checks, "_CGROUP", tmp_path / "none")
    of_machine = data_checks._free_bytes()
    assert of_machine is not None
    monkeypatch.setattr(data_checks, "_CGROUP", tmp_path)
    for name, text in {
        "memory.max": limit,
        "memory.current": "700000",
        "memory.stat": "anon 500000\ninactive_file 200000",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    found = data_checks._free_bytes()
    assert found == free if free is not None else found is not None and abs(found - of_machine) < 2**30


def test_all_errors_at_once(tmp_path: Path) -> None:
    late = [i % 2 if i < 200 else None for i in range(ROWS)]
    errors = Data(tmp_path, frame_of(fraud=late, amount=pl.Series([None] * ROWS, dtype=pl.Float64))).errors()
    assert [error.split(":")[0] for error in errors] == ["features.numbers", "split"]


def test_a_class_that_looks_like_a_missing_label(tmp_path: Path) -> None:
    labels = ["0", "1", "None", "0"] * (ROWS // 4)
    data = Data(tmp_path, frame_of(fraud=labels), classes=("0", "1", "None"))
    expected = "target.field: 'None' is a class of 'fraud', one of 3; if it stands for a missing label"
    assert [text for text in data.warnings() if text.startswith(expected)]
    good = Data(tmp_path, frame_of(fraud=["ok", "fault"] * (ROWS // 2)), classes=("ok", "fault"))
    assert not [text for text in good.warnings() if "target.field" in text]


def test_a_category_of_free_text(tmp_path: Path) -> None:
    def warned(shops: list[str]) -> list[str]:
        data = Data(tmp_path, frame_of(shop=shops))
        rows = data.split.rows(TRAIN)
        encoder = fit_encoder(data.events, rows, data.config.features)
        return list(data_checks.rare_values(data.events, rows, encoder, data.config))

    (said,) = warned([f"text {i}" for i in range(ROWS)])
    assert "values in the training split are too rare to learn from (fewer than 2 events each)" in said
    assert warned(["a", "b"] * (ROWS // 2)) == []
