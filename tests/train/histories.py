"""Small histories and configurations for tests of training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import yaml

from lstmstream.serve.score import score_file
from lstmstream.train.schema import TrainConfig, validate_training

LSTMSTREAM = [sys.executable, "-m", "lstmstream"]


def purchases(file: Path, *, keys: int = 40, events: int = 30, seed: int = 0) -> pl.DataFrame:
    """A history whose label depends on the event before: `fraud` where the amount doubled. Written to `file` (CSV)."""
    random = np.random.default_rng(seed)
    rows = []
    for key in range(keys):
        time, last = 1_600_000_000 + key, 10.0
        for _ in range(int(random.integers(2, events + 1))):
            time += int(random.exponential(3600)) + 1
            amount = float(np.exp(random.normal(2, 0.7)))
            shop = str(random.choice(["food", "fuel", "web"]))
            distance = None if random.random() < 0.2 else float(random.exponential(5))
            rows.append((f"c{key}", time, amount, distance, shop, int(amount > 2 * last)))
            last = amount
    names = ["customer", "time", "amount", "distance", "shop", "fraud"]
    frame = pl.DataFrame(rows, schema=names, orient="row").sort("time")
    frame.write_csv(file)
    return frame


def settings(**sections: Any) -> dict[str, Any]:
    """A configuration for `purchases`; each section given is merged into the default one."""
    tree: dict[str, Any] = {
        "name": "card-fraud",
        "task": "classify",
        "data": {"path": "history.csv", "key": "customer", "timestamp": "time"},
        "features": {
            "numbers": [{"name": "amount", "log": True}, "distance"],
            "categories": ["shop"],
            "elapsed": True,
            "hour_of_day": True,
        },
        "target": {"field": "fraud"},
        "model": {"hidden": 8},
        "training": {"epochs": 3, "batch": 16, "steps": 8, "learning_rate": 0.01},
    }
    if sections.get("task", "classify") != "classify":
        del tree["target"]
    for name, values in sections.items():
        if isinstance(tree.get(name), dict) and isinstance(values, dict):
            tree[name] = {**tree[name], **values}
        else:
            tree[name] = values
    return tree


def config_for(folder: Path, **sections: Any) -> TrainConfig:
    """The configuration, its data in `folder`."""
    _fill(folder)
    return validate_training(settings(**sections), folder)


def write_config(folder: Path, **sections: Any) -> Path:
    """The same as a file, good or bad."""
    _fill(folder)
    file = folder / "train.yaml"
    file.write_text(yaml.safe_dump(settings(**sections)))
    return file


def command(folder: Path, *arguments: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Runs `lstmstream` with the arguments, in the folder; the exit status is checked unless `check` is None."""
    done = subprocess.run(
        [*LSTMSTREAM, *arguments], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert check is None or done.returncode == check, done.stderr
    return done


def scores(model: Path, data: Path, folder: Path) -> list[dict[str, Any]]:
    """The predictions of the model for the data file, keyed as `purchases`."""
    out = folder / "scores.jsonl"
    score_file(str(model), str(data), out=str(out), key="customer", timestamp="time", dead_letters=None)
    return [orjson.loads(line) for line in out.read_bytes().splitlines()]


def _fill(folder: Path) -> None:
    if not (folder / "history.csv").exists():
        purchases(folder / "history.csv")
