"""From a trained network to a model file: calibration, threshold, card, and the proof that the file says the same.

What is measured is the file, run as the daemon runs it, and not the network it was made from.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lstmstream.errors import Fatal
from lstmstream.model import Card, load_model
from lstmstream.serve.step import OnnxStep
from lstmstream.train import account
from lstmstream.train.export import export
from lstmstream.train.export.heads import LARGEST_Z
from lstmstream.train.export.parts import Calibration, Network
from lstmstream.train.fit import Fit, Fitted
from lstmstream.train.history import features
from lstmstream.train.history.read import Floats
from lstmstream.train.history.split import NAMES, TEST, TRAIN, VALIDATION
from lstmstream.train.measure.intervals import Interval, intervals
from lstmstream.train.measure.judge import judge_events
from lstmstream.train.measure.metrics import Judged
from lstmstream.train.measure.replay import replay
from lstmstream.train.measure.threshold import Rule, check, choose
from lstmstream.train.network import Net, answers
from lstmstream.train.prepare import Prepared
from lstmstream.train.schema import Threshold

USUAL_SHARE = 0.995  # of the validation part's events that an anomaly score of one half is above
PROVED_KEYS, PROVED_EVENTS = 50, 200
TOLERANCE = 1e-4  # between network and file, as a share of the largest value


@dataclass(frozen=True, slots=True)
class Finished:
    """The model file and what it said."""

    card: Card
    validation: Judged
    test: Judged | None
    threshold: float | None
    rule: str
    metrics: dict[str, dict[str, Interval]]  # by part
    difference: float  # the most that file and network differed
    score: Floats  # [N] of all events


def finish(net: Net, prepared: Prepared, fitted: Fitted, fit: Fit, out: Path) -> Finished:
    """Writes the model to `out`. Raises Fatal where the file does not compute what was trained."""
    config = prepared.config
    calibration = _calibration(net, prepared, fit, out) if config.task == "anomaly" else None
    network = net.to_network(prepared.encoder, calibration)
    score, prediction = _write_and_replay(network, prepared, out)
    difference = _prove(net, prepared, calibration, score, prediction, out)
    parts = {
        part: judge_events(prepared.goal, prepared.events, score, prediction, prepared.parts.of == part)
        for part in (VALIDATION, TEST)
        if (prepared.parts.of == part).any()
    }
    validation = parts[VALIDATION]
    threshold, rule = choose(validation, _rule(config.threshold, validation))
    metrics = {NAMES[part]: intervals(judged, threshold, seed=config.training.seed) for part, judged in parts.items()}
    card = export(
        out,
        network,
        name=config.name,
        version=config.version,
        task=config.task,
        threshold=threshold,
        training=account.training(prepared, fitted, metrics, rule, difference),
        reference=account.reference(prepared, validation),
    )
    return Finished(card, validation, parts.get(TEST), threshold, rule, metrics, difference, score)


def check_threshold(prepared: Prepared) -> None:
    """Before the long part: whether the validation part can choose a threshold. Raises CannotServe."""
    if prepared.config.task == "forecast":  # alerts on nothing
        return
    unknown = np.zeros(len(prepared.events), np.float32)
    validation = judge_events(prepared.goal, prepared.events, unknown, None, prepared.parts.of == VALIDATION)
    check(validation, _rule(prepared.config.threshold, validation))


def _write_and_replay(network: Network, prepared: Prepared, out: Path) -> tuple[Floats, Floats | None]:
    """The file's answers to all events; a first version of it, without what these answers will tell."""
    draft = out.with_name(f".{out.name}.draft")
    try:
        config = prepared.config
        export(draft, network, name=config.name, version=config.version, task=config.task)
        return replay(OnnxStep(load_model(draft), device="cpu"), prepared.events)
    finally:
        draft.unlink(missing_ok=True)


