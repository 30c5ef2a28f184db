"""`input.silent` in tables, by `lstmstream score`: columns without types, and with."""

from __future__ import annotations

from pathlib import Path

import orjson
import polars as pl
import pytest
import yaml

from lstmstream.errors import CannotServe
from lstmstream.serve.score import score_file
from tests.serve.helpers import DATA


def config(folder: Path, equals: object) -> str:
    file = folder / "t.yaml"
    silent = {"field": "known", "equals": equals}
    tree = {
        "name": "t",
        "model": str(DATA / "small.onnx"),
        "kafka": {"bootstrap_servers": "x:1"},
        "input": {"topic": "in", "key": "customer", "timestamp": "time", "silent": silent},
        "output": {"topic": "out"},
    }
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(("values", "equals"), [([0, 1, None], 1), ([False, True, None], True), (["a", "b", ""], "b")])
def test_marked_rows_move_the_state_and_have_no_prediction(
    tmp_path: Path, values: list[object], equals: object
) -> None:
    frame = pl.DataFrame({"customer": "c", "time": [1_767_225_600 + i for i in range(6)], "amount": [1.0] * 6,
                          "merchant.risk": 0.5, "channel": "web", "device.id": "7", "known": values * 2})  # fmt: skip
    frame.write_csv(tmp_path / "rows.csv")
    frame.write_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        out = tmp_path / "out.jsonl"
        settings = config(tmp_path, equals)
        assert (
            score_file(settings, str(tmp_path / name), out=str(out), key=None, timestamp=None, dead_letters=None) == 0
        )
        scored = [orjson.loads(line) for line in out.read_bytes().splitlines()]
        assert [(one["source"]["row"], one["steps"]) for one in scored] == [(0, 1), (2, 3), (3, 4), (5, 6)]


def test_a_table_without_the_column_is_refused(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"customer": "c", "time": [1], "amount": 1.0, "merchant.risk": 1.0, "channel": "", "device.id": ""}
    )
    frame.write_csv(tmp_path / "rows.csv")
    with pytest.raises(CannotServe, match="no field 'known'"):
        score_file(
            config(tmp_path, 1), str(tmp_path / "rows.csv"), out="-", key=None, timestamp=None, dead_letters=None
        )
