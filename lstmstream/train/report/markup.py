"""The sections of the report as HTML. Every text that is not written here goes through `escaped`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstmstream import __version__
from lstmstream.evaluation.comparison import main_metric
from lstmstream.evaluation.descriptions import format_interval, format_number, meaning
from lstmstream.evaluation.intervals import Interval
from lstmstream.evaluation.metrics import LOWER_IS_BETTER, Evaluated, compute_metrics
from lstmstream.formats.durations import format_duration
from lstmstream.train.report.alerts import threshold_section, top_events_section
from lstmstream.train.report.html import escaped, format_time, table
from lstmstream.train.report.plots import Plot
from lstmstream.train.report.report import Report
from lstmstream.train.report.summary import FieldFacts, SplitFacts
from lstmstream.wording import counted

TILES = {
    "classify": ("average_precision", "roc_auc", "accuracy", "macro_f1", "recall", "precision", "alerts_per_day"),
    "anomaly": ("average_precision", "roc_auc", "recall", "precision", "alerts_per_day", "alert_share", "mase"),
    "forecast": ("mase", "mae", "rmse"),
}
MAX_TILES = 5
MAX_ROWS = 60  # of a table whose length depends on the user's data
MAX_CLASSES = 20  # of a confusion matrix
_TRAINING_PLOTS = ("loss", "metric")
_WIDE_PLOTS = ("forecast", "time")
_METRIC_LABELS = {
    "roc_auc": "ROC AUC",
    "brier": "Brier score",
    "mae": "MAE",
    "rmse": "RMSE",
    "mase": "MASE",
    "f1": "F1",
    "macro_f1": "macro F1",
    "score_p50": "median score",
    "score_p90": "90th percentile of the scores",
    "score_p99": "99th percentile of the scores",
    "score_p999": "99.9th percentile of the scores",
}


def page(report: Report, drawn: Sequence[Plot], *, head: str, tail: str, license_text: str) -> str:
    """The whole document. `head` and `tail` are HTML made by render.py, `license_text` is plain text."""
    evaluation_plots = [plot for plot in drawn if plot.id not in _TRAINING_PLOTS]
    training_plots = [plot for plot in drawn if plot.id in _TRAINING_PLOTS]
    sections = [
        ("results", "Results", _results(report)),
        ("plots", "Predictions", _figures(evaluation_plots) + _confusion_matrix(report.evaluated)),
        ("threshold", "Threshold", threshold_section(report)),
        ("events", "Highest scores", top_events_section(report)),
        ("training", "Training", _figures(training_plots) + _epochs(report)),
        ("data", "Data", _data(report)),
        ("model", "Model", _facts(report)),
        ("config", "Configuration", f'<div class="card"><pre>{escaped(report.config)}</pre></div>'),
    ]
    present = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in present)
    bodies = "".join(f'<section id="{name}"><h2>{title}</h2>{body}</section>' for name, title, body in present)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{head}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(report.name)} {escaped(report.version)}: training report</title>
</head>
<body>
<header>
<h1>{escaped(report.name)} <span class="soft">{escaped(report.version)}</span></h1>
<p class="soft">{_subtitle(report)}</p>
{_comparison(report)}{_tiles(report)}{_warnings(report)}
<nav>{links}</nav>
</header>
<main>{bodies}</main>
<footer>
<p>Made by lstmstream {escaped(__version__)}. This file loads nothing from the network and sends nothing.</p>
<details><summary>License of uPlot 1.6.32, which draws the plots</summary><pre>{escaped(license_text)}</pre></details>
</footer>
{tail}
</body>
</html>
"""


def _subtitle(report: Report) -> str:
    summary = report.summary
    verb = {"classify": "Classifies", "forecast": "Forecasts", "anomaly": "Detects anomalies"}[report.task]
    article = "an" if report.cell[0] in "LSs" else "a"
    return (
        f"{verb} with {article} {escaped(report.cell)} &middot; {counted(summary.rows, 'event')} of"
        f" {counted(summary.keys, 'key')}"
        f" &middot; {format_time(summary.start_ms)} to {format_time(summary.end_ms)} UTC"
    )


def _comparison(report: Report) -> str:
    """The answer to whether the model beats the baselines."""
    comparison = report.comparison
    css_class = {True: " yes", False: " no", None: ""}[comparison.better]
    advice = f"<p>{escaped(report.advice)}</p>" if report.advice else ""
    question = f"Is the {report.cell} worth it?"
    if comparison.forecasts_only:
        question = f"Does the {report.cell} forecast better than simple baselines?"
    return (
        f'<div class="card comparison{css_class}"><strong>{escaped(question)}'
        f" <span>{escaped(comparison.answer)}.</span></strong><p>{escaped(comparison.text)}</p>{advice}</div>"
    )


