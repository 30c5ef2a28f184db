"""The training report: one HTML file that opens anywhere and asks no network for anything.

`Report` holds what the report says; the sections are made in markup.py, the numbers of the plots in plots.py. What
came from the user is escaped, and a content policy forbids every script and style but the report's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import orjson

from lstmstream.train.measure.intervals import Interval
from lstmstream.train.measure.metrics import Judged
from lstmstream.train.measure.verdict import Verdict
from lstmstream.train.report import plots
from lstmstream.train.report.markup import page
from lstmstream.train.report.plots import Plot
from lstmstream.train.report.summary import PartFacts, Summary


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a report tells. The parts judged are those of the chosen epoch's exported file."""

    name: str
    version: str
    task: str  # classify | forecast | anomaly
    cell: str  # LSTM or GRU
    config: str  # the YAML's text
    keys: Sequence[str]  # names by the index in Judged.sequence
    summary: Summary
    parts: Sequence[PartFacts]
    history: Sequence[Mapping[str, float]]  # epoch, train_loss, validation_loss, metric, learning_rate, seconds
    chosen_epoch: int  # from 1; 0 where nothing was trained
    validation: Judged
    test: Judged | None
    metrics: Mapping[str, Mapping[str, Interval]]  # by part: validation, test
    baselines: Mapping[str, Judged]  # of the part that `judged` says
    verdict: Verdict
    threshold: float | None = None
    threshold_rule: str = ""  # a sentence
    facts: Mapping[str, str] = field(default_factory=dict)  # of the model: parameters, state, digest, proof
    warnings: Sequence[str] = ()

    @property
    def judged(self) -> Judged:
        """The part that the report's results are of: test, or validation without one."""
        return self.test if self.test is not None and len(self.test) else self.validation

    @property
    def part(self) -> str:
        """Its name."""
        return "test" if self.judged is self.test else "validation"


def write_report(path: str | Path, report: Report) -> None:
    """Writes the report as one HTML file. Raises OSError."""
    Path(path).write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The report's HTML."""
    drawn = plots_of(report)
    styles = [_static("uPlot.min.css"), _static("report.css")]
    scripts = [_static("uPlot.iife.min.js"), _static("report.js")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src {' '.join(map(_digest, styles))};"
        " base-uri 'none'; form-action 'none'"
    )
    head = [f'<meta http-equiv="Content-Security-Policy" content="{policy}">', *(f"<style>{s}</style>" for s in styles)]
    data = orjson.dumps([plot.to_dict() for plot in drawn]).decode()
    # inside a script element only "</script" and "<!--" mean anything; neither can occur without a "<"
    data = data.replace("<", "\\u003c")
    tail = [
        f'<script type="application/json" id="plot-data">{data}</script>',
        *(f"<script>{s}</script>" for s in scripts),
    ]
    return page(report, drawn, head="\n".join(head), tail="\n".join(tail), licence=_static("uPlot.LICENSE"))


def plots_of(report: Report) -> list[Plot]:
    """All plots, in the order of the report."""
    judged = report.judged
    drawn = []
    if judged.truth.size and judged.prediction is not None:
        drawn += [*plots.forecasts(judged, report.keys), *plots.errors_by_step(judged)]
    if report.task != "forecast":
        if judged.is_binary or report.threshold is not None:
            drawn.append(plots.score_histogram(judged, report.threshold))
        if judged.has_labels and judged.is_binary:
            drawn += plots.ranking_curves({report.cell: judged, **_ranked(report)}, report.threshold)
        calibrated = plots.calibration(judged)
        drawn += [calibrated] if calibrated is not None else []
        if report.task == "anomaly":
            drawn.insert(0, plots.scores_over_time(judged, report.threshold))
    return [*drawn, *plots.learning_curves(report.history, report.chosen_epoch)]


def _ranked(report: Report) -> dict[str, Judged]:
    """Baselines whose score tells events apart, two at most."""
    apart = [(name, one) for name, one in report.baselines.items() if one.score.min() < one.score.max()]
    return dict(apart[:2])


def _static(name: str) -> str:
    return files("lstmstream.train.report").joinpath("static", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
