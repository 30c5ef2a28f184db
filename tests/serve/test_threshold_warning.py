"""A threshold that no score can reach is said: the daemon would run for months without an alert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from lstmstream.check.checks import check_model
from lstmstream.check.results import Check, Status
from lstmstream.config import load_config
from lstmstream.serve.score import score_file
from tests.models import random_model


def config_file(folder: Path, model: str, **output: Any) -> Path:
    tree = {
        "name": "t",
        "model": model,
        "kafka": {"bootstrap_servers": "127.0.0.1:9092"},
        "input": {"topic": "in", "key": "customer", "timestamp": "time"},
        "output": {"topic": "out", **output},
    }
    file = folder / "stream.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


@pytest.mark.parametrize(
    ("model", "threshold", "warned"),
    [
        ("builtin:demo", 1.5, True),
        ("builtin:demo", 1.0, False),
        ("builtin:demo", None, False),
        ("builtin:anomaly:amount", 3.0, True),
        ("builtin:load", 50.0, False),  # a forecast, in the units of the number
        ("own", 3.0, False),  # of somebody else's model nothing is known
    ],
)
def test_a_threshold_above_every_score(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], model: str, threshold: float | None, warned: bool
) -> None:
    if model == "own":
        model = str(random_model(tmp_path))
    output = {} if threshold is None else {"threshold": threshold}
    file = config_file(tmp_path, model, **output)
    found = [one for one in check_model(load_config(file)) if isinstance(one, Check) and one.status is Status.WARNING]
    assert [f"{threshold:g} is above every score of model" in one.text for one in found if threshold] == [True] * warned
    event = {"customer": "c1", "time": 1, "amount": 1.0, "distance_km": 1.0, "merchant": "fuel", "entry": "chip"}
    (tmp_path / "x.jsonl").write_bytes(orjson.dumps(event) + b"\n")
    score_file(
        str(file), str(tmp_path / "x.jsonl"), out=str(tmp_path / "out"), key=None, timestamp=None, dead_letters=None
    )
    assert ("is above every score" in capfd.readouterr().err) == warned
