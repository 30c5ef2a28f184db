"""Reports of every task from random data, for the tests and to look at in a browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lstmstream.evaluation.alignment import TaskSpec, align_with_truth, evaluated_rows
from lstmstream.evaluation.baselines import compute_baselines
from lstmstream.evaluation.comparison import compare
from lstmstream.evaluation.intervals import bootstrap_intervals
from lstmstream.evaluation.thresholds import ThresholdRule, choose_threshold
from lstmstream.history.events import Events
from lstmstream.model.card import Feature
from lstmstream.train.report.report import Report
from lstmstream.train.report.summary import split_facts, summarize
from tests.random_events import history

SHOPS = ("grocer", "fuel", "travel", "online", "cash")


def report(task: str, *, keys: int = 60, length: int = 120, resamples: int = 30, **changes: Any) -> Report:
    """The report of `binary`, `classes`, `forecast`, `anomaly` or `unlabelled`; `changes` are fields of the Report."""
    goal, events, features, score, prediction = MAKERS[task](keys, length)
    key = np.repeat(np.arange(len(events.keys)), np.diff(events.starts))
    place = np.arange(len(key)) - events.starts[key]
    share = place / np.diff(events.starts)[key]
    masks = {"train": share < 0.6, "validation": (share >= 0.6) & (share < 0.8), "test": share >= 0.8}
    names = ("validation", "test")
    evaluated = {name: align_with_truth(goal, events, score, prediction, masks[name]) for name in names}
    rules = {
        "binary": ThresholdRule("f1"),
        "anomaly": ThresholdRule("alerts_per_day", 5),
        "unlabelled": ThresholdRule("alerts_per_day", 2),
    }
    threshold, threshold_rule = choose_threshold(evaluated["validation"], rules.get(task, ThresholdRule("none")))
    rows = evaluated_rows(goal, events, score, masks["test"])
    others = compute_baselines(
        goal, events, evaluated["test"], rows,
        training=np.flatnonzero(masks["train"]),
        dense=lambda rows: np.nan_to_num(events.x[rows] / 100),
    )  # fmt: skip
    whole = Report(
        name="card-fraud" if task == "binary" else f"{task}-example",
        version="3",
        task=goal.task,
        cell="LSTM",
        config=f"name: {task}\nversion: \"3\"\ntask: {goal.task}\ndata:\n  path: data/*.parquet\n  key: customer\n",
        keys=events.keys,
        summary=summarize(events, features),
        splits=[split_facts(name, events, np.flatnonzero(mask)) for name, mask in masks.items()],
        history=_history("binary" if task == "binary" else "loss"),
        chosen_epoch=9,
        validation=evaluated["validation"],
        test=evaluated["test"],
        metrics={name: bootstrap_intervals(one, threshold, resamples=resamples) for name, one in evaluated.items()},
        baselines=others.evaluated,
        baseline_notes=others.notes,
        comparison=compare(evaluated["test"], others.evaluated, resamples=resamples),
        threshold=threshold,
        threshold_rule=threshold_rule,
        stop_reason="all epochs complete",
        event_numbers=1 + place[rows],
        facts={"network": "1 x LSTM(64), 22,401 parameters", "state": "128 values, 512 bytes per key",
               "data (SHA-256)": "ab" * 32, "exported file vs. network": "maximum difference 2.4e-07"},
        warnings=["balance is always 7 in the training split"] if task == "binary" else [],
    )  # fmt: skip
    return replace(whole, **changes)


def _history(chosen_by: str) -> list[dict[str, float]]:
    epochs = [
        {"epoch": float(e), "train_loss": 0.5 / e - 0.3, "validation_loss": 0.5 / e - 0.2 + 0.004 * max(0, e - 8),
         "metric": 0.7 - 0.4 / e - 0.003 * max(0, e - 9), "learning_rate": 3e-3 * 0.8**e, "seconds": 11.5}
        for e in range(1, 15)
    ]  # fmt: skip
    if chosen_by == "loss":
        for epoch in epochs:
            epoch["metric"] = -epoch["validation_loss"]
    return epochs


Sample = tuple[TaskSpec, Events, tuple[Feature, ...], np.ndarray, np.ndarray | None]


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def _binary(keys: int, length: int) -> Sample:
    rng = np.random.default_rng(5)
    count = keys * length
    hidden = rng.normal(size=count) - 3.2
    label = (rng.random(count) < _sigmoid(2 * hidden)).astype(np.int64)
    values = np.stack([np.exp(rng.normal(3, 1, count) + label), np.full(count, 7.0)], 1)
    values[rng.random(count) < 0.08, 0] = np.nan
    events = history(lengths=[length] * keys, seed=1, values=values, codes=(5,), label=label, gap_s=3600.0)
    score = _sigmoid(2 * hidden + 0.6 * rng.normal(size=count)).astype(np.float32)
    features = (Feature("amount", "number"), Feature("balance", "number"), Feature("shop", "category", SHOPS))
    return (
        TaskSpec("classify", ("amount", "balance"), classes=("genuine", "fraud")),
        events,
        features,
        score,
        score[:, None],
    )


def _classes(keys: int, length: int) -> Sample:
    rng = np.random.default_rng(6)
    count, names = keys * length, ("walk", "run", "cycle", "sit")
    label = rng.choice(4, count, p=[0.4, 0.2, 0.1, 0.3])
    values = np.stack([label * 30 + rng.normal(0, 25, count), rng.normal(size=count)], 1)
    events = history(lengths=[length] * keys, seed=1, values=values, label=label, gap_s=10.0)
    logits = rng.normal(size=(count, 4)) + 2.2 * np.eye(4)[label]
    logits[:, 0] += 0.8 * (label == 1)
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    features = (Feature("speed", "number"), Feature("tilt", "number"))
    goal = TaskSpec("classify", ("speed", "tilt"), classes=names)
    return goal, events, features, (1 - likely[:, 0]).astype(np.float32), likely.astype(np.float32)


def _load(keys: int, length: int) -> tuple[Events, np.ndarray]:
    rng = np.random.default_rng(7)
    hour = np.tile(np.arange(length), keys)
    clean = np.repeat(rng.uniform(50, 200, keys), length) * (1 + 0.4 * np.sin(2 * np.pi * hour / 24))
    values = clean * (1 + 0.05 * rng.normal(size=len(clean)))
    other = 15 + 5 * np.cos(2 * np.pi * hour / 24) + rng.normal(size=len(clean))
    return history(lengths=[length] * keys, seed=1, values=np.stack([values, other], 1), gap_s=3600.0), clean


def _forecast(keys: int, length: int) -> Sample:
    events, clean = _load(keys, length)
    goal = TaskSpec("forecast", ("load", "temperature"), ("load", "temperature"), horizon=6)
    rng = np.random.default_rng(8)
    columns: list[np.ndarray] = []
    for ahead in range(1, 7):
        columns += [
            np.roll(clean, -ahead) * (1 + 0.02 * ahead * rng.normal(size=len(clean))),
            np.roll(events.x[:, 1], -ahead),
        ]
    prediction = np.stack(columns, 1).astype(np.float32)
    prediction[:, 1::2] += rng.normal(size=prediction[:, 1::2].shape)
    features = (Feature("load", "number"), Feature("temperature", "number"))
    return goal, events, features, prediction[:, 0].copy(), prediction


def _anomaly(keys: int, length: int) -> Sample:
    events, clean = _load(keys, length)
    rng = np.random.default_rng(9)
    label = np.zeros(len(clean), np.int64)
    hit = rng.choice(len(clean), 40, replace=False)
    label[hit] = 1
    events.x[hit, 0] *= 1.8
    error = np.abs(events.x[:, 0] / clean - 1) + 0.1 * rng.random(len(clean))
    score = (error / (error + 0.3)).astype(np.float32)
    prediction = np.stack([np.roll(clean, -1), np.roll(events.x[:, 1], -1)], 1).astype(np.float32)
    features = (Feature("load", "number"), Feature("temperature", "number"))
    goal = TaskSpec("anomaly", ("load", "temperature"), ("load", "temperature"))
    return goal, replace(events, label=label), features, score, prediction


def _unlabelled(keys: int, length: int) -> Sample:
    goal, events, features, score, prediction = _anomaly(keys, length)
    return goal, replace(events, label=np.empty(0, np.int64)), features, score, prediction


MAKERS = {"binary": _binary, "classes": _classes, "forecast": _forecast, "anomaly": _anomaly, "unlabelled": _unlabelled}
