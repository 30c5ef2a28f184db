"""Renders a report as one HTML file that opens in any browser and loads nothing from the network.

The sections are made in markup.py, the data of the plots in plots.py. Text from the user is escaped, and a content
security policy forbids every script and style but the report's own.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

import orjson

from lstmstream.evaluation.metrics import Evaluated
from lstmstream.train.report import plots
from lstmstream.train.report.markup import page
from lstmstream.train.report.plots import Plot
from lstmstream.train.report.report import Report
from lstmstream.whole_file import write_whole


def write_report(path: str | Path, report: Report) -> None:
    """Writes the report as an HTML file, whole or not at all. Raises OSError."""
    write_whole(Path(path), render(report).encode())


def render(report: Report) -> str:
    """The HTML of the report."""
    drawn = plots_of(report)
    styles = [_static("uPlot.min.css"), _static("report.css")]
    scripts = [_static("uPlot.iife.min.js"), _static("report.js")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src {' '.join(map(_digest, styles))};"
        " base-uri 'none'; form-action 'none'"
    )
    head = [f'<meta http-equiv="Content-Security-Policy" content="{policy}">', *(f"<style>{s}</style>" for s in styles)]
    data = orjson.dumps([plot.to_dict() for plot in drawn]).decode()
    # inside a script element only "</script" and "<!--" have a meaning; neither can occur without a "<"
    data = data.replace("<", "\\u003c")
    tail = [
        f'<script type="application/json" id="plot-data">{data}</script>',
        *(f"<script>{s}</script>" for s in scripts),
    ]
    return page(report, drawn, head="\n".join(head), tail="\n".join(tail), license_text=_static("uPlot.LICENSE"))


def plots_of(report: Report) -> list[Plot]:
    """All plots of the report, in their order."""
    evaluated = report.evaluated
    drawn = []
    if evaluated.truth.size and evaluated.prediction is not None:
        drawn += [*plots.forecast_plots(evaluated, report.keys), *plots.error_by_horizon(evaluated)]
    if report.task != "forecast":
        if evaluated.is_binary or report.threshold is not None:
            drawn.append(plots.score_histogram(evaluated, report.threshold))
        if evaluated.has_labels and evaluated.is_binary:
            compared = {report.cell: evaluated, **_ranking_baselines(report)}
            drawn += plots.ranking_curves(compared, report.threshold)
        calibration = plots.calibration_plot(evaluated, report.score_note)
        drawn += [calibration] if calibration is not None else []
        if report.task == "anomaly":
            drawn.insert(0, plots.scores_over_time(evaluated, report.threshold))
    return [*drawn, *plots.learning_curves(report.history, report.chosen_epoch)]


def _ranking_baselines(report: Report) -> dict[str, Evaluated]:
    """The best baseline and one more, of those whose scores are not all equal."""
    ranking = [(name, one) for name, one in report.baselines.items() if one.score.min() < one.score.max()]
    ranking.sort(key=lambda pair: pair[0] != report.comparison.baseline)
    return dict(ranking[:2])


def _static(name: str) -> str:
    """A file of the report's own, or of uPlot, which the live page has too."""
    package = "lstmstream" if name.startswith("uPlot") else "lstmstream.train.report"
    return files(package).joinpath("static", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """The text's hash in the form of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
