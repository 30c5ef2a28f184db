"""What a training report says, before it becomes HTML (render.py) or a few lines of text (progress.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lstmstream.evaluation.comparison import Comparison
from lstmstream.evaluation.intervals import Interval
from lstmstream.evaluation.metrics import Evaluated
from lstmstream.records import Ints
from lstmstream.train.report.summary import DataSummary, SplitFacts


@dataclass(frozen=True, slots=True)
class Report:
    """The content of a report. The evaluated splits are those of the exported file, at the chosen epoch."""

    name: str
    version: str
    task: str  # classify | forecast | anomaly
    cell: str  # as LSTM
    config: str  # the text of the configuration
    keys: Sequence[str]  # names by the index in Evaluated.sequence
    summary: DataSummary
    splits: Sequence[SplitFacts]
    history: Sequence[Mapping[str, float]]  # epoch, train_loss, validation_loss, metric, learning_rate, seconds
    chosen_epoch: int  # from 1; 0 where nothing was trained
    validation: Evaluated
    test: Evaluated | None
    metrics: Mapping[str, Mapping[str, Interval]]  # by name of the split: validation, test
    baselines: Mapping[str, Evaluated]  # on the split `evaluated`
    comparison: Comparison  # with the baselines
    threshold: float | None = None
    threshold_rule: str = ""  # a sentence
    stop_reason: str = ""  # why training ended
    baseline_notes: Sequence[str] = ()  # how they were fitted, sentences
    advice: str = ""  # what to change in the configuration, by what the epochs show
    event_numbers: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # of `evaluated`: 1 is a key's earliest
    facts: Mapping[str, str] = field(default_factory=dict)  # name to value: parameters, state, fingerprint and so on
    warnings: Sequence[str] = ()
    score_note: str = ""  # why the scores are not probabilities, a sentence; empty where they are

    @property
    def evaluated(self) -> Evaluated:
        """The split that the results are of: test, or validation where the test split has no events."""
        return self.test if self.test is not None and len(self.test) else self.validation

    @property
    def split_name(self) -> str:
        """The name of that split: test or validation."""
        return "test" if self.evaluated is self.test else "validation"
