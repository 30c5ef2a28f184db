"""Is the network worth it? One plain answer, from the best baseline and a paired interval of the difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lstmstream.train.measure.intervals import Interval, advantage
from lstmstream.train.measure.metrics import LOWER_IS_BETTER, Judged, measure

NAMES = {
    "average_precision": "average precision",
    "accuracy": "accuracy",
    "mase": "error (MASE, the last value's is 1)",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, and what it rests on."""

    worth: bool | None  # None: nothing to compare with
    answer: str  # a word or two
    text: str  # a sentence or two
    measure: str = ""
    baseline: str = ""
    advantage: Interval | None = None


def main_measure(judged: Judged) -> str:
    """The one measure by which models of the part's task are compared."""
    if judged.task == "forecast" or not judged.has_labels:
        return "mase"
    return "average_precision" if judged.is_binary else "accuracy"


def compare(
    model: Judged, baselines: Mapping[str, Judged], *, called: str = "LSTM", resamples: int = 200, seed: int = 0
) -> Verdict:
    """The model against the baseline that is best on these events. Worth it only if better beyond chance."""
    name = main_measure(model)
    ours = measure(model).get(name, np.nan)
    theirs = {other: measure(judged).get(name, np.nan) for other, judged in baselines.items()}
    theirs = {other: value for other, value in theirs.items() if np.isfinite(value)}
    if not np.isfinite(ours) or not theirs:
        return Verdict(None, "Not known", "There is nothing to compare with: the part has no baseline or no truth.")
    best = (min if name in LOWER_IS_BETTER else max)(theirs, key=lambda other: theirs[other])
    gain = advantage(model, baselines[best], name, resamples=resamples, seed=seed)
    has = f"{NAMES[name]} {ours:.3g}, against {theirs[best]:.3g} of the best baseline, {best!r}"
    if np.isnan(gain["low"]):
        text = f"The {called} has {has}. That rests on too little to tell from chance: bring more to measure on."
        return Verdict(None, "Not known", text, name, best, gain)
    by = f"a difference of {gain['value']:+.2g} (95 % interval {gain['low']:+.2g} to {gain['high']:+.2g}; + is better)"
    worth = gain["low"] > 0
    if worth:
        text = f"The {called} has {has}: {by}."
    elif gain["high"] < 0:
        text = f"The {called} is worse: {has}: {by}. Use the baseline, or look for what went wrong in training."
    else:
        text = (
            f"The {called} has {has}: {by}, which may be chance. The baseline is simpler and"
            " as good, as far as can be told."
        )
    return Verdict(worth, "Yes" if worth else "No", text, name, best, gain)
