"""`lstmstream.Scorer` on data frames: the result is a frame of the same kind."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import polars as pl
import pytest

from tests.python_api.test_public_scorer import opened, rows

pytestmark = pytest.mark.tables


def test_a_polars_frame() -> None:
    expected = opened().score(rows(20))
    answers = opened().score(pl.DataFrame(rows(20)))
    assert isinstance(answers, pl.DataFrame)
    assert answers.columns == ["key", "timestamp", "score", "prediction", "alert", "steps", "error"]
    assert answers["score"].dtype == pl.Float32
    assert answers["steps"].to_list() == [answer["steps"] for answer in expected]
    assert answers["score"].to_list() == pytest.approx([answer["score"] for answer in expected])


def test_an_empty_polars_frame() -> None:
    answers = opened().score(pl.DataFrame(schema={"customer": pl.String, "time": pl.Int64}))
    assert answers.shape == (0, 7)


def test_a_polars_frame_with_times_and_missing_values() -> None:
    frame = pl.DataFrame(
        {
            "customer": ["c0", "c0", None],
            "time": [datetime(2026, 1, 5, 10, second, tzinfo=UTC) for second in range(3)],
            "amount": [1.5, None, float("nan")],
        }
    )
    answers = opened().score(frame)
    assert answers["steps"].to_list() == [1, 2, None]
    assert answers["timestamp"][0] == "2026-01-05T10:00:00.000Z"
    assert answers["error"][2] == "field 'customer', the key, is missing"


def test_a_pandas_frame_keeps_its_index() -> None:
    frame = pd.DataFrame(rows(20), index=[f"r{i}" for i in range(20)])
    frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
    frame.loc["r3", "amount"] = float("nan")
    frame["channel"] = frame["channel"].astype("category")
    answers = opened().score(frame)
    assert isinstance(answers, pd.DataFrame)
    assert list(answers.index) == list(frame.index)
    expected = opened().score([{**row, "amount": None if i == 3 else row["amount"]} for i, row in enumerate(rows(20))])
    assert answers["score"].tolist() == [answer["score"] for answer in expected]
    assert answers["timestamp"].tolist() == [answer["timestamp"] for answer in expected]


def test_missing_values_of_pandas_are_missing() -> None:
    frame = pd.DataFrame(
        {"customer": ["c0", pd.NA], "time": [pd.Timestamp("2026-01-05", tz="UTC"), pd.NaT], "amount": [pd.NA, 1.0]}
    )
    answers = opened().score(frame)
    assert answers["error"].isna().tolist() == [True, False]
    assert answers["error"].tolist()[1] == "field 'customer', the key, is missing"
