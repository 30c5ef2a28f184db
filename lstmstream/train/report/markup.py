"""The report's sections as HTML. Every text that is not written here goes through `text`, which escapes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from lstmstream import __version__
from lstmstream.train.measure.intervals import Interval
from lstmstream.train.measure.metrics import LOWER_IS_BETTER, Judged, alerts, measure
from lstmstream.train.measure.verdict import main_measure
from lstmstream.train.measure.wording import meaning, number, span
from lstmstream.train.report.plots import Plot
from lstmstream.train.report.summary import FieldFacts

if TYPE_CHECKING:
    from lstmstream.train.report.report import Report

TILES = {
    "classify": ("average_precision", "roc_auc", "accuracy", "macro_f1", "recall", "precision", "alerts_per_day"),
    "anomaly": ("average_precision", "roc_auc", "recall", "precision", "alerts_per_day", "alert_share", "mase"),
    "forecast": ("mase", "mae", "rmse"),
}
_MOST_ROWS = 60  # of a table that the user's data make long
_MOST_CLASSES = 20
_WIDE = ("forecast", "time")


def text(value: object) -> str:
    """Escaped for an element or a quoted attribute."""
    return escape(str(value), quote=True)


def page(report: Report, drawn: Sequence[Plot], *, head: str, tail: str, licence: str) -> str:
    """The whole document. `head` and `tail` are HTML of report.py's own making."""
    sections = [
        ("results", "Results", _results(report)),
        ("plots", "What it says", _figures([plot for plot in drawn if plot.id not in {"loss", "metric"}])
                                  + _confusion(report.judged)),
        ("threshold", "Threshold", _threshold(report)),
        ("training", "Training", _figures([plot for plot in drawn if plot.id in {"loss", "metric"}]) + _epochs(report)),
        ("data", "Data", _data(report)),
        ("model", "Model", _facts(report)),
        ("config", "Configuration", f'<div class="card"><pre>{text(report.config)}</pre></div>'),
    ]  # fmt: skip
    present = [(name, title, body) for name, title, body in sections if body]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in present)
    bodies = "".join(f'<section id="{name}"><h2>{title}</h2>{body}</section>' for name, title, body in present)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{head}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(report.name)} {text(report.version)}: training report</title>
