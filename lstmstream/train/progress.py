"""What a person sees of a training: a bar on a terminal, else a line for each epoch. Standard error only."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from lstmstream.train.fit import Fitted, Line, Told
from lstmstream.train.history.split import NAMES
from lstmstream.train.prepare import Prepared
from lstmstream.train.report.report import Report

_REFRESH_S = 0.2
_LINE_S = 0.3
_CLASSES = 8  # that are told of
_SHOWN = {"average_precision", "roc_auc", "precision", "recall", "accuracy", "macro_f1", "mae", "rmse", "mase"}


def summary(report: Report, out: Path) -> list[str]:
    """What came out, in a few lines."""
    lines = [f"{out}: epoch {report.chosen_epoch} of {len(report.history)}; {report.facts['training ended']}"]
    shown = {name: found for name, found in report.metrics[report.part].items() if name in _SHOWN}
    sure = any(np.isfinite(found["low"]) for found in shown.values())
    lines.append(f"  on the {report.part} part{', with 95 % intervals' if sure else ''}:")
    for name, found in shown.items():
        interval = f"  ({found['low']:.3g} to {found['high']:.3g})" if np.isfinite(found["low"]) else ""
        lines.append(f"  {name.replace('_', ' '):<20} {found['value']:>9.4g}{interval}")
    lines.append(report.threshold_rule)
    lines.append(f"Worth it? {report.verdict.answer}. {report.verdict.text}")
    lines.append(f"Report: {out.with_suffix('.html')}")
    return lines


class Screen:
    """Tells a person how far it is."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._epochs = prepared.config.training.epochs
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = 0.0
        self._line = -math.inf  # when one was last said

    def say(self, text: str) -> None:
        """A line; what came from data or configuration stays plain text."""
        self._console.print(Text(text))

    def begin(self) -> None:
        """What there is to learn from, and what is odd about it."""
        prepared = self._prepared
        events, config = prepared.events, prepared.config
        self.say(f"{config.name} version {config.version}: {config.task}")
        self.say(f"{len(events):,} events of {len(events.keys):,} keys; {prepared.parts.rule}")
        for part, name in NAMES.items():
            of = prepared.parts.of == part
            if not of.any():
                continue
            line = f"  {name:<11}{int(of.sum()):>11,} events"
            if config.task == "classify":
                labels = np.asarray(events.label)[prepared.counted[name]]
                counts = np.bincount(labels, minlength=len(events.classes))
                found = [f"{count:,} x {text}" for text, count in zip(events.classes, counts.tolist(), strict=True)]
                more = [f"and {len(found) - _CLASSES} more classes"] if len(found) > _CLASSES else []
                line += "   " + ", ".join(found[:_CLASSES] + more)
            self.say(line)
        for warning in prepared.warnings:
            self.say(f"warning: {warning}")

    def start(self, parameters: int, device: str) -> None:
        """Before the first epoch."""
        model = self._prepared.config.model
        self.say(f"{model.layers} x {model.cell.upper()}({model.hidden}), {parameters:,} weights, on {device}")
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("left at most"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("epoch 1", total=float(self._epochs))
            self._bar.start()

    def tell(self, told: Told) -> None:
        """Within an epoch."""
        if self._bar is None or self._task is None or time.monotonic() - self._told < _REFRESH_S:
            return
        self._told = time.monotonic()
        self._bar.update(
            self._task,
            completed=told.epoch - 1 + told.done,
            description=f"epoch {told.epoch} of {self._epochs}, loss {told.loss:.4g}",
        )

    def after(self, line: Line, fitted: Fitted) -> None:
        """After an epoch; of many short ones, a line now and then. The report has all."""
        if time.monotonic() - self._line < _LINE_S:
            return
        self._line = time.monotonic()
        best = "  best" if fitted.best_epoch == line["epoch"] and fitted.monitor != "none" else ""
        metric = f"  average precision {line['metric']:.4f}" if fitted.monitor == "average_precision" else ""
        self.say(
            f"epoch {line['epoch']:>3.0f}  {line['seconds']:6.1f} s  loss {line['train_loss']:<9.4g}"
            f"  validation {line['validation_loss']:<9.4g}{metric}{best}"
        )

    def stopping(self) -> None:
        """Somebody has asked for the end."""
        self.say("stopping; the best epoch so far is kept")

    def end(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
