"""One HTML page of the results: tables, and pictures of what was caught, missed and falsely raised.

It loads nothing from the network, and runs no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from benchmarks.accuracy.detectors import Readings
from benchmarks.accuracy.judging import OWN, OWN_THRESHOLD, Table, alarm_ranges, load_scorer, mask_of
from benchmarks.accuracy.pictures import KINDS, STYLE, Scored, caption, cases, counted, picture
from benchmarks.accuracy.series import Series
from lstmstream.train.report.html import escaped, table, table_row

TITLES = {
    "nab": "NAB, Numenta's anomaly benchmark",
    "touchstone": "touchstone",
    "gutentag": "GutenTAG",
    "smapmsl": "SMAP and MSL, telemetry of two spacecraft",
}
RULES = {
    "nab": "An alarm: a score of 0.5 and more. Rows before the first that counts are left out.",
    "touchstone": "No threshold is judged here. In the pictures it is the one with the best mean F1 over rows, of those"
    " that alarm at most 5 % of them, fitted on these labels.",
    "smapmsl": "An alarm: 100 rows from where the novelty is 1 and more (drawn as n / (n + 1), so at 0.5).",
}
RULES["gutentag"] = RULES["touchstone"]


@dataclass(frozen=True, slots=True)
class SetResult:
    """All about one set."""

    name: str
    series: Sequence[Series]
    own: Sequence[Readings]  # of builtin:anomaly, from the first row of each file
    table: Table
    source: str  # of the published rows


def write_report(path: Path, data: Path, results: Sequence[SetResult]) -> None:
    """Write the page. Raises OSError."""
    path.write_text(render(data, results), encoding="utf-8")


def render(data: Path, results: Sequence[SetResult]) -> str:
    """The HTML."""
    css = files("lstmstream.train.report").joinpath("static", "report.css").read_text(encoding="utf-8") + STYLE
    links = "".join(f'<a href="#{result.name}">{escaped(TITLES[result.name])}</a>' for result in results)
    sections = "".join(_section(data, result) for result in results)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{OWN} on public benchmarks</title>
<style>{css}</style>
</head>
<body>
<header><h1>{OWN} on public benchmarks</h1>
<p class="soft">One configuration for all series, row by row, no look at later rows. Beside it: rules that read no data,
plain detectors with one configuration each, and figures that others published. docs/accuracy.md has the protocol.</p>
<nav>{links}</nav></header>
<main>{sections}</main>
</body>
</html>
"""


def _section(data: Path, result: SetResult) -> str:
    rows = [table_row(row, "main" if row[0].startswith(OWN) else "") for row in result.table.rows]
    source = f'<p class="soft">Published: {escaped(result.source)}.</p>' if result.source else ""
    scored = scored_series(data, result)
    counts = counted(scored)
    figures = []
    for kind, meaning in KINDS.items():
        chosen = [case for case in cases(scored) if case.kind == kind]
        drawn = "".join(
            f'<figure class="card"><figcaption>{escaped(caption(case))}</figcaption>{picture(case)}</figure>'
            for case in chosen
        )
        shown = f"{len(chosen)} of {counts[kind]}" if chosen else "none"
        figures.append(f'<h3>{escaped(meaning)}: {shown}</h3><div class="plots">{drawn}</div>')
    return (
        f'<section id="{result.name}"><h2>{escaped(TITLES[result.name])}</h2>'
        f'<div class="card">{table(result.table.heads, rows)}</div>{source}'
        f"<p>{escaped(RULES[result.name])} Orange: what is labelled. Red: where an alarm begins. Dashed: the threshold."
        "</p>"
        f"{''.join(figures)}</section>"
    )


def scored_series(data: Path, result: SetResult) -> list[Scored]:
    """With the score and the threshold that the set's alarms come from."""
    pairs = list(zip(result.series, result.own, strict=True))
    if result.name == "nab":
        return [Scored.at(one, reading.score, OWN_THRESHOLD) for one, reading in pairs]
    if result.name == "smapmsl":
        return [
            Scored(one, reading.alarm, OWN_THRESHOLD, alarm_ranges(one, reading.alarm, OWN_THRESHOLD))
            for one, reading in pairs
        ]
    fit = load_scorer(data, "touchstone").fit
    threshold = float(fit([(mask_of(one), reading.rank) for one, reading in pairs]))
    return [Scored.at(one, reading.rank, threshold if np.isfinite(threshold) else 1e30) for one, reading in pairs]
