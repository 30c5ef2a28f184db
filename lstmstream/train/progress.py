"""The progress of a training on standard error: a bar on a terminal, otherwise a line for each epoch."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from lstmstream.history.split import SPLIT_NAMES
from lstmstream.train.dataset import Dataset
from lstmstream.train.report.report import Report
from lstmstream.train.schema import CELL_TITLES
from lstmstream.train.trainer import EpochMetrics, Progress, Trainer, TrainingResult
from lstmstream.wording import counted

MAX_LISTED = 8  # classes with their counts
MAX_WARNINGS = 10  # before training; the report has all of them
SUMMARY_METRICS = {
    "average_precision", "roc_auc", "precision", "recall", "accuracy", "macro_f1", "mae", "rmse", "mase",
}  # fmt: skip
_BAR_INTERVAL_S = 0.2  # between updates of the bar
_LINE_INTERVAL_S = 0.3  # between lines, so that many short epochs do not flood the terminal


def summary_lines(report: Report, out: Path) -> list[str]:
    """The outcome of a training in a few lines of text. `out` is the model file."""
    lines = [f"{out}: epoch {report.chosen_epoch} of {len(report.history)}; {report.stop_reason}"]
    metrics = {name: value for name, value in report.metrics[report.split_name].items() if name in SUMMARY_METRICS}
    with_intervals = any(np.isfinite(interval["low"]) for interval in metrics.values())
    lines.append(f"  on the {report.split_name} split{', with 95 % intervals' if with_intervals else ''}:")
    for name, interval in metrics.items():
        bounds = f"  ({interval['low']:.3g} to {interval['high']:.3g})" if np.isfinite(interval["low"]) else ""
        lines.append(f"  {name.replace('_', ' '):<20} {interval['value']:>9.4g}{bounds}")
    lines.append(report.threshold_rule)
    if report.score_note:
        lines.append(report.score_note)
    question = "Better forecasts?" if report.comparison.forecasts_only else "Worth it?"
    lines.append(f"{question} {report.comparison.answer}. {report.comparison.text}")
    if report.advice:
        lines.append(report.advice)
    lines.append(f"Report: {out.with_suffix('.html')}")
    return lines


def summary_json(report: Report, out: Path) -> str:
    """The same for a program, with the metrics of all splits; NaN becomes null. `out` is the model file."""
    comparison = report.comparison
    document = {
        "model": str(out.absolute()),
        "report": str(out.with_suffix(".html").absolute()),
        "name": report.name,
        "version": report.version,
        "task": report.task,
        "epoch": report.chosen_epoch,
        "epochs": len(report.history),
        "stop_reason": report.stop_reason,
        "threshold": report.threshold,
        "threshold_rule": report.threshold_rule,
        "metrics": report.metrics,
        "better_than_baselines": comparison.better,
        "comparison": comparison.text,
        "advice": report.advice,
        "warnings": report.warnings,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY).decode()


def print_or_drop(console: Console, text: str) -> None:
    """Prints a line as it is. Where it cannot be written, as to a log on a full disk, all lines from here on are lost.

    A line of progress that nobody can read is no reason to end a training of hours.
    """
    try:
        console.print(Text(text))
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


class ConsoleProgress:
    """Shows data, epochs and warnings on standard error."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._epochs = dataset.config.training.epochs
        self._result = TrainingResult()
        self._bar: ProgressBar | None = None
        self._bar_task: TaskID | None = None
        self._bar_updated = 0.0
        self._line_printed = -math.inf

    def print(self, text: str) -> None:
        """Prints a line as it is: text from data and configuration is no markup."""
        print_or_drop(self._console, text)

    def show_dataset(self) -> None:
        """Prints the sizes of the splits, and the warnings about the data."""
        dataset = self._dataset
        events, config = dataset.events, dataset.config
        self.print(f"{config.name} version {config.version}: {config.task}")
        self.print(
            f"{counted(len(events), 'event')} of {counted(len(events.keys), 'key')}; {dataset.split.description}"
        )
        for label, name in SPLIT_NAMES.items():
            in_split = dataset.split.labels == label
            if not in_split.any():
                continue
            line = f"  {name:<11}{int(in_split.sum()):>11,} events"
            if config.task == "classify":
                labels = np.asarray(events.label)[dataset.loss_masks[name]]
                counts = np.bincount(labels, minlength=len(events.classes))
                found = [f"{count:,} x {text}" for text, count in zip(events.classes, counts.tolist(), strict=True)]
                more = [f"and {len(found) - MAX_LISTED} more classes"] if len(found) > MAX_LISTED else []
                line += "   " + ", ".join(found[:MAX_LISTED] + more)
            self.print(line)
        for warning in dataset.warnings[:MAX_WARNINGS]:
            self.print(f"warning: {warning}")
        if len(dataset.warnings) > MAX_WARNINGS:
            self.print(f"warning: {len(dataset.warnings) - MAX_WARNINGS} more; the report lists all of them")

    @contextmanager
    def showing(self, trainer: Trainer) -> Iterator[None]:
        """Shows the training within the block: the network's size, and on a terminal a progress bar."""
        model = self._dataset.config.model
        self._result = trainer.result
        layers = f"{model.layers} x {CELL_TITLES[model.cell]}({model.hidden})"
        self.print(f"{layers}, {trainer.network.parameter_count:,} parameters, on {trainer.device.type}")
        self.print(f"batches of {trainer.batch_text}")
        if self._console.is_terminal:
            self._bar = ProgressBar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("at most"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self._console,
                transient=True,
            )
            self._bar_task = self._bar.add_task("epoch 1", total=float(self._epochs))
            self._bar.start()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def on_progress(self, progress: Progress) -> None:
        """Updates the bar within an epoch."""
        now = time.monotonic()
        if self._bar is None or self._bar_task is None or now - self._bar_updated < _BAR_INTERVAL_S:
            return
        self._bar_updated = now
        self._bar.update(
            self._bar_task,
            completed=progress.epoch - 1 + progress.fraction,
            description=f"epoch {progress.epoch} of {self._epochs}, loss {progress.loss:.4g}",
        )

    def on_epoch_end(self, epoch: EpochMetrics) -> None:
        """Prints a line for the epoch. Of many short epochs some are left out here; the report has them all."""
        if time.monotonic() - self._line_printed < _LINE_INTERVAL_S:
            return
        self._line_printed = time.monotonic()
        result = self._result
        best = "  best" if result.best_epoch == epoch["epoch"] and result.monitor != "none" else ""
        metric = f"  average precision {epoch['metric']:.4f}" if result.monitor == "average_precision" else ""
        self.print(
            f"epoch {epoch['epoch']:>3.0f}  {epoch['seconds']:6.1f} s  loss {epoch['train_loss']:<9.4g}"
            f"  validation {epoch['validation_loss']:<9.4g}{metric}{best}"
        )

    def on_stop_requested(self) -> None:
        """Prints what a signal has caused."""
        kept = "the best epoch so far is kept" if self._result.best_epoch else "no epoch is complete yet"
        self.print(f"stopping; {kept}")
