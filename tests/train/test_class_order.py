"""Which class comes first when nobody says so: the same from CSV, JSONL and Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lstmstream.history.events import load_events
from lstmstream.history.fields import Fields
from lstmstream.history.read import read_chunks
from lstmstream.train.dataset import default_class_order

pytestmark = pytest.mark.torch

FIELDS = Fields(None, None, (), (), label="y")


def order(folder: Path, kind: str, values: list[Any]) -> list[str]:
    """The classes of a file with these labels."""
    file = folder / f"x.{kind}"
    if kind == "csv":
        file.write_text("y,z\n" + "".join(f"{value},0\n" for value in values))
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"y": value}) + "\n" for value in values))
    else:
        pl.DataFrame({"y": values}).write_parquet(file)
    return list(default_class_order(load_events([file], FIELDS)))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_numbers_ascend_whatever_the_file(tmp_path: Path, kind: str) -> None:
    assert order(tmp_path, kind, [1.0, 1.0, 0.0]) == ["0", "1"]
    assert order(tmp_path, kind, [1, 1, 0]) == ["0", "1"]
    assert order(tmp_path, kind, [1.0, -1.0, 1.0]) == ["-1", "1"]
    assert order(tmp_path, kind, [10.0, 10.0, 9.0, -0.0]) == ["0", "9", "10"]


def test_numbers_of_csv_ascend_as_numbers(tmp_path: Path) -> None:
    assert order(tmp_path, "csv", ["+1", "-1", "+1"]) == ["-1", "+1"]
    assert order(tmp_path, "csv", ["10.5", "10.5", "9.5"]) == ["9.5", "10.5"]
    assert order(tmp_path, "csv", ["1e1", "1e1", "9"]) == ["9", "1e1"]
    assert order(tmp_path, "csv", ["nan", "1", "1"]) == ["1", "nan"]  # no number to sort by: the most frequent first


def test_whole_numbers_of_csv_are_one_class_however_they_are_written(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    texts = [
        "1.0",
        "1",
        " 1",
        "1.000000000000000000e+00",
        "+1",
        "-0.0",
        "007",
        "1.5",
        "1_0",
        "1e300",
        "inf",
        "a",
        "",
        '""',
    ]
    file.write_text("y,z\n" + "".join(f"{text},0\n" for text in texts))
    (part,) = read_chunks([file], FIELDS)
    assert part.label == ["1", "1", " 1", "1", "+1", "0", "007", "1.5", "1_0", "1e300", "inf", "a", None, ""]


@pytest.mark.parametrize("pair", [("false", "true"), ("False", "True"), ("FALSE", "TRUE")])
def test_booleans_are_0_and_1_in_any_format(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert order(tmp_path, "csv", [pair[1], pair[1], pair[0]]) == ["0", "1"]
    for kind in ("jsonl", "parquet"):
        assert order(tmp_path, kind, [True, True, False]) == ["0", "1"]
        assert order(tmp_path, kind, [pair[1], pair[1], pair[0]]) == ["0", "1"]


@pytest.mark.parametrize("pair", [("no", "yes"), ("No", "Yes"), ("NO", "YES")])
def test_yes_is_last_in_any_case(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert order(tmp_path, "csv", [pair[1], pair[1], pair[0]]) == list(pair)


def test_of_other_texts_the_most_frequent_is_first(tmp_path: Path) -> None:
    assert order(tmp_path, "jsonl", ["c", "a", "b", "c", None]) == ["c", "a", "b"]
    assert order(tmp_path, "jsonl", ["yes", "Yes", "Yes"]) == ["Yes", "yes"]
    file = tmp_path / "x.jsonl"
    events = load_events([file], FIELDS)
    assert np.bincount(events.label).tolist() == [1, 2]
