"""From a trained network to a model file: calibration, export, threshold, metrics and card.

Everything is evaluated on the exported file, run as the daemon runs it, and not on the network in torch. The two are
compared, and a file that differs from the network is not written.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lstmstream.errors import Fatal
from lstmstream.evaluation.alignment import align_with_truth
from lstmstream.evaluation.intervals import Interval, bootstrap_intervals
from lstmstream.evaluation.metrics import Evaluated
from lstmstream.evaluation.offline import score_events
from lstmstream.evaluation.thresholds import ANOMALY_SHARE, ThresholdRule, check_rule, choose_threshold
from lstmstream.history.split import SPLIT_NAMES, TEST, TRAIN, VALIDATION, coverage
from lstmstream.model import Card, load_model
from lstmstream.records import Floats
from lstmstream.serve.step import OnnxStep
from lstmstream.train import features
from lstmstream.train.dataset import Dataset
from lstmstream.train.export import Calibration, NetworkSpec, export
from lstmstream.train.export.heads import MAX_Z
from lstmstream.train.network import TorchNetwork
from lstmstream.train.predict import predict_sequences
from lstmstream.train.provenance import reference_histograms, training_provenance
from lstmstream.train.schema import Threshold
from lstmstream.train.trainer import Trainer

HALF_POINT_QUANTILE = (
    1 - ANOMALY_SHARE
)  # of the validation split's events: this fraction has an anomaly score below one half
CHECKED_KEYS, CHECKED_EVENTS = 50, 200  # keys, and events of each, for which file and network are compared
TOLERANCE = 1e-4  # between file and network, relative to values above 1


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The exported model and its evaluation."""

    card: Card
    validation: Evaluated
    test: Evaluated | None
    threshold: float | None
    threshold_rule: str  # a sentence: how the threshold was chosen and what it gives
    metrics: dict[str, dict[str, Interval]]  # by name of the split: validation, test
    max_difference: float  # between the outputs of file and network
    score: Floats  # [N] of all events


def finalize_model(trainer: Trainer, dataset: Dataset, out: Path) -> TrainedModel:
    """Exports the trained network to `out`, with threshold, metrics and card.

    Raises Fatal where the file does not compute what the network does.
    """
    config, split = dataset.config, dataset.split
    calibration = _calibrate(trainer, dataset, out) if config.task == "anomaly" else None
    spec = trainer.network.to_spec(dataset.encoder, calibration)
    score, prediction = _score_events(spec, dataset, out)
    max_difference = _check_export(trainer.network, dataset, calibration, score, prediction, out)
    evaluated = {
        label: _evaluated_split(dataset, label, score, prediction)
        for label in (VALIDATION, TEST)
        if (split.labels == label).any()
    }
    validation = evaluated[VALIDATION]
    threshold, threshold_rule = choose_threshold(validation, _threshold_rule(config.threshold, validation))
    seed = config.training.seed
    metrics = {SPLIT_NAMES[label]: bootstrap_intervals(one, threshold, seed=seed) for label, one in evaluated.items()}
    card = export(
        out,
        spec,
        name=config.name,
        version=config.version,
        task=config.task,
        threshold=threshold,
        training=training_provenance(dataset, trainer.result, metrics, threshold_rule, max_difference),
        reference=reference_histograms(dataset, validation),
    )
    return TrainedModel(
        card, validation, evaluated.get(TEST), threshold, threshold_rule, metrics, max_difference, score
    )


def check_threshold(dataset: Dataset) -> None:
    """Raises CannotServe where the validation split cannot choose a threshold; known before training starts."""
    if dataset.config.task == "forecast":  # forecasts have no alerts
        return
    validation = _evaluated_split(dataset, VALIDATION, np.zeros(len(dataset.events), np.float32), None)
    check_rule(validation, _threshold_rule(dataset.config.threshold, validation))


def _evaluated_split(dataset: Dataset, label: int, score: Floats, prediction: Floats | None) -> Evaluated:
    """One split with the outputs for all events, and what part of the stream it is."""
    events, split = dataset.events, dataset.split
    evaluated = align_with_truth(dataset.task_spec, events, score, prediction, split.labels == label)
    part = coverage(events, split, label, dataset.config.split.by)
    return replace(evaluated, span_days=part.span_days, stream_share=part.stream_share)


def _score_events(spec: NetworkSpec, dataset: Dataset, out: Path) -> tuple[Floats, Floats | None]:
    """Score [N] and prediction [N, P] of all events, by a draft of the file beside `out`, which is removed again."""
    draft = out.with_name(f".{out.name}.draft")
    try:
        config = dataset.config
        export(draft, spec, name=config.name, version=config.version, task=config.task)
        return score_events(OnnxStep(load_model(draft), device="cpu"), dataset.events)
    finally:
        draft.unlink(missing_ok=True)