</head>
<body>
<header>
<h1>{text(report.name)} <span class="soft">{text(report.version)}</span></h1>
<p class="soft">{_subtitle(report)}</p>
{_answer(report)}{_tiles(report)}{_warnings(report)}
<nav>{links}</nav>
</header>
<main>{bodies}</main>
<footer>
<p>Made by lstmstream {text(__version__)}. This file needs no network and sends nothing.</p>
<details><summary>Licence of uPlot 1.6.32, which draws the plots</summary><pre>{text(licence)}</pre></details>
</footer>
{tail}
</body>
</html>
"""


def _subtitle(report: Report) -> str:
    summary = report.summary
    told = {"classify": "Classifies", "forecast": "Forecasts", "anomaly": "Finds anomalies"}[report.task]
    return (
        f"{told} with {'an' if report.cell == 'LSTM' else 'a'} {text(report.cell)} &middot; {summary.rows:,} events of"
        f" {summary.keys:,} keys &middot; {_when(summary.start_ms)} to {_when(summary.end_ms)} UTC"
    )


def _answer(report: Report) -> str:
    verdict = report.verdict
    kind = {True: " yes", False: " no", None: ""}[verdict.worth]
    return (
        f'<div class="card answer{kind}"><strong>Is the {text(report.cell)} worth it?'
        f" <span>{text(verdict.answer)}.</span></strong><p>{text(verdict.text)}</p></div>"
    )


def _tiles(report: Report) -> str:
    found = report.metrics.get(report.part, {})
    names = [name for name in TILES[report.task] if name in found][:5]
    tiles = "".join(
        f'<div class="tile"><small>{text(_plain(name))}</small><b>{text(number(found[name]["value"]))}</b>'
        f"<small>{_interval(found[name])}</small></div>"
        for name in names
    )
    return f'<div class="tiles">{tiles}</div>' if tiles else ""


def _interval(one: Interval) -> str:
    return f"95 %: {text(span(one))}" if span(one) else "&nbsp;"


def _warnings(report: Report) -> str:
    if not report.warnings:
        return ""
    items = "".join(f"<li>{text(warning)}</li>" for warning in report.warnings)
    return f'<div class="card warnings"><h3>Look at this first</h3><ul>{items}</ul></div>'


def _results(report: Report) -> str:
    """The model beside the baselines, measure by measure, and the other part beside it."""
    found = report.metrics.get(report.part, {})
    others = {name: measure(judged) for name, judged in report.baselines.items()}
    validation = report.metrics.get("validation", {}) if report.part == "test" else {}
    chief = main_measure(report.judged)
    rows: dict[bool, list[str]] = {False: [], True: []}  # by whether it is of one column or class
    for name in found:
        values = [found[name]["value"], *(other.get(name, np.nan) for other in others.values())]
        if name.startswith("score_"):
            values[1:] = [np.nan] * len(others)  # their scores are of another kind
        best, single = _best(name, values), "[" in name
        explained = "" if single else f"<small>{text(meaning(name))}</small>"
        cells = [
            f"<td>{text(_plain(name))}{explained}</td>",
            f"<td{_class('best', best == 0)}>{text(number(values[0]))}<small>{text(span(found[name]))}</small></td>",
            *(f"<td{_class('best', best == i)}>{text(number(value))}</td>" for i, value in enumerate(values) if i),
        ]
        if validation:
            cells.append(f"<td>{text(number(validation[name]['value'])) if name in validation else '-'}</td>")
        rows[single].append(f"<tr{_class('named', name == chief)}>{''.join(cells)}</tr>")
    heads = ["measure", report.cell, *others, *([f"{report.cell} on validation"] if validation else [])]
    note = (
        f"On the {report.part} part, {len(report.judged):,} events. Small print under a value: its 95 % interval."
        " Bold: the best of the row."
    )
    if report.part == "validation":
        note += " There is no test part, and the validation part chose epoch and threshold: expect a little less."
    more = ""
    if rows[True]:
        what = "class" if report.task == "classify" else "column of the forecast"
        table = _table(heads, rows[True][:_MOST_ROWS])
        more = f'<details class="card"><summary>Each {what}</summary>{table}</details>'
    return f'<p class="soft">{text(note)}</p><div class="card">{_table(heads, rows[False])}</div>{more}'


def _best(name: str, values: Sequence[float]) -> int:
    if name.startswith("alert") or np.isfinite(values).sum() < 2:
        return -1
    lower = name.partition("[")[0] in LOWER_IS_BETTER
    return int(np.nanargmin(values) if lower else np.nanargmax(values))


def _figures(drawn: Sequence[Plot]) -> str:
    figures = []
    names = list(dict.fromkeys(plot.id for plot in drawn))
    alone = names and len([name for name in names if name not in _WIDE]) % 2 and names[-1]  # nothing stands beside it
    for name in names:
        same = [plot for plot in drawn if plot.id == name]
        choices = "".join(f"<option>{text(plot.choice)}</option>" for plot in same) if len(same) > 1 else ""
        select = f'<select aria-label="series">{choices}</select>' if choices else ""
        wide = " wide" if name in _WIDE or name == alone else ""
        figures.append(
            f'<figure class="card{wide}" data-plot="{text(name)}"><h3>{text(same[0].title)}</h3>'
            f'<figcaption>{text(same[0].caption)}</figcaption>{select}<div class="plot"></div></figure>'
        )
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _confusion(judged: Judged) -> str:
    """Of each class, what it was taken for."""
    if judged.task != "classify" or judged.is_binary or judged.prediction is None or not judged.has_labels:
        return ""
    rows, count = judged.labelled, len(judged.names)
    if count > _MOST_CLASSES:
        return ""
    said = judged.prediction[rows].argmax(axis=1)
    table = np.bincount(judged.label[rows] * count + said, minlength=count * count).reshape(count, count)
    lines = []
    for name, line in zip(judged.names, table, strict=True):
        shares = line / max(1, line.sum())
        cells = "".join(
            f'<td class="h{min(4, int(np.ceil(share * 4)))}">{n}</td>' for n, share in zip(line, shares, strict=True)
        )
        lines.append(f"<tr><td>{text(name)}</td>{cells}</tr>")
    note = "Rows: the class that it was. Columns: the class that was said. The darker, the larger the share of the row."
    return (
        f'<div class="card confusion"><h3>Which class is taken for which</h3><figcaption>{note}</figcaption>'
        f"{_table(['', *judged.names], lines)}</div>"
    )


def _threshold(report: Report) -> str:
    """Thresholds chosen on validation by how many alerts they give, and what each gives on the judged part."""
    judged = report.judged
    unasked = report.threshold is None and not judged.is_binary
    if report.task == "forecast" or unasked or not len(report.validation):
        return ""
    scores = np.unique(report.validation.score)
    shares = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    cuts = {float(np.quantile(report.validation.score, 1 - share, method="higher")) for share in shares}
    cuts = {cut for cut in cuts if cut > scores[0]}
    if report.threshold is not None:
        cuts.add(float(np.float32(report.threshold)))
    lines = []
    for cut in sorted(cuts, reverse=True):
        values = measure(judged, cut)
        chosen = report.threshold is not None and cut == float(np.float32(report.threshold))
        columns = [values.get(name, np.nan) for name in ("alerts_per_day", "precision", "recall", "f1")]
        count = int(alerts(judged, cut).sum())
        cells = [f"{number(cut)}{' (chosen)' if chosen else ''}", f"{count:,}", *map(number, columns)]
        lines.append(f"<tr{_class('chosen', chosen)}>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>")
    note = f"Candidates come from the validation part; what they give is counted on the {report.part} part."
    heads = ["threshold", "alerts", "alerts a day", "precision", "recall", "F1"]
    return (
        f'<p>{text(report.threshold_rule)}</p><p class="soft">{note}</p><div class="card">{_table(heads, lines)}</div>'
    )


def _epochs(report: Report) -> str:
    if not report.history:
        return ""
    seconds = sum(line.get("seconds", 0.0) for line in report.history)
    kept = f"epoch {report.chosen_epoch} was kept" if report.chosen_epoch else "none was kept"
    names = [name for name in ("train_loss", "validation_loss", "metric", "learning_rate", "seconds")
             if any(np.isfinite(line.get(name, np.nan)) for line in report.history)]  # fmt: skip
    lines = []
    for line in report.history[:_MOST_ROWS]:
        chosen = int(line["epoch"]) == report.chosen_epoch
        cells = "".join(f"<td>{text(number(line.get(name, np.nan)))}</td>" for name in names)
        lines.append(f"<tr{_class('chosen', chosen)}><td>{int(line['epoch'])}</td>{cells}</tr>")
    table = _table(["epoch", *(name.replace("_", " ") for name in names)], lines)
    return (
        f'<p class="soft after">{len(report.history)} epochs in {_duration(seconds)}; {kept}.</p>'
        f'<details class="card"><summary>Every epoch</summary>{table}</details>'
    )


def _data(report: Report) -> str:
    summary = report.summary
    few, median, most = summary.events_per_key
    each = f"{few:,} to {most:,}, half of them {median:,.0f} or fewer" if few < most else f"{few:,}"
    said = f"{summary.rows:,} events of {summary.keys:,} keys. Events of a key: {each}."
    parts = []
    labels, binary = any(part.labelled for part in report.parts), report.judged.is_binary
    for part in report.parts:
        cells = [part.name, f"{part.rows:,}", f"{part.keys:,}", _when(part.start_ms), _when(part.end_ms)]
        if labels:
            share = f" ({part.positives / part.labelled:.3%})" if part.labelled else ""
            cells += [f"{part.labelled:,}", *([f"{part.positives:,}{share}"] if binary else [])]
        parts.append(_row(cells))
    heads = [
        "part",
        "events",
        "keys",
        "from (UTC)",
        "to (UTC)",
        *(["labelled", "positive"][: 1 + binary] if labels else []),
    ]
    fields = [_field(one) for one in summary.fields[:_MOST_ROWS]]
    table = _table(["field", "kind", "missing", "mean", "std. deviation", "least", "most", ("notes", "text")], fields)
    return (
        f'<p>{text(said)}</p><div class="card"><h3>Parts</h3>{_table(heads, parts)}</div>'
        f'<div class="card"><h3>Fields</h3>{table}</div>'
    )


def _field(one: FieldFacts) -> str:
    if one.kind == "number":
        numbers = [number(value) for value in (one.mean, one.spread, one.low, one.high)]
        note = "constant: it tells nothing" if one.is_constant else ""
    else:
        numbers = [""] * 4
        note = f"{one.values:,} values; " + ", ".join(f"{name} {share:.0%}" for name, share in one.top)
        note = "one value: it tells nothing" if one.is_constant else note
    cells = [one.name, one.kind, f"{one.missing:.1%}", *numbers]
    return f'<tr>{"".join(f"<td>{text(cell)}</td>" for cell in cells)}<td class="text">{text(note)}</td></tr>'


def _facts(report: Report) -> str:
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in report.facts.items())
    return f'<div class="card"><dl>{items}</dl></div>' if items else ""


def _table(heads: Iterable[str | tuple[str, str]], rows: Iterable[str]) -> str:
    titles = "".join(
        f"<th>{text(head)}</th>" if isinstance(head, str) else f'<th class="{head[1]}">{text(head[0])}</th>'
        for head in heads
    )
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"


def _class(name: str, wanted: bool) -> str:  # noqa: FBT001 -- read as a sentence where it is called
    return f' class="{name}"' if wanted else ""


def _plain(name: str) -> str:
    """A measure's name for a person."""
    base, bracket, rest = name.partition("[")
    known = {
        "roc_auc": "ROC AUC",
        "brier": "Brier score",
        "mae": "MAE",
        "rmse": "RMSE",
        "mase": "MASE",
        "f1": "F1",
        "macro_f1": "macro F1",
    }
    return known.get(base, base.replace("_", " ")) + (f" of {rest[:-1]}" if bracket else "")


def _when(ms: int | None) -> str:
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
