"""Data that look well and mislead: each is said, with what to do. From files, as `lstmstream train` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lstmstream.history.events import load_events, repeated_events
from lstmstream.history.fields import Fields
from lstmstream.train.dataset import prepare_dataset
from lstmstream.train.schema import validate_training

pytestmark = pytest.mark.torch

KEYS, EVENTS = 40, 25
ROWS = KEYS * EVENTS


def frame(**columns: Any) -> pl.DataFrame:
    """All keys' events in turn, a minute apart."""
    random = np.random.default_rng(0)
    table = {
        "machine": [f"m{i % KEYS}" for i in range(ROWS)],
        "time": [1_600_000_000 + 60 * i for i in range(ROWS)],
        "load": random.normal(size=ROWS),
        "fault": random.integers(0, 2, ROWS),
    }
    return pl.DataFrame(table | columns)


def warnings(folder: Path, *frames: pl.DataFrame, **sections: Any) -> tuple[str, ...]:
    """What training on the files says before it begins."""
    names = [f"part-{i}.csv" for i in range(len(frames))]
    for name, one in zip(names, frames, strict=True):
        one.write_csv(folder / name)
    tree = {
        "name": "m",
        "task": "classify",
        "data": {"path": names, "key": "machine", "timestamp": "time"},
        "features": {"numbers": ["load"]},
        "target": {"field": "fault"},
    }
    merged = {**tree, **{name: {**tree.get(name, {}), **values} for name, values in sections.items()}}  # type: ignore[dict-item]
    return prepare_dataset(validate_training(merged, folder)).warnings


def test_good_data_cause_no_warning(tmp_path: Path) -> None:
    assert warnings(tmp_path, frame()) == ()
    assert warnings(tmp_path, frame(), target={"per": "sequence"}, split={"by": "key"}) == ()


def test_keys_without_a_label_at_their_last_event(tmp_path: Path) -> None:
    """Of 40 keys, 10 have no label at all, and 5 have one, though not at the last event."""
    fault: list[int | None] = list(np.random.default_rng(1).integers(0, 2, ROWS))
    for row in range(ROWS):
        key, number = row % KEYS, row // KEYS
        if key < 10 or (key < 15 and number == EVENTS - 1):
            fault[row] = None
    (warning,) = warnings(tmp_path, frame(fault=fault), target={"per": "sequence"}, split={"by": "key"})
    assert warning == (
        "15 of 40 keys have no label at their last event, where target.per: sequence takes it (5 of them have one at an"
        " earlier event); nothing is learned from these keys, and they are not evaluated. Write the label of a key to"
        " its last event"
    )


def test_splits_that_interleave_inside_keys(tmp_path: Path) -> None:
    given = {"by": "given", "field": "part"}
    at_random = np.random.default_rng(2).choice(["train", "validation", "test"], ROWS)
    (warning,) = warnings(tmp_path, frame(part=at_random), split=given)
    assert warning.startswith("split.field: in 40 of 40 keys, events of the training split come after events of the")
    assert warning.endswith("Give whole keys to a split, or divide the events of a key by time")
    by_time = ["train"] * 700 + [""] * 50 + ["validation"] * 100 + [""] * 50 + ["test"] * 100
    assert warnings(tmp_path, frame(part=by_time), split=given) == ()
    by_key = [["train", "train", "test", "validation"][i % 4] for i in range(ROWS)]
    assert warnings(tmp_path, frame(part=by_key), split=given) == ()
    by_key[8 * KEYS] = "test"  # an event of m0, whose others are in the training split
    (warning,) = warnings(tmp_path, frame(part=by_key), split=given)
    assert warning.startswith("split.field: in 1 of 40 keys")


def test_exports_that_overlap(tmp_path: Path) -> None:
    """The second file begins 100 events before the end of the first."""
    whole = frame()
    warning, out_of_order = warnings(tmp_path, whole[:600], whole[500:])
    assert "not in chronological order" in out_of_order
    assert warning == (
        "100 of 1,100 events repeat an earlier one, with the same key, time and values; if exports overlap, remove the"
        " repetitions: they count twice, in training and in every metric"
    )


def test_repetitions_are_those_of_a_dictionary(tmp_path: Path) -> None:
    """Few keys, times, numbers (missing ones too) and categories: many events that differ in one of them only."""
    random = np.random.default_rng(3)
    count = 3000
    rows = [
        (f"k{random.integers(3)}", int(1_600_000_000 + random.integers(20)), random.choice([None, 0.0, 1.5, -2.0]),
         random.choice(["a", "b", None]), int(random.integers(2)))
        for _ in range(count)
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=["k", "t", "n", "c", "y"], orient="row")
    table.write_parquet(tmp_path / "x.parquet")
    fields = Fields("k", "t", ("n",), ("c",), label="y")
    found = load_events([tmp_path / "x.parquet"], fields)
    seen: set[tuple[Any, ...]] = set()
    repeated = 0
    for *values, _label in rows:  # a label may arrive late, in the second of two exports
        repeated += tuple(values) in seen
        seen.add(tuple(values))
    assert repeated_events(found) == repeated > 0
    untimed = load_events([tmp_path / "x.parquet"], Fields("k", None, ("n",), ("c",), label="y"))
    assert repeated_events(untimed) == 0
    assert untimed.notes == ()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("ok", "broken"), True),
        (("no", "yes"), False),  # known words
        (("0", "2"), False),  # numbers ascend
    ],
)
def test_which_class_is_the_normal_one_in_balanced_data(tmp_path: Path, names: tuple[str, str], said: bool) -> None:
    fault = [names[i // KEYS % 25 < 11] for i in range(ROWS)]  # 560 of the first, 440 of the second
    found = warnings(tmp_path, frame(fault=fault))
    warning = (
        "target.classes is not set, so 'ok' counts as the normal class, as the most frequent (56% of the labels), and"
        " alerts are for 'broken'; list the classes there, the normal one first"
    )
    assert found == ((warning,) if said else ())
    assert warnings(tmp_path, frame(fault=fault), target={"classes": list(names)}) == ()
    rare = [names[i // KEYS % 25 < 8] for i in range(ROWS)]  # 32 %: a clear majority
    assert warnings(tmp_path, frame(fault=rare)) == ()
