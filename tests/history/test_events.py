"""Rows to sequences: the engine's elapsed, one order whatever the input's, in memory and through files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lstmstream.errors import CannotServe
from lstmstream.history import events as data
from lstmstream.history.events import (
    Events,
    encode_categories,
    load_events,
    load_events_for_card,
    order_classes,
    sort_events,
)
from lstmstream.history.fields import Chunk, Fields
from lstmstream.model.card import Card, Feature, StateSpec

FIELDS = Fields("k", "t", ("n",), ("c",), label="y", split="p")


def chunk(rows: list[tuple[Any, ...]], first: int = 0) -> Chunk:
    """(key, ms, number, category, label, split) of each row."""
    columns = list(zip(*rows, strict=True)) or [()] * 6
    return Chunk(
        first,
        list(columns[0]),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.float32).reshape(-1, 1),
        [list(columns[3])],
        list(columns[4]),
        list(columns[5]),
    )


def in_chunks(rows: list[tuple[Any, ...]], size: int) -> list[Chunk]:
    return [chunk(rows[at : at + size], at) for at in range(0, len(rows), size)]


def some_rows(count: int, *, keys: int = 5, seed: int = 0) -> list[tuple[Any, ...]]:
    random = np.random.default_rng(seed)
    return [
        (
            f"k{random.integers(keys)}",
            int(random.integers(-20, 20)) * 500,
            float(random.normal()) if random.random() < 0.8 else float("nan"),
            random.choice(["a", "b", "ccc", None]),
            random.choice(["0", "1", None]),
            random.choice(["train", "test", None]),
        )
        for _ in range(count)
    ]


def by_hand(rows: list[tuple[Any, ...]]) -> dict[str, list[tuple[Any, ...]]]:
    """Each key's (ms, elapsed, number, category, label, split), as the engine's meaning has it for sorted events."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    steps: dict[str, int] = {}
    last: dict[str, int] = {}
    for key, ms, *rest in sorted(rows, key=lambda row: row[1]):  # stable: rows of one time stay in order
        elapsed = np.float32("nan") if key not in steps else np.float32(max(0, ms - last[key]) / 1000)
        steps[key], last[key] = steps.get(key, 0) + 1, max(ms, last.get(key, ms))
        found.setdefault(key, []).append((ms, elapsed, *rest))
    return found


def of_key(events: Events) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    for place, key in enumerate(events.keys):
        rows = range(*events.starts[place : place + 2].tolist())
        found[key] = [
            (
                int(events.timestamp[row]),
                events.elapsed[row],
                float(events.x[row, 0]),
                [None, *events.texts[0]][events.codes[row, 0]],
                None if events.label[row] < 0 else events.classes[events.label[row]],
                [None, *events.split_names][events.split[row]],
            )
            for row in rows
        ]
    return found


def same(one: Any, other: Any) -> bool:
    """Equal by bits: `repr` tells NaN, and 0.0 from -0.0."""
    return repr(one) == repr(other)


def arrays(events: Events) -> list[np.ndarray]:
    return [events.starts, events.timestamp, events.elapsed, events.x, events.codes, events.label, events.split]


def as_numbers(found: dict[str, list[tuple[Any, ...]]]) -> dict[str, list[tuple[Any, ...]]]:
    return {key: [(ms, e, float(np.float32(n)), *rest) for ms, e, n, *rest in rows] for key, rows in found.items()}


# --- order and elapsed -----


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 20), st.integers(0, 10**6))
def test_each_keys_events_are_those_of_the_engine_in_order_of_time(count: int, keys: int, size: int, seed: int) -> None:
    rows = some_rows(count, keys=keys, seed=seed)
    events = sort_events(in_chunks(rows, size), FIELDS)
    assert same(of_key(events), {key: as_numbers(by_hand(rows))[key] for key in events.keys})
    assert sorted(events.keys) == sorted({row[0] for row in rows})
    assert len(events) == count
    assert events.starts.dtype == events.timestamp.dtype == events.codes.dtype == events.label.dtype == np.int64
    assert events.elapsed.dtype == events.x.dtype == np.float32
    assert events.lengths.tolist() == [len(by_hand(rows)[key]) for key in events.keys]
    assert events.key_indices().tolist() == [place for place, n in enumerate(events.lengths) for _ in range(n)]


