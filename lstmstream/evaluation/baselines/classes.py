"""Baselines that classify: class frequencies, and logistic regressions on the event alone and with its key's past."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lstmstream.evaluation.baselines.inputs import DenseInputs, RegressionInputs
from lstmstream.evaluation.metrics import Doubles, Evaluated
from lstmstream.history.events import Events
from lstmstream.records import Ints

_PENALTY = 1.0  # L2, relative to the sum of the losses over standardised inputs
_MAX_PRODUCTS = 500_000_000  # of one iteration over all classes: rows times columns squared times classes
_MIN_ROWS = 5_000


def classify_baselines(
    names: tuple[str, ...],
    events: Events,
    evaluated: Evaluated,
    rows: Ints,
    training: Ints,
    dense: DenseInputs | None,
    *,
    max_rows: int,
) -> tuple[dict[str, Evaluated], list[str]]:
    """The baselines by name, and notes for the reader. `training` are the rows with a label to learn from."""
    if not len(training):
        return {}, []
    count, label = len(names), np.asarray(events.label[training])
    shares = np.bincount(label, minlength=count) / len(label)
    found = {"class frequencies": _with_probabilities(evaluated, np.tile(shares, (len(rows), 1)))}
    notes: list[str] = []
    if (shares > 0).sum() < 2:
        return found, notes
    drawn = stratified(label, max_rows)
    # one regression for each class against the rest, normalised to a sum of 1
    classes = [1] if count == 2 else [one for one in range(count) if shares[one] > 0]
    for name, with_past in (("logistic regression", False), ("logistic regression with the past", True)):
        inputs = RegressionInputs(events, training[drawn], dense, with_past=with_past)
        width = inputs.sample.shape[1]
        if not width:
            continue
        kept = stratified(label[drawn], max(_MIN_ROWS, _MAX_PRODUCTS // ((1 + width) ** 2 * len(classes))))
        used = label[drawn][kept]
        weights = np.bincount(label, minlength=count)[used] / np.bincount(used, minlength=count)[used]
        fits = {one: logistic(inputs.sample[kept], (used == one).astype(np.float64), weights) for one in classes}
        probability = np.zeros((len(rows), count))
        for part, matrix in inputs.matrices(rows):
            for one, fit in fits.items():
                probability[part, one] = _sigmoid(matrix @ fit[1:] + fit[0])
        if count == 2:
            probability[:, 0] = 1 - probability[:, 1]
        probability /= np.maximum(1e-12, probability.sum(axis=1, keepdims=True))
        found[name] = _with_probabilities(evaluated, probability)
        if len(used) < len(training):
            notes.append(f"The {name} learned from {len(used):,} of {len(training):,} events.")
    return found, notes


def stratified(label: Ints, limit: int) -> Ints:
    """At most about `limit` indices of `label`, ascending: rare classes whole, of the others evenly spaced events."""
    counts = np.bincount(label)
    left, classes = limit, int((counts > 0).sum())
    chosen = [np.empty(0, np.int64)]
    for one in np.argsort(counts, kind="stable").tolist():
        if counts[one]:
            quota = min(int(counts[one]), max(1, left // classes))
            chosen.append(np.flatnonzero(label == one)[np.arange(quota) * counts[one] // quota])
            left, classes = left - quota, classes - 1
    return np.sort(np.concatenate(chosen))


def _with_probabilities(evaluated: Evaluated, probability: Doubles) -> Evaluated:
    """The rows with class probabilities [N', K]; as for the model, the score is that of all classes but the first."""
    score = probability[:, 1] if probability.shape[1] == 2 else 1 - probability[:, 0]
    return replace(evaluated, score=score.astype(np.float32), prediction=probability.astype(np.float32))


def logistic(inputs: Doubles, positive: Doubles, weights: Doubles | None = None) -> Doubles:
    """[1 + D'] Intercept and coefficients by Newton's method (iteratively reweighted least squares), with L2 penalty.

    `weights` [n] say how many events a row stands for. A step that increases the loss is halved, so that it converges
    on separable data too.
    """
    design = np.concatenate([np.ones((len(inputs), 1)), inputs], axis=1)
    count = np.ones(len(inputs)) if weights is None else weights
    penalty = np.full(design.shape[1], _PENALTY)
    penalty[0] = 1e-9  # the intercept is free
    share = np.clip(count @ positive / count.sum(), 1e-6, 1 - 1e-6)
    fit = np.zeros(design.shape[1])
    fit[0] = np.log(share / (1 - share))

    def loss(at: Doubles) -> float:
        z = design @ at
        return float(count @ (np.logaddexp(0, z) - positive * z) + 0.5 * penalty @ at**2)

    now = loss(fit)
    for _ in range(30):
        probability = _sigmoid(design @ fit)
        gradient = design.T @ (count * (probability - positive)) + penalty * fit
        curvature = design.T @ (design * (count * probability * (1 - probability))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (then := loss(fit - size * step)) > now and size > 1e-4:
            size /= 2
        if not then < now:
            break
        fit, last, now = fit - size * step, now, then
        if last - now < 1e-8 * max(1.0, abs(now)):
            break
    return fit


def _sigmoid(z: Doubles) -> Doubles:
    return np.asarray(0.5 * (1 + np.tanh(z / 2)))  # cannot overflow