def _calibrate(trainer: Trainer, dataset: Dataset, out: Path) -> Calibration:
    """The calibration of the anomaly score.

    `initial_level` is the fourth root of the mean fourth power of the training split's normalized errors, without the
    largest in a thousand. `half_point` is such that HALF_POINT_QUANTILE of the validation split score below one half.
    """
    alpha = 1 / dataset.config.target.memory
    errors = _training_errors(trainer, dataset)
    usual = errors[errors <= np.quantile(errors, 0.999)]
    initial_level = max(float(np.mean(usual**4) ** 0.25), 1e-6)
    draft = Calibration(initial_level, 1.0, alpha)
    score, _ = _score_events(trainer.network.to_spec(dataset.encoder, draft), dataset, out)
    score = score[dataset.split.labels == VALIDATION]
    score = score[np.isfinite(score) & (score > 0) & (score < 1)].astype(np.float64)
    # with half_point 1 an error of e levels scores s = e / (e + 1), so e = s / (1 - s)
    half_point = float(np.quantile(score / (1 - score), HALF_POINT_QUANTILE)) if len(score) else 1.0
    return Calibration(initial_level, max(half_point, 1e-3), alpha)


def _training_errors(trainer: Trainer, dataset: Dataset) -> Floats:
    """[n] The normalized errors of the training split's events, without those whose values are all missing."""
    columns = list(dataset.config.targets)
    numbers = [dataset.encoder.numbers[column] for column in columns]
    errors = []
    for rows, output in trainer.forward_events(dataset.loss_masks[SPLIT_NAMES[TRAIN]]):
        means, log_scales = output.numpy().reshape(len(rows), 2, -1).swapaxes(0, 1)
        raw = np.asarray(dataset.events.x[rows + 1])[:, columns]
        values = features.scale_numbers(numbers, raw, dataset.encoder.limit)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.clip((values - means) / np.exp(log_scales), -MAX_Z, MAX_Z)  # as in the exported step
            squares = np.where(np.isnan(raw), np.nan, z**2)
        known = ~np.isnan(squares).all(axis=1)
        errors.append(np.sqrt(np.nanmean(squares[known], axis=1)))
    return np.concatenate(errors)


def _check_export(
    network: TorchNetwork,
    dataset: Dataset,
    calibration: Calibration | None,
    score: Floats,
    prediction: Floats | None,
    out: Path,
) -> float:
    """Compares the file's outputs for some keys with the network's over their whole sequences.

    Returns the largest difference; raises Fatal where it is above TOLERANCE. Both run on the CPU, because a GPU may
    round the products of an LSTM to 10 bits.
    """
    events, max_difference = dataset.events, 0.0
    network = copy.deepcopy(network).cpu()
    keys = np.linspace(0, len(events.keys) - 1, min(CHECKED_KEYS, len(events.keys))).astype(int)
    for key in keys.tolist():
        rows = np.arange(events.starts[key], min(events.starts[key + 1], events.starts[key] + CHECKED_EVENTS))
        dense = features.transform_rows(dataset.encoder, events, rows)
        arrays = (dense, np.asarray(events.codes[rows]), np.isnan(np.asarray(events.x[rows])))
        inputs, codes, missing = (torch.from_numpy(array)[None] for array in arrays)
        expected = predict_sequences(network, inputs, codes, missing, torch.tensor([len(rows)]), calibration)
        for ours, theirs in zip((score, prediction), expected, strict=True):
            if ours is not None:
                values = theirs[0].numpy()
                difference = np.abs(ours[rows] - values) / np.maximum(1, np.abs(values))
                max_difference = float(np.maximum(max_difference, difference.max()))  # NaN stays NaN
    if not max_difference <= TOLERANCE:
        raise Fatal(
            f"{out}: the exported file and the trained network differ by {max_difference:.2g}; the file is not written."
            " Please report this with the configuration"
        )
    return max_difference


def _threshold_rule(options: Threshold, validation: Evaluated) -> ThresholdRule:
    """The rule that the configuration asks for; `auto` depends on the task."""
    rule = options.rule
    many_classes = validation.task == "classify" and len(validation.names) > 2
    if rule == "auto" and (validation.task == "forecast" or many_classes):
        return ThresholdRule("none")
    if rule == "auto":
        return ThresholdRule("f1") if validation.task == "classify" else ThresholdRule("default")
    if rule == "cost":
        return ThresholdRule("cost", missed=options.cost.missed, alert=options.cost.alert)
    return ThresholdRule(rule, value=(options.alerts_per_day if rule == "alerts_per_day" else options.value) or 0.0)
