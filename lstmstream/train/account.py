"""What a model's card tells of how the model came to be, and what drift is later measured against."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from importlib.metadata import version
from typing import Any

import numpy as np
import orjson

from lstmstream.train.fit import Fitted
from lstmstream.train.history.split import TRAIN
from lstmstream.train.measure.intervals import Interval
from lstmstream.train.measure.metrics import Doubles, Judged
from lstmstream.train.prepare import Prepared
from lstmstream.train.schema import TrainConfig
from lstmstream.train.values import moment

_BINS = 50


def training(
    prepared: Prepared, fitted: Fitted, metrics: dict[str, dict[str, Interval]], rule: str, difference: float
) -> dict[str, Any]:
    """The card's account of how the model came to be. Without paths and addresses."""
    config, events, goal = prepared.config, prepared.events, prepared.goal
    times = np.asarray(events.timestamp)
    chosen = fitted.history[fitted.best_epoch - 1] if fitted.history else {}
    return {
        "fields": {
            "key": config.data.key,
            "timestamp": config.data.timestamp,
            "target": config.target.field,
            "classes": list(goal.classes),
            "targets": list(goal.targets),
            "horizon": goal.horizon,
            "per": goal.per,
        },
        "data": {
            "sha256": events.sha256,
            "rows": len(events),
            "keys": len(events.keys),
            "from": moment(int(times.min())),
            "to": moment(int(times.max())),
        },
        "split": prepared.parts.rule,
        "epochs": len(fitted.history),
        "epoch": fitted.best_epoch,
        "loss": {name: round(chosen[name], 6) for name in ("train_loss", "validation_loss") if name in chosen},
        "metrics": {part: {name: _rounded(found) for name, found in one.items()} for part, one in metrics.items()},
        "threshold_rule": rule,
        "difference": float(f"{difference:.2g}"),
        "versions": {name: version(name) for name in ("lstmstream", "torch", "numpy", "onnx")},
        "seed": config.training.seed,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "config": _settings(config),
    }


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The options that shaped the model."""
    wanted: dict[str, Any] = config.model_dump(
        mode="json", include={"features", "target", "split", "model", "training", "threshold"}
    )
    return wanted


def _rounded(interval: Interval) -> dict[str, float | None]:
    return {name: _number(value) for name, value in interval.items()}  # type: ignore[arg-type] # floats, all three


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def reference(prepared: Prepared, validation: Judged) -> dict[str, Any]:
    """Histograms that drift is later measured against: the score's, and each feature's in the training part."""
    rows = prepared.parts.rows(TRAIN)
    rows = rows[:: max(1, len(rows) // 200_000)]
    found: dict[str, Any] = {}
    for column, number in enumerate(prepared.encoder.numbers):
        values = np.asarray(prepared.events.x[rows, column])
        present = values[~np.isnan(values)].astype(np.float64)
        found[number.name] = _histogram(present) | {"missing": int(len(values) - len(present))}
    for column, category in enumerate(prepared.encoder.categories):
        codes = np.asarray(prepared.events.codes[rows, column])
        if category.vocabulary is not None:
            counts = np.bincount(codes, minlength=len(category.vocabulary) + 1)
            often = np.argsort(-counts[1:], kind="stable")[:_BINS]
            found[category.name] = {
                "values": [category.vocabulary[place] for place in often.tolist()],
                "counts": counts[1:][often].tolist(),
                "missing": int(counts[0]),
            }
    scores = validation.score[np.isfinite(validation.score)].astype(np.float64)
    whole = validation.task != "forecast"
    return {"score": _histogram(scores, edges=np.linspace(0, 1, _BINS + 1) if whole else None), "features": found}


def _histogram(values: Doubles, edges: Any = None) -> dict[str, Any]:
    """Counts between edges, the values' own quantiles unless given; what lies outside counts in the outermost."""
    if edges is None:
        edges = (
            np.unique([float(f"{q:.6g}") for q in np.quantile(values, np.linspace(0, 1, 21))]) if len(values) else []
        )
    if len(edges) < 2:
        return {"edges": [float(edge) for edge in edges], "counts": [len(values)]}
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts.tolist()}


def settings_digest(prepared: Prepared) -> str:
    """Names data, settings and scaling, so that a checkpoint of others is refused."""
    encoder = prepared.encoder  # with --init another model's
    scaling = [
        [repr(number) for number in encoder.numbers],
        repr(encoder.elapsed),
        [encoder.hour_of_day, encoder.day_of_week, encoder.limit],
        [[one.name, one.vocabulary, one.table.shape] for one in encoder.categories],
    ]
    parts = hashlib.sha256(prepared.parts.of.tobytes()).hexdigest()
    text = orjson.dumps([prepared.events.sha256, parts, prepared.config.task, _settings(prepared.config), scaling])
    return hashlib.sha256(text).hexdigest()