def test_elapsed_is_rounded_once_from_float64() -> None:
    times = [0, 16_777_217_000, 16_777_217_001, 16_777_217_001]
    events = sort_events([chunk([("a", ms, 0.0, None, None, None) for ms in times])], FIELDS)
    assert same(events.elapsed.tolist(), [float("nan"), float(np.float32(16_777_217.0)), float(np.float32(0.001)), 0.0])


def test_the_first_row_that_is_out_of_order_is_named() -> None:
    rows = [("a", 5, 0.0, None, None, None), ("b", 1, 0.0, None, None, None), ("a", 5, 0.0, None, None, None)]
    assert sort_events(in_chunks(rows, 2), FIELDS).first_unsorted == ""  # other keys, and equal times, are no fault
    late = [*rows, ("b", 2, 0.0, None, None, None), ("a", 4, 0.0, None, None, None), ("b", 0, 0.0, None, None, None)]
    for size in (1, 2, 6):
        assert sort_events(in_chunks(late, size), FIELDS).first_unsorted == "key 'a', row 4"


def test_no_row_one_row_one_key() -> None:
    for nothing in ([], [chunk([])]):
        events = sort_events(nothing, FIELDS)
        assert (len(events), events.keys, events.starts.tolist(), events.lengths.tolist()) == (0, [], [0], [])
        assert events.x.shape == (0, 1)
    one = sort_events([chunk([("a", 7, 1.5, "x", "1", "train")])], FIELDS)
    assert (one.keys, one.starts.tolist(), one.timestamp.tolist()) == (["a"], [0, 1], [7])
    assert np.isnan(one.elapsed).all()
    several = sort_events([chunk([("a", ms, 1.0, None, None, None) for ms in (3, 1, 2)])], FIELDS)
    assert (several.keys, several.starts.tolist(), several.timestamp.tolist()) == (["a"], [0, 3], [1, 2, 3])


def test_what_is_not_asked_for_is_empty() -> None:
    plain = Chunk(0, ["a", "a"], np.array([0, 1000]), np.empty((2, 0), np.float32), [], None, None)
    events = sort_events([plain], Fields(None, None, (), ()))
    assert [len(column) for column in (events.label, events.split)] == [0, 0]
    assert events.x.shape == events.codes.shape == (2, 0)
    assert events.elapsed[1] == 1


# --- through files -----


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 150), st.integers(1, 40), st.integers(0, 20_000), st.integers(0, 10**6))
def test_through_files_come_the_same_bits_in_the_same_order(
    count: int, keys: int, size: int, ram_bytes: int, seed: int
) -> None:
    rows = some_rows(count, keys=keys, seed=seed)
    held = sort_events(in_chunks(rows, size), FIELDS)
    spooled = sort_events(in_chunks(rows, size), FIELDS, ram_bytes=ram_bytes)
    for one, other in zip(arrays(held), arrays(spooled), strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()
    for name in ("keys", "texts", "classes", "split_names", "first_unsorted", "sha256"):
        assert getattr(held, name) == getattr(spooled, name)
    assert held.scratch is None
    if spooled.scratch is not None:
        spooled.scratch.cleanup()


def test_spooled_events_lie_on_disk_and_can_be_coded_there() -> None:
    rows = some_rows(500, keys=100)
    held, spooled = sort_events(in_chunks(rows, 50), FIELDS), sort_events(in_chunks(rows, 50), FIELDS, ram_bytes=1000)
    assert spooled.scratch is not None
    folder = Path(spooled.scratch.name)
    assert [file.name for file in folder.iterdir()] == ["rows"]
    assert isinstance(spooled.x.base, np.memmap) or isinstance(spooled.x, np.memmap)
    features = [Feature("c", "category", vocabulary=("b", "a"))]
    coded = [order_classes(encode_categories(events, features), ["1", "0"]) for events in (held, spooled)]
    for one, other in zip(*map(arrays, coded), strict=True):
        assert one.tobytes() == other.tobytes()
    assert {0, 1, 2} == set(coded[1].codes[:, 0].tolist())
    spooled.scratch.cleanup()
    assert not folder.exists()


def test_a_fault_leaves_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.tempfile, "tempdir", str(tmp_path))

    def broken() -> Any:
        yield from in_chunks(some_rows(100), 10)
        assert list(tmp_path.iterdir())
        raise CannotServe("row 100")

    with pytest.raises(CannotServe, match="row 100"):
        sort_events(broken(), FIELDS, ram_bytes=100)
    assert list(tmp_path.iterdir()) == []


# --- the digest -----


