"""`lstmstream.Scorer` on data frames: the result is a frame of the same kind."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings

from lstmstream import CannotServe, Scorer
from tests.one_table import CATEGORY_KINDS, NUMBER_KINDS, TEXT_KINDS, TIME_KINDS, Table, tables
from tests.python_api.test_public_scorer import opened, rows
from tests.serve.scoring import MODEL, run_as_is

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


ANSWER = ("key", "timestamp", "score", "prediction", "alert", "steps")


def score_parquet(path: Path, frame: pl.DataFrame) -> list[dict[str, Any]] | None:
    """What `score` answers to the frame as a Parquet file, by row; None for a file that it refuses."""
    frame.write_parquet(path)
    out = path.with_suffix(".out")
    if run_as_is(MODEL, path, "--key", "id", "--timestamp", "at", "--out", out) == 2:
        return None
    found: list[dict[str, Any]] = [dict.fromkeys(ANSWER) for _ in range(len(frame))]
    for line in out.read_text().splitlines():
        value = json.loads(line)
        found[value["source"]["row"]] = {name: value[name] for name in ANSWER}
    return found


def answers_of(rows: Any) -> list[dict[str, Any]]:
    answers = Scorer.open(MODEL, key="id", timestamp="at").score(rows)
    plain = answers if isinstance(answers, list) else answers.to_dict("records")
    return [{name: answer[name] for name in ANSWER} for answer in plain]


@settings(max_examples=40, deadline=None)
@given(
    tables(
        id=(TEXT_KINDS, False), at=(TIME_KINDS, False), amount=(NUMBER_KINDS, True),
        merchant__risk=(NUMBER_KINDS, True), channel=(CATEGORY_KINDS, True), device__id=(CATEGORY_KINDS, True),
    )
)  # fmt: skip
def test_rows_and_frames_give_the_answers_of_a_parquet_file(table: Table) -> None:
    frame = pl.DataFrame({name: pl.Series(values, dtype=kind) for name, (kind, values) in table.columns.items()})
    with tempfile.TemporaryDirectory() as folder:
        expected = score_parquet(Path(folder) / "x.parquet", frame)
    assert expected is not None
    rows = frame.to_dicts()
    assert answers_of(rows) == expected
    scorer = Scorer.open(MODEL, key="id", timestamp="at")
    assert [[answer[name] for name in ("key", "timestamp", "steps")] for answer in scorer.score(frame).to_dicts()] == [
        [answer[name] for name in ("key", "timestamp", "steps")] for answer in expected
    ]


VALUES: list[tuple[str, Any, Any]] = [
    *(
        (field, kind, value)
        for field in ("id", "channel")
        for kind, value in (
            (pl.Binary, b"web"), (pl.Binary, b"17.0"), (pl.Date, date(2026, 1, 5)), (pl.Int128, 17),
            (pl.Int128, 2**70), (pl.Decimal(38, 0), Decimal(2**63)), (pl.Decimal(38, 2), Decimal("1.50")),
            (pl.Float32, 17.0), (pl.Float64, 1.5), (pl.Float64, 2.0**60), (pl.UInt64, 2**64 - 1),
            (pl.Categorical, "17.0"), (pl.Float64, float("inf")),
        )
    ),
    *(
        ("amount", kind, value)
        for kind, value in (
            (pl.Int128, 2**100), (pl.Int128, -(2**100)), (pl.Decimal(38, 18), Decimal("0.1")),
            (pl.Decimal(38, 0), Decimal(10**37)), (pl.Float32, 0.1), (pl.Float64, float("inf")), (pl.Float64, 1e39),
            (pl.Float64, float("nan")), (pl.String, "1.5"), (pl.UInt64, 2**64 - 1),
        )
    ),
    *(
        ("at", kind, value)
        for kind, value in (
            (pl.Date, date(2026, 1, 5)), (pl.Date, date(1, 1, 1)), (pl.Datetime("us"), datetime(9999, 12, 31)),
            (pl.Datetime("ms", "Europe/Berlin"), datetime(2026, 7, 5, tzinfo=UTC)),
            (pl.Datetime("us"), datetime(1969, 12, 31, 23, 59, 59, 999999)), (pl.Decimal(38, 6), Decimal("1.001")),
            (pl.Int128, 2**70), (pl.Binary, b"2026-01-05"), (pl.Float64, float("inf")), (pl.Int64, 20260230),
            (pl.Int64, 2**62),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("field", "kind", "value"), VALUES, ids=str)
def test_values_of_any_type_mean_what_they_mean_in_parquet(tmp_path: Path, field: str, kind: Any, value: Any) -> None:
    row = {"id": "c1", "at": 1_767_225_600, "amount": 1.0, "merchant.risk": 0.5, "channel": "web", "device.id": "d"}
    frame = pl.DataFrame({**row, field: pl.Series([value], dtype=kind)})
    expected = score_parquet(tmp_path / "x.parquet", frame)
    pandas_frame = pd.DataFrame({name: pd.Series([cell], dtype=object) for name, cell in frame.to_dicts()[0].items()})
    assert expected == answers_of(frame.to_dicts())
    in_frame = [{name: None if isinstance(cell, float) and isnan(cell) else cell for name, cell in answer.items()}
                for answer in answers_of(pandas_frame)]  # fmt: skip
    assert in_frame == expected


@pytest.mark.parametrize(
    ("field", "kind", "value", "error"),
    [
        ("id", pl.Binary, b"\xff", "field 'id' is bytes that are not UTF-8; write it as text"),
        ("channel", pl.Binary, b"\xff", "field 'channel' is bytes that are not UTF-8; write it as text"),
        ("id", pl.Datetime, datetime(2026, 1, 5), "field 'id' is a date and time, neither a string nor an integer"),
        ("id", pl.Time, time(1), "field 'id' is a time of day, neither a string nor an integer"),
        ("id", pl.Boolean, True, "field 'id' is a boolean, neither a string nor an integer"),
        ("amount", pl.Date, date(2026, 1, 5), "field 'amount' is a date, not a number"),
        ("amount", pl.Duration, timedelta(1), "field 'amount' is a duration, not a number"),
        ("amount", pl.Binary, b"1", "field 'amount' is a binary value, not a number"),
        ("at", pl.Time, time(1), "field 'at' is a time of day, not a time"),
        ("at", pl.Duration, timedelta(1), "field 'at' is a duration, not a time"),
        ("at", pl.Binary, b"\xff", "field 'at' is not an ISO 8601 time such as 2026-01-31T12:00:00Z, nor a number"),
    ],
)
def test_a_type_that_parquet_may_not_have_is_an_error_of_the_row(
    tmp_path: Path, field: str, kind: Any, value: Any, error: str
) -> None:
    row = {"id": "c1", "at": 1_767_225_600, "amount": 1.0, "merchant.risk": 0.5, "channel": "web", "device.id": "d"}
    frame = pl.DataFrame({**row, field: pl.Series([value], dtype=kind)})
    assert score_parquet(tmp_path / "x.parquet", frame) is None
    (answer,) = Scorer.open(MODEL, key="id", timestamp="at").score(frame).to_dicts()
    assert answer["error"] == error


def test_columns_that_nobody_reads_are_left_alone() -> None:
    frame = pl.DataFrame(rows(3)).with_columns(
        big=pl.lit(2**100, dtype=pl.Int128), raw=pl.lit(b"\xff"), struct=pl.struct(deep=pl.lit(2**100, dtype=pl.Int128))
    )
    assert opened().score(frame)["steps"].to_list() == [1, 1, 1]
    assert opened().score(frame.lazy())["steps"].to_list() == [1, 1, 1]
    odd = [{**row, "raw": b"\xff", "big": 2**100, "bad": "\ud800", "thing": object(), 5: 5} for row in rows(3)]
    assert [answer["steps"] for answer in opened().score(odd)] == [1, 1, 1]


def test_a_column_that_is_twice_in_a_pandas_frame_is_refused() -> None:
    frame = pd.DataFrame([[1, "c0", 2.0, 3.0, 4, 5]], columns=["time", "customer", "amount", "amount", "x", "x"])
    with pytest.raises(CannotServe, match="the frame: the column 'amount' occurs twice; rename or remove"):
        opened().score(frame)
    assert opened().score(frame.iloc[:, [0, 1, 2, 4, 5]])["steps"].tolist() == [1]


def test_a_frame_without_any_wanted_column_has_an_error_per_row() -> None:
    for frame in (pl.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [1, 2]})):
        assert list(opened().score(frame)["error"]) == ["field 'customer', the key, is missing"] * 2
