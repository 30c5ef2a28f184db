"""What the data cannot teach is refused, and what in them would mislead is told, each with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lstmstream.errors import CannotServe
from lstmstream.train.history import inspection
from lstmstream.train.history.data import Events, load, order_classes
from lstmstream.train.history.inspection import check_memory, refuse, warn
from lstmstream.train.history.read import Fields
from lstmstream.train.history.split import TRAIN, VALIDATION, Parts, divide
from lstmstream.train.schema import TrainConfig, judge_training

ROWS = 400


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
    return judge_training(tree, Path())


def frame_of(**columns: Any) -> pl.DataFrame:
    random = np.random.default_rng(0)
    table = {
        "card": [f"c{i % 8}" for i in range(ROWS)],
        "time": list(range(ROWS)),
        "amount": random.normal(size=ROWS),
        "age": random.integers(20, 60, ROWS),
        "shop": random.choice(["a", "b", "c"], ROWS),
        "fraud": (random.random(ROWS) < 0.3).astype(int),
    }
    return pl.DataFrame(table | columns)


class World:
    """Data on disk, read and divided as training does it."""

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
        self.events: Events = order_classes(load([file], fields), classes)
        self.parts: Parts = divide(self.events, config.split, 0)
        self.counted = {"train": self._counted(TRAIN), "validation": self._counted(VALIDATION)}

    def _counted(self, part: int) -> np.ndarray:
        here = self.parts.of == part
        if self.config.task == "classify":
            return here & (self.events.label >= 0)
        key = self.events.sequence()
        return here & np.append(here[1:] & (key[1:] == key[:-1]), False)

    def refused(self) -> str:
        with pytest.raises(CannotServe) as caught:
            refuse(self.events, self.parts, self.config, self.counted)
        return str(caught.value)

    def warned(self) -> list[str]:
        refuse(self.events, self.parts, self.config, self.counted)
        return warn(self.events, self.parts, self.config, self.counted)


def test_sound_data_need_no_word(tmp_path: Path) -> None:
    assert World(tmp_path, frame_of()).warned() == []
    forecast = World(tmp_path, frame_of(), task="forecast", target={"field": None})
    assert forecast.warned() == []


# --- the sentences, one by one -----


def test_a_missing_column(tmp_path: Path) -> None:
    with pytest.raises(CannotServe) as caught:
        World(tmp_path, frame_of().rename({"amount": "Amount"}))
    assert str(caught.value) == (
        f"{tmp_path / 'x.parquet'}: there is no field 'amount'; it has 'card', 'time', 'Amount', 'age', 'shop',"
        " 'fraud'; name one of these, or bring data that have it"
    )


def test_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(CannotServe) as caught:
        World(tmp_path, frame_of(), split={"train_to": "1969-12-31"})
    assert str(caught.value) == (
        "split: the train part is empty (by time: train before 1969-12-31T00:00:00Z, validation from"
        " 1970-01-01T00:04:40Z, test from 1970-01-01T00:05:40Z; of 400 events 0 train, 60 validate, 60 test);"
        " change the shares or dates under split, or bring more data"
    )


def test_a_part_without_labels(tmp_path: Path) -> None:
    late = [i % 2 if i < 200 else None for i in range(ROWS)]
    assert World(tmp_path, frame_of(fraud=late)).refused() == (
        "split: the validation part has no event with a label in 'fraud'; change the shares or dates under split"
    )


def test_a_part_without_anything_to_forecast(tmp_path: Path) -> None:
    once = [f"c{i % 8}" if i < 280 else f"new-{i}" for i in range(ROWS)]
    assert World(tmp_path, frame_of(card=once), task="forecast", target={"field": None}).refused() == (
        "split: the validation part has no event that is followed by another of its key in the same part;"
        " change the shares or dates under split"
    )


def test_one_class_only(tmp_path: Path) -> None:
    assert World(tmp_path, frame_of(fraud=[0] * ROWS), classes=("0",)).refused() == (
        "target.field: 'fraud' has one value only, '0'; two are needed to tell them apart"
    )
    late = [int(i > 300) for i in range(ROWS)]
    assert World(tmp_path, frame_of(fraud=late)).refused() == (
        "target.field: in the training part 'fraud' is always '0'; two classes are needed there:"
        " change the dates under split, or bring more data"
    )


def test_a_class_that_the_training_part_has_not(tmp_path: Path) -> None:
    grades = [i % 2 if i < 300 else 2 for i in range(ROWS)]
    assert World(tmp_path, frame_of(fraud=grades), classes=("0", "1", "2", "9")).refused() == (
        "target.field: the training part has no '2', '9'; leave the class out, or split anew"
    )


def test_weights_of_other_classes(tmp_path: Path) -> None:
    assert World(tmp_path, frame_of(), training={"class_weights": [1, 2, 3]}).refused() == (
        "training.class_weights: has 3 values, and there are 2 classes: 0, 1"
    )
    assert World(tmp_path, frame_of(), training={"class_weights": [1, 2]}).warned() == []


def test_constant_features(tmp_path: Path) -> None:
    world = World(tmp_path, frame_of(age=[42.5] * ROWS, shop=["a"] * ROWS))
    assert world.warned() == [
        "age is always 42.5 in the training part; it can teach nothing, leave it out",
        "shop always has the same value in the training part; it can teach nothing, leave it out",
    ]
    later = World(tmp_path, frame_of(age=[42.5] * 280 + [1.0] * 120, shop=["a"] * 280 + ["b"] * 120))
    assert len(later.warned()) == 2  # what changes after the training part does not count
    nothing = World(tmp_path, frame_of(shop=pl.Series([None] * ROWS, dtype=pl.String)))
    assert nothing.warned() == ["shop is always missing in the training part; it can teach nothing, leave it out"]
    holes = World(tmp_path, frame_of(age=[42.5, None] * 200, shop=["a", None] * 200))
    assert holes.warned() == []  # that it is missing may tell something


def test_what_changes_outside_the_sample_is_not_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_SAMPLE_ROWS", 10)
    world = World(tmp_path, frame_of(card=["c"] * ROWS, age=[0] * 13 + [1] + [0] * 386))
    assert world.warned() == []


def test_keys_with_one_event(tmp_path: Path) -> None:
    every = World(tmp_path, frame_of(card=[f"c{i}" for i in range(ROWS)]))
    assert every.warned() == ["every key has one event only, so there is nothing to remember; is 'card' the right key?"]
    most = World(tmp_path, frame_of(card=[f"c{i}" if i < 300 else f"c{i % 4}" for i in range(ROWS)]))
    assert most.warned() == ["296 of 300 keys have one event only; the state helps them nothing"]
    few = World(tmp_path, frame_of(card=[f"c{i}" if i < 100 else f"d{i % 150}" for i in range(ROWS)]))
    assert few.warned() == []
    forecast = World(tmp_path, frame_of(card=[f"c{i}" for i in range(ROWS)]), task="forecast", target={"field": None})
    assert forecast.refused() == (
        "data: no key has more than 1 event(s), so nothing comes after one to forecast"
        " (data.key is 'card': 400 keys, 400 events)"
    )
    far = World(tmp_path, frame_of(), task="forecast", target={"field": None, "horizon": 50})
    assert "no key has more than 50 event(s)" in far.refused()


def test_unsorted_time(tmp_path: Path) -> None:
    times = list(range(ROWS))
    times[40], times[32] = times[32], times[40]  # both of key c0
    (told,) = World(tmp_path, frame_of(time=times)).warned()
    assert told == (
        "the rows are not in order of time (first: key 'c0', row 40); they were sorted. In the stream they should"
        " come in order too: see input.late"
    )


def test_nan_everywhere(tmp_path: Path) -> None:
    holes = World(tmp_path, frame_of(amount=[float("nan")] * ROWS, age=pl.Series([None] * ROWS, dtype=pl.Float64)))
    assert holes.refused() == (
        "features.numbers: amount has no value in the training part (280 events); leave it out, or bring data that"
        " have it\nfeatures.numbers: age has no value in the training part (280 events); leave it out, or bring data"
        " that have it"
    )
    later = World(tmp_path, frame_of(amount=[None] * 280 + [1.0] * 120))
    assert "amount has no value" in later.refused()
    one = World(tmp_path, frame_of(amount=[1.0] + [None] * 399))
    assert one.warned() == []


@pytest.mark.parametrize("rate", [0.5, 0.02])
def test_a_label_that_leaks(tmp_path: Path, rate: float) -> None:
    random = np.random.default_rng(3)
    label = (random.random(ROWS) < rate).astype(int)
    label[:4] = [0, 1, 0, 1]
    noise = random.random(ROWS)
    told = "gives 'fraud' away by itself; if it is not known when the event happens, it leaks: leave it out"
    for amount in (label, 1 - label, label * 3.0 + noise, noise - label * 3.0, np.where(label == 1, np.nan, 7.0)):
        world = World(tmp_path, frame_of(fraud=label, amount=amount))
        assert world.warned() == [f"amount {told}"]
    copied = World(tmp_path, frame_of(fraud=label, shop=np.where(label == 1, "chargeback", "ok")))
    assert copied.warned() == [f"shop {told}"]
    three = World(
        tmp_path, frame_of(fraud=np.arange(ROWS) % 3, age=10 * (np.arange(ROWS) % 3)), classes=("0", "1", "2")
    )
    assert three.warned() == [f"age {told}"]


def test_a_good_feature_is_no_leak(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    label = (random.random(ROWS) < 0.3).astype(int)
    good = World(tmp_path, frame_of(fraud=label, amount=2.5 * label + random.normal(size=ROWS)))
    assert good.warned() == []
    almost = label.copy()
    almost[:5] = 1 - almost[:5]
    assert World(tmp_path, frame_of(fraud=label, amount=almost, shop=almost.astype(str))).warned() == []
    identity = World(tmp_path, frame_of(shop=[f"s{i}" for i in range(ROWS)]))
    assert identity.warned() == []  # an id that never comes again tells nothing
    unlabelled = World(tmp_path, frame_of(fraud=[1, 0] * 20 + [None] * 240 + [1, 0] * 60, amount=[1.0, 0.0] * 200))
    assert not any("away" in text for text in unlabelled.warned())  # 40 labels are too few to say so


def test_labels_that_are_missing(tmp_path: Path) -> None:
    holes = [None if i % 4 == 0 else i % 2 for i in range(ROWS)]
    told = "70 of 280 events of the training part have no label; they only move the state on"
    assert World(tmp_path, frame_of(fraud=holes)).warned() == [told]
    assert World(tmp_path, frame_of(fraud=holes), target={"per": "sequence"}).warned() == []


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_free_bytes", lambda: 2 * 2**30)
    config = config_of(model={"hidden": 512, "layers": 2})
    check_memory(config, keys=1000, width=20)
    with pytest.raises(CannotServe) as caught:
        check_memory(config, keys=1_000_000, width=20)
    states_gib = 4 * 1_000_000 * (512 + 512) * 2 / 2**30
    piece_gib = 64 * 64 * (40 * 4 * 512 * 2 + 8 * 20) / 2**30
    assert str(caught.value) == (
        f"training: needs about {states_gib + piece_gib:.1f} GiB ({states_gib:.1f} GiB for the states of 1,000,000"
        f" keys, {piece_gib:.1f} GiB for a piece of 64 x 64 events), and 2.0 GiB are free; make training.batch,"
        " training.steps or model.hidden smaller"
    )
    check_memory(config_of(model={"hidden": 512, "layers": 2, "window": 8}), keys=1_000_000, width=20)  # no states
    with pytest.raises(CannotServe, match=r"a piece of 6000 x 64 events"):
        check_memory(config_of(model={"hidden": 512}, training={"batch": 6000}), keys=1, width=20)
    monkeypatch.setattr(inspection, "_free_bytes", lambda: None)
    check_memory(config, keys=1_000_000, width=20)


def test_memory_that_is_free() -> None:
    free = inspection._free_bytes()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(("limit", "free"), [("1000000", 1_000_000 - 700_000 + 200_000), ("max", None)])
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, free: int | None
) -> None:
    monkeypatch.setattr(inspection, "_CGROUP", tmp_path / "none")
    of_machine = inspection._free_bytes()
    assert of_machine is not None
    monkeypatch.setattr(inspection, "_CGROUP", tmp_path)
    for name, text in {
        "memory.max": limit,
        "memory.current": "700000",
        "memory.stat": "anon 500000\ninactive_file 200000",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    found = inspection._free_bytes()
    assert found == free if free is not None else found is not None and abs(found - of_machine) < 2**30


def test_everything_at_once(tmp_path: Path) -> None:
    late = [i % 2 if i < 200 else None for i in range(ROWS)]
    text = World(tmp_path, frame_of(fraud=late, amount=pl.Series([None] * ROWS, dtype=pl.Float64))).refused()
    assert [line.split(":")[0] for line in text.splitlines()] == ["features.numbers", "split"]