def _tiles(report: Report) -> str:
    """The main metrics, large."""
    metrics = report.metrics.get(report.split_name, {})
    names = [name for name in TILES[report.task] if name in metrics][:MAX_TILES]
    tiles = "".join(
        f'<div class="tile"><small>{escaped(_metric_label(name))}</small>'
        f"<b>{escaped(format_number(metrics[name]['value']))}</b><small>{_interval(metrics[name])}</small></div>"
        for name in names
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _interval(interval: Interval) -> str:
    return f"95 %: {escaped(format_interval(interval))}" if format_interval(interval) else "&nbsp;"


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    items = "".join(f"<li>{escaped(warning)}</li>" for warning in report.warnings)
    return f'<div class="card warnings"><h3>Warnings</h3><ul>{items}</ul></div>'


def _results(report: Report) -> str:
    """The model beside the baselines, metric by metric; without a test split on validation."""
    metrics = report.metrics.get(report.split_name, {})
    baselines = {name: compute_metrics(evaluated) for name, evaluated in report.baselines.items()}
    validation = report.metrics.get("validation", {}) if report.split_name == "test" else {}
    compared_by = main_metric(report.evaluated)
    overall_rows: list[str] = []
    detail_rows: list[str] = []  # of single columns or classes
    for name in metrics:
        values = [metrics[name]["value"], *(values.get(name, np.nan) for values in baselines.values())]
        if name.startswith("score_"):
            values[1:] = [np.nan] * len(baselines)  # the scores of baselines are on other scales
        best, is_detail = _best_index(name, values), "[" in name
        explanation = "" if is_detail else f"<small>{escaped(meaning(name))}</small>"
        interval = f"<small>{escaped(format_interval(metrics[name]))}</small>"
        cells = [
            f"<td>{escaped(_metric_label(name))}{explanation}</td>",
            f"<td{_class('best', best == 0)}>{escaped(format_number(values[0]))}{interval}</td>",
        ]
        for index, value in enumerate(values[1:], start=1):
            cells.append(f"<td{_class('best', best == index)}>{escaped(format_number(value))}</td>")
        if validation:
            cells.append(f"<td>{escaped(format_number(validation[name]['value'])) if name in validation else '-'}</td>")
        row = f"<tr{_class('main', name == compared_by)}>{''.join(cells)}</tr>"
        (detail_rows if is_detail else overall_rows).append(row)
    heads = ["metric", report.cell, *baselines, *([f"{report.cell} on validation"] if validation else [])]
    note = (
        f"On the {report.split_name} split, {counted(len(report.evaluated), 'event')}. Below a value: its"
        " 95 % interval."
        " Bold: the best of the row."
    )
    if report.evaluated.per == "sequence":
        note += (
            f" Alerts, precision, recall and F1 count all of them; the other metrics the last events of"
            f" {counted(len(report.evaluated.labelled), 'key')}."
        )
    if report.split_name == "validation":
        note += (
            " There is no test split, and the epoch and the threshold were chosen on the validation split: expect"
            " slightly worse results on new data."
        )
    note = " ".join([note, *report.baseline_notes])
    details = ""
    if detail_rows:
        what = "class" if report.task == "classify" else "column of the forecast"
        details = (
            f'<details class="card"><summary>Each {what}</summary>{table(heads, detail_rows[:MAX_ROWS])}</details>'
        )
    return f'<p class="soft">{escaped(note)}</p><div class="card">{table(heads, overall_rows)}</div>{details}'


def _best_index(name: str, values: Sequence[float]) -> int:
    """The index of the best value, -1 where there is nothing to compare."""
    if name.startswith("alert") or np.isfinite(values).sum() < 2:
        return -1
    lower = name.partition("[")[0] in LOWER_IS_BETTER
    return int(np.nanargmin(values) if lower else np.nanargmax(values))


def _figures(drawn: Sequence[Plot]) -> str:
    """A figure for each plot; plots with one id share a figure with a selector."""
    figures = []
    names = list(dict.fromkeys(plot.id for plot in drawn))
    odd_one = names and len([name for name in names if name not in _WIDE_PLOTS]) % 2 and names[-1]  # has no neighbor
    for name in names:
        group = [plot for plot in drawn if plot.id == name]
        choices = "".join(f"<option>{escaped(plot.choice)}</option>" for plot in group) if len(group) > 1 else ""
        select = f'<select aria-label="series">{choices}</select>' if choices else ""
        wide = " wide" if name in _WIDE_PLOTS or name == odd_one else ""
        figures.append(
            f'<figure class="card{wide}" data-plot="{escaped(name)}"><h3>{escaped(group[0].title)}</h3>'
            f'<figcaption>{escaped(group[0].caption)}</figcaption>{select}<div class="plot"></div></figure>'
        )
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _confusion_matrix(evaluated: Evaluated) -> str:
    if evaluated.task != "classify" or evaluated.is_binary or not evaluated.has_labels:
        return ""
    if evaluated.prediction is None or len(evaluated.names) > MAX_CLASSES:
        return ""
    rows, count = evaluated.labelled, len(evaluated.names)
    predicted = evaluated.prediction[rows].argmax(axis=1)
    matrix = np.bincount(evaluated.label[rows] * count + predicted, minlength=count * count).reshape(count, count)
    lines = []
    for name, counts in zip(evaluated.names, matrix, strict=True):
        shares = counts / max(1, counts.sum())
        cells = "".join(
            f'<td class="h{min(4, int(np.ceil(share * 4)))}">{n}</td>' for n, share in zip(counts, shares, strict=True)
        )
        lines.append(f"<tr><td>{escaped(name)}</td>{cells}</tr>")
    note = "Rows: the true class. Columns: the predicted class. Darker cells hold a larger fraction of their row."
    return (
        f'<div class="card confusion"><h3>Confusion matrix</h3><figcaption>{note}</figcaption>'
        f"{table(['', *evaluated.names], lines)}</div>"
    )


def _epochs(report: Report) -> str:
    if not report.history:
        return ""
    seconds = sum(epoch.get("seconds", 0.0) for epoch in report.history)
    kept = f"epoch {report.chosen_epoch} was kept" if report.chosen_epoch else "none was kept"
    names = [name for name in ("train_loss", "validation_loss", "metric", "learning_rate", "seconds")
             if any(np.isfinite(epoch.get(name, np.nan)) for epoch in report.history)]  # fmt: skip
    lines = []
    for epoch in report.history[:MAX_ROWS]:
        chosen = int(epoch["epoch"]) == report.chosen_epoch
        cells = "".join(f"<td>{escaped(format_number(epoch.get(name, np.nan)))}</td>" for name in names)
        lines.append(f"<tr{_class('chosen', chosen)}><td>{int(epoch['epoch'])}</td>{cells}</tr>")
    epochs = table(["epoch", *(name.replace("_", " ") for name in names)], lines)
    return (
        f'<p class="soft after">{len(report.history)} epochs in {format_duration(seconds)}; {kept}.</p>'
        f'<details class="card"><summary>Every epoch</summary>{epochs}</details>'
    )


def _data(report: Report) -> str:
    summary = report.summary
    low, median, high = summary.events_per_key
    events = f"{low:,} to {high:,}, median {median:,.0f}" if low < high else f"{low:,}"
    sizes = f"{counted(summary.rows, 'event')} of {counted(summary.keys, 'key')}. Events per key: {events}."
    labels, binary = any(split.labelled for split in report.splits), report.evaluated.is_binary
    label_heads = ["labelled", "positive"][: 1 + binary] if labels else []
    splits = table(
        ["split", "events", "keys", "from (UTC)", "to (UTC)", *label_heads],
        [_split_row(split, labels=labels, binary=binary) for split in report.splits],
    )
    fields = table(
        ["field", "kind", "missing", "mean", "std. deviation", "min", "max", ("notes", "text")],
        [_field_row(field) for field in summary.fields[:MAX_ROWS]],
    )
    return (
        f'<p>{escaped(sizes)}</p><div class="card"><h3>Splits</h3>{splits}</div>'
        f'<div class="card"><h3>Fields</h3>{fields}</div>'
    )


def _split_row(split: SplitFacts, *, labels: bool, binary: bool) -> str:
    times = (format_time(split.start_ms), format_time(split.end_ms))
    cells = [split.name, f"{split.rows:,}", f"{split.keys:,}", *times]
    if labels:
        share = f" ({split.positives / split.labelled:.3%})" if split.labelled else ""
        cells += [f"{split.labelled:,}", *([f"{split.positives:,}{share}"] if binary else [])]
    return f"<tr>{''.join(f'<td>{escaped(cell)}</td>' for cell in cells)}</tr>"


def _field_row(field: FieldFacts) -> str:
    if field.kind == "number":
        statistics = [format_number(value) for value in (field.mean, field.std, field.min, field.max)]
        note = "constant: no information" if field.is_constant else ""
    else:
        statistics = [""] * 4
        note = f"{field.distinct:,} values; " + ", ".join(f"{name} {share:.0%}" for name, share in field.top)
        note = "only one value: no information" if field.is_constant else note
    cells = [field.name, field.kind, f"{field.missing:.1%}", *statistics]
    return f'<tr>{"".join(f"<td>{escaped(cell)}</td>" for cell in cells)}<td class="text">{escaped(note)}</td></tr>'


def _facts(report: Report) -> str:
    items = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in report.facts.items())
    return f'<div class="card"><dl>{items}</dl></div>' if items else ""


def _class(name: str, wanted: bool) -> str:  # noqa: FBT001 -- read as a sentence where it is called
    return f' class="{name}"' if wanted else ""


def _metric_label(name: str) -> str:
    """The name of a metric as the report shows it: `recall[a]` is "recall of a"."""
    base, bracket, rest = name.partition("[")
    return _METRIC_LABELS.get(base, base.replace("_", " ")) + (f" of {rest[:-1]}" if bracket else "")