@pytest.mark.parametrize("column", range(6))
def test_the_digest_tells_any_change_but_that_of_the_split(column: int) -> None:
    rows = some_rows(20)
    was = sort_events([chunk(rows)], FIELDS).sha256
    changed = list(rows[7])
    changed[column] = {0: "new", 1: 12345, 2: 0.123, 3: "new", 4: "new", 5: "new"}[column]
    assert (sort_events([chunk([*rows[:7], tuple(changed), *rows[8:]])], FIELDS).sha256 == was) == (column == 5)
    assert sort_events([chunk([*rows[1:], rows[0]])], FIELDS).sha256 != was  # the order counts
    renamed = [tuple("q" if value == "a" else value for value in row) for row in rows]
    assert sort_events([chunk(renamed)], FIELDS).sha256 != was  # the same codes of other texts


def test_no_matter_which_nan() -> None:
    other = np.array([0xFFC00001], np.uint32).view(np.float32)
    chunks = [Chunk(0, ["a"], np.array([0]), x.reshape(1, 1), [[None]], [None], [None])
             for x in (np.array([np.nan], np.float32), other)]  # fmt: skip
    one, two = (sort_events([p], FIELDS) for p in chunks)
    assert one.sha256 == two.sha256
    assert one.x.tobytes() == two.x.tobytes()


# --- codes and classes -----


def test_codes_are_those_of_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SLICE_ROWS", 3)
    texts = ["b", None, "a", "é", "b", "never seen", ""]
    rows = Chunk(0, ["k"] * 7, np.arange(7), np.empty((7, 0), np.float32), [texts, list(texts)], None, None)
    events = sort_events([rows], Fields("k", "t", (), ("c", "d")))
    coded = encode_categories(
        events, [Feature("c", "category", vocabulary=("a", "b", "")), Feature("d", "category", buckets=1000)]
    )
    assert coded.codes[:, 0].tolist() == [2, 0, 1, 0, 2, 0, 3]
    assert coded.codes[:, 1].tolist() == [0 if t is None else 1 + crc32(t.encode()) % 1000 for t in texts]
    assert coded.texts == []


def test_classes_by_their_order_and_others_are_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SLICE_ROWS", 2)
    rows = [("a", i, 0.0, None, label, None) for i, label in enumerate(["1", "0", None, "maybe", "1"])]
    events = sort_events([chunk(rows)], FIELDS)
    assert events.classes == ("1", "0", "maybe")
    ordered = order_classes(events, ["0", "1"])
    assert (ordered.classes, ordered.label.tolist()) == (("0", "1"), [1, 0, -1, -1, 1])
    nothing = sort_events([chunk([("a", 0, 0.0, None, None, None)])], FIELDS)
    assert order_classes(nothing, ["0", "1"]).label.tolist() == [-1]
    unlabelled = sort_events([chunk(rows)], Fields("k", "t", ("n",), ("c",)))
    assert len(order_classes(unlabelled, ["0", "1"]).label) == 0


def test_load_events_for_a_card(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"k": 2, "t": 7, "b": 1.5, "a": 2, "c": "y", "l": "1"}\n{"k": 2, "t": 6, "b": null, "c": "q"}\n')
    features = (Feature("b", "number"), Feature("c", "category", vocabulary=("x", "y")), Feature("a", "number"))
    card = Card("m", "1", "classify", features, StateSpec(1, (0.0,), ()), ())
    events = load_events_for_card([file], card, key="k", timestamp="t", target="l")
    assert events.keys == ["2"]
    assert events.timestamp.tolist() == [6000, 7000]
    np.testing.assert_array_equal(events.x, np.array([[np.nan, np.nan], [1.5, 2]], np.float32))  # the card's order
    assert events.codes.tolist() == [[0], [2]]
    assert (events.classes, events.label.tolist()) == (("1",), [-1, 0])
    assert events.first_unsorted == "key '2', row 1"
    assert len(load_events_for_card([file], card, key=None, timestamp=None, target=None).label) == 0


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6))
def test_loading_takes_ram_bytes_from_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int) -> None:
    rows = some_rows(50, seed=seed)
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"k": row[0], "t": row[1], "n": 1, "c": "a"}) + "\n" for row in rows))
    fields = Fields("k", "t", ("n",), ("c",))
    held = load_events([file], fields)
    monkeypatch.setattr(data, "RAM_BYTES", 100)
    spooled = load_events([file], fields)
    assert spooled.scratch is not None
    assert held.elapsed.tobytes() == spooled.elapsed.tobytes()
    assert held.sha256 == spooled.sha256
    spooled.scratch.cleanup()
    monkeypatch.undo()