def _calibration(net: Net, prepared: Prepared, fit: Fit, out: Path) -> Calibration:
    """Where the usual size of surprises begins, and what is much against it.

    `start` is the fourth moment's root of the training part's surprises without the largest in a thousand; `unit` is
    such that a share of USUAL_SHARE of the validation part scores below one half.
    """
    alpha = 1 / prepared.config.target.memory
    surprises = _surprises(net, prepared, fit)
    usual = surprises[surprises <= np.quantile(surprises, 0.999)]
    start = max(float(np.mean(usual**4) ** 0.25), 1e-6)
    draft = Calibration(start, 1.0, alpha)
    score, _ = _write_and_replay(net.to_network(prepared.encoder, draft), prepared, out)
    checked = score[prepared.parts.of == VALIDATION]
    checked = checked[np.isfinite(checked) & (checked > 0) & (checked < 1)].astype(np.float64)
    unit = float(np.quantile(checked / (1 - checked), USUAL_SHARE)) if len(checked) else 1.0
    return Calibration(start, max(unit, 1e-3), alpha)


def _surprises(net: Net, prepared: Prepared, fit: Fit) -> Floats:
    """Of the training part: how far each event was from its forecast, in the forecast's scales."""
    found = []
    for rows, output, _ in fit.outputs(prepared.counted[NAMES[TRAIN]]):
        columns = list(prepared.config.targets)
        means, scales = output.numpy().reshape(len(rows), 2, -1).swapaxes(0, 1)
        raw = np.asarray(prepared.events.x[rows + 1])[:, columns]
        numbers = [prepared.encoder.numbers[column] for column in columns]
        values = features.scale(numbers, raw, prepared.encoder.limit)
        with np.errstate(invalid="ignore", divide="ignore"):
            off = np.clip((values - means) / np.exp(scales), -LARGEST_Z, LARGEST_Z)  # as the step has it
            squares = np.where(np.isnan(raw), np.nan, off**2)
        known = ~np.isnan(squares).all(axis=1)
        found.append(np.sqrt(np.nanmean(squares[known], axis=1)))
    return np.concatenate(found)


def _prove(
    net: Net, prepared: Prepared, calibration: Calibration | None, score: Floats, prediction: Floats | None, out: Path
) -> float:
    """The network over some keys' whole sequences against the file's answers; the largest difference.

    Both on the CPU: a GPU may round an LSTM's products to 10 bits.
    """
    events, worst = prepared.events, 0.0
    net = copy.deepcopy(net).cpu()
    keys = np.linspace(0, len(events.keys) - 1, min(PROVED_KEYS, len(events.keys))).astype(int)
    for key in keys.tolist():
        rows = np.arange(events.starts[key], min(events.starts[key + 1], events.starts[key] + PROVED_EVENTS))
        x = np.asarray(events.x[rows])
        dense = features.encode(
            prepared.encoder, x, np.asarray(events.elapsed[rows]), np.asarray(events.timestamp[rows])
        )
        given = (dense, np.asarray(events.codes[rows]), np.isnan(x))
        inputs, codes, missing = (torch.from_numpy(part)[None] for part in given)
        theirs = answers(net, inputs, codes, missing, torch.tensor([len(rows)]), calibration)
        for ours, torchs in zip((score, prediction), theirs, strict=True):
            if ours is not None:
                expected = torchs[0].numpy()
                off = np.abs(ours[rows] - expected) / np.maximum(1, np.abs(expected))
                worst = float(np.maximum(worst, off.max()))  # NaN stays NaN
    if not worst <= TOLERANCE:
        raise Fatal(f"{out}: the file and the network that was trained differ by {worst:.2g}; the file is not written")
    return worst


def _rule(option: Threshold, validation: Judged) -> Rule:
    """The configuration's rule."""
    kind = option.rule
    if kind == "auto" and (
        validation.task == "forecast" or (validation.task == "classify" and len(validation.names) > 2)
    ):
        return Rule("none")
    if kind == "auto":
        return Rule("f1") if validation.task == "classify" else Rule("value", value=0.5)
    if kind == "cost":
        return Rule("cost", missed=option.cost.missed, alert=option.cost.alert)
    return Rule(kind, value=(option.alerts_per_day if kind == "alerts_per_day" else option.value) or 0.0)
