"""What to change when training stopped too early or too late, from the metric of each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from lstmstream.records import Floats
from lstmstream.train.batching import MIN_UPDATES
from lstmstream.train.schema import Training
from lstmstream.train.trainer import TrainingResult
from lstmstream.wording import counted

MAX_LISTED = 8  # weights of classes in a sentence
_LATE_GAIN = 0.02  # of the improvement since the first epoch; a larger gain in the last fifth means it would go on


def training_advice(result: TrainingResult, options: Training, *, batch_size: int, updates: int, window: bool) -> str:
    """A sentence or two with the option to change; empty where the course of training gives no reason.

    `updates` is their number per epoch. With `window`, `training.steps` has no effect and is not named.
    """
    epochs = len(result.history)
    if result.monitor == "none" or result.stop_reason == "stopped by the user" or not result.best_epoch:
        return ""
    if result.best_epoch == 1 and epochs > 1:
        finding = f"The first of {epochs} epochs was the best."
        if updates >= MIN_UPDATES:
            return f"{finding} Try a training.learning_rate below {options.learning_rate:g}, or more data."
    elif result.best_epoch == epochs == options.epochs and _still_improving(result):
        finding = "The last epoch was the best, and the model was still improving. Try more training.epochs."
        if updates >= MIN_UPDATES:
            return finding
    else:
        return ""
    if batch_size > 1:
        cure = f"Try a training.batch below {batch_size}"
        cure += "." if window else f", or training.steps below {options.steps}."
    else:
        cure = "Use more data." if window else f"Try training.steps below {options.steps}, or more data."
    return f"{finding} An epoch had only {counted(updates, 'update')} of the weights. {cure}"


def score_note(classes: Sequence[str], weights: Floats) -> str:
    """A sentence where `training.class_weights` [K] make the scores differ from probabilities; else empty."""
    if not len(weights) or float(weights.min()) == float(weights.max()):
        return ""
    shown = ", ".join(f"{weight:.3g}" for weight in weights[:MAX_LISTED])
    shown += ", ..." if len(weights) > MAX_LISTED else ""
    note = f"training.class_weights ({shown}) shift the scores, so that they rank events but are not probabilities"
    if len(weights) == 2:
        real = float(weights[0] / (weights[0] + weights[1]))
        note += f": where the score is 0.5, about {real:.1%} are {classes[1]!r}"
    return note + "."


def _still_improving(result: TrainingResult) -> bool:
    metrics = [epoch["metric"] for epoch in result.history]
    before = max(metrics[: -max(1, len(metrics) // 5)], default=metrics[-1])
    return metrics[-1] - before > _LATE_GAIN * (metrics[-1] - metrics[0])
