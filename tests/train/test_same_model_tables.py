"""One table as JSONL, CSV and Parquet trains one model: the same bytes."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml

from lstmstream.train.run import train
from tests.one_table import Table

pytestmark = pytest.mark.torch

ROWS = 120
TREE = {
    "name": "m",
    "task": "classify",
    "data": {"key": "k", "timestamp": "t"},
    "features": {"numbers": ["n", "m.n"], "categories": ["store", "online"]},
    "target": {"field": "y"},
    "model": {"hidden": 4, "layers": 1},
    "training": {"epochs": 1, "seed": 3},
}


def test_one_table_trains_one_model_whatever_its_format(tmp_path: Path) -> None:
    start = datetime(2026, 1, 5)
    table = Table(
        {
            "k": (pl.Float64, [1001.0 + i % 5 for i in range(ROWS)]),
            "t": (pl.Datetime("us"), [start + timedelta(minutes=i) for i in range(ROWS)]),
            "n": (pl.Int64, [None if i % 7 == 0 else 2**53 + i * i for i in range(ROWS)]),
            "m.n": (pl.Float64, [(i % 13) / 7 for i in range(ROWS)]),
            "store": (pl.Float64, [None if i % 11 == 0 else 17.0 + i % 3 for i in range(ROWS)]),
            "online": (pl.Boolean, [i % 4 == 0 for i in range(ROWS)]),
            "y": (pl.Boolean, [i % 3 == 0 for i in range(ROWS)]),
        },
        nested=[i % 2 == 0 for i in range(ROWS)],
    )
    models = set()
    for kind, file in table.write(tmp_path).items():
        config = tmp_path / f"{kind}.yaml"
        config.write_text(yaml.safe_dump(TREE | {"data": {**TREE["data"], "path": file.name}}))  # type: ignore[dict-item]
        out = tmp_path / f"{kind}.onnx"
        assert train(config, out=out) == 0
        models.add(out.read_bytes())
    assert len(models) == 1
