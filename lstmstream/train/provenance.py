"""What the model card says of the training: where the model comes from, and the distributions to measure drift by."""

from __future__ import annotations

import datetime as dt
import hashlib
import math
from importlib.metadata import version
from typing import Any

import numpy as np
import orjson

from lstmstream.evaluation.intervals import Interval
from lstmstream.evaluation.metrics import Doubles, Evaluated
from lstmstream.evaluation.training_data import training_record
from lstmstream.formats.timestamps import format_iso
from lstmstream.history.split import SPLIT_NAMES, TRAIN, VALIDATION
from lstmstream.train.dataset import Dataset
from lstmstream.train.schema import TrainConfig
from lstmstream.train.trainer import TrainingResult

_BINS = 50
_MAX_SAMPLE_ROWS = 200_000  # of the training split, for the histograms


def training_provenance(
    dataset: Dataset,
    result: TrainingResult,
    metrics: dict[str, dict[str, Interval]],
    threshold_rule: str,
    max_difference: float,
) -> dict[str, Any]:
    """Section `training` of the card: data, split, epochs, metrics, versions and options. It holds no path or address.

    `metrics` are by name of the split, `max_difference` is between the outputs of file and network.
    """
    config, events, task_spec = dataset.config, dataset.events, dataset.task_spec
    times = np.asarray(events.timestamp)
    best = result.history[result.best_epoch - 1] if result.history else {}
    return {
        "fields": {
            "key": config.data.key,
            "timestamp": config.data.timestamp,
            **({} if config.data.silent.field is None else {"silent": config.data.silent.model_dump()}),
            "target": config.target.field,
            "classes": list(task_spec.classes),
            "targets": list(task_spec.targets),
            "horizon": task_spec.horizon,
            "per": task_spec.per,
        },
        "data": {
            "sha256": events.sha256,
            "rows": len(events),
            "keys": len(events.keys),
            "from": format_iso(int(times.min())),
            "to": format_iso(int(times.max())),
        },
        "split": dataset.split.description,
        "learned_from": [
            *dataset.base_records,
            *(
                training_record(SPLIT_NAMES[label], events, dataset.split.rows(label))
                for label in (TRAIN, VALIDATION)
                if (dataset.split.labels == label).any()
            ),
        ],
        "epochs": len(result.history),
        "epoch": result.best_epoch,
        "loss": {name: round(best[name], 6) for name in ("train_loss", "validation_loss") if name in best},
        "metrics": {
            split: {name: _round_interval(interval) for name, interval in values.items()}
            for split, values in metrics.items()
        },
        "threshold_rule": threshold_rule,
        "difference": float(f"{max_difference:.2g}"),
        "versions": {name: version(name) for name in ("lstmstream", "torch", "numpy", "onnx")},
        "seed": config.training.seed,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "config": _model_options(config),
    }


def _model_options(config: TrainConfig) -> dict[str, Any]:
    """The options that change the model, as JSON values."""
    options: dict[str, Any] = config.model_dump(
        mode="json", include={"features", "target", "split", "model", "training", "threshold"}
    )
    return options


def _round_interval(interval: Interval) -> dict[str, float | None]:
    return {name: _finite_or_none(value) for name, value in interval.items()}  # type: ignore[arg-type] # all floats


def _finite_or_none(value: float) -> float | None:
    """The value with five significant digits; None where it is not finite, which JSON cannot hold."""
    return float(f"{value:.5g}") if math.isfinite(value) else None


def reference_histograms(dataset: Dataset, validation: Evaluated) -> dict[str, Any]:
    """Section `reference` of the card: histograms of the validation scores and of each feature in the training split.

    Drift is measured against them. Numbers have bin edges and counts, categories their most frequent values.
    """
    rows = dataset.split.rows(TRAIN)
    rows = rows[:: max(1, len(rows) // _MAX_SAMPLE_ROWS)]
    histograms: dict[str, Any] = {}
    for column, number in enumerate(dataset.encoder.numbers):
        values = np.asarray(dataset.events.x[rows, column])
        present = values[~np.isnan(values)].astype(np.float64)
        histograms[number.name] = _histogram(present) | {"missing": int(len(values) - len(present))}
    for column, category in enumerate(dataset.encoder.categories):
        codes = np.asarray(dataset.events.codes[rows, column])
        if category.vocabulary is not None:
            counts = np.bincount(codes, minlength=len(category.vocabulary) + 1)
            frequent = np.argsort(-counts[1:], kind="stable")[:_BINS]
            histograms[category.name] = {
                "values": [category.vocabulary[index] for index in frequent.tolist()],
                "counts": counts[1:][frequent].tolist(),
                "missing": int(counts[0]),
            }
    scores = validation.score[np.isfinite(validation.score)].astype(np.float64)
    bounded = validation.task != "forecast"  # scores from 0 to 1
    edges = np.linspace(0, 1, _BINS + 1) if bounded else None
    return {"score": _histogram(scores, edges=edges), "features": histograms}


def _histogram(values: Doubles, edges: Any = None) -> dict[str, Any]:
    """Counts of the values [n] between edges, by default their quantiles; outliers count in the outermost bins."""
    if edges is None:
        edges = (
            np.unique([float(f"{q:.6g}") for q in np.quantile(values, np.linspace(0, 1, 21))]) if len(values) else []
        )
    if len(edges) < 2:
        return {"edges": [float(edge) for edge in edges], "counts": [len(values)]}
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return {"edges": [float(f"{edge:.6g}") for edge in edges], "counts": counts.tolist()}


def settings_digest(dataset: Dataset) -> str:
    """SHA-256 of data, split, options and scaling: a checkpoint with another digest cannot be resumed."""
    encoder = dataset.encoder  # with --init that of another model
    scaling = [
        [repr(number) for number in encoder.numbers],
        repr(encoder.elapsed),
        [encoder.hour_of_day, encoder.day_of_week, encoder.limit],
        repr(encoder.history),
        [[category.name, category.vocabulary, category.table.shape] for category in encoder.categories],
    ]
    split = hashlib.sha256(dataset.split.labels.tobytes()).hexdigest()
    config = dataset.config
    text = orjson.dumps([dataset.events.sha256, split, config.task, _model_options(config), scaling])
    return hashlib.sha256(text).hexdigest()
