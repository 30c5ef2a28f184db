"""Pictures of what the detector caught, missed and falsely raised, as SVG: the series above, its score below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

import numpy as np

from benchmarks.accuracy.series import Numbers, Range, Series, ranges_of

WIDTH, VALUE_HEIGHT, SCORE_HEIGHT, GAP = 560, 130, 60, 14
LEAST_MARGIN_ROWS = 300  # of the series on both sides
MAX_CHANNELS = 4
MAX_CASES = 4  # of each kind
KINDS = {
    "caught": "Labelled, and an alarm in it",
    "missed": "Labelled, and no alarm in it",
    "false": "An alarm that touches no label",
}
STYLE = """
  h3 { margin: 20px 0 8px }
  svg { width: 100%; height: auto; display: block }
  .frame { fill: none; stroke: var(--line) }
  .truth { fill: var(--s1); opacity: 0.18 }
  .value { fill: none; stroke: var(--s0); stroke-width: 1.1 }
  .value.c1 { stroke: var(--s2) } .value.c2 { stroke: var(--s4) } .value.c3 { stroke: var(--s5) }
  .score { fill: none; stroke: var(--s3); stroke-width: 1.1 }
  .threshold { stroke: var(--bad); stroke-dasharray: 4 3 }
  .alarm { stroke: var(--bad); stroke-width: 1.4 }
  svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
"""


@dataclass(frozen=True, slots=True)
class Scored:
    """A series with a score for each row, and the alarms that count."""

    series: Series
    score: Numbers  # [T], NaN before the first
    threshold: float
    alarms: tuple[Range, ...]

    @classmethod
    def at(cls, series: Series, score: Numbers, threshold: float) -> Scored:
        """An alarm where the score is at the threshold."""
        reached = np.nan_to_num(score, nan=-np.inf) >= threshold
        reached[: series.first] = False
        return cls(series, score, threshold, ranges_of(reached))


@dataclass(frozen=True, slots=True)
class Case:
    """A stretch of one series."""

    kind: str  # of KINDS
    scored: Scored
    rows: Range  # the label, or the false alarm


def cases(scored: Sequence[Scored]) -> list[Case]:
    """Some of each kind, from as many series as there are."""
    found = []
    for kind in KINDS:
        by_series = [[Case(kind, one, rows) for rows in _rows_of(kind, one)] for one in scored]
        in_turn = [case for layer in zip_longest(*by_series) for case in layer if case is not None]
        apart = np.linspace(0, len(in_turn) - 1, min(MAX_CASES, len(in_turn))).round().astype(int)
        found += [in_turn[number] for number in apart]
    return found


def counted(scored: Sequence[Scored]) -> dict[str, int]:
    """How many of each kind there are."""
    return {kind: sum(len(_rows_of(kind, one)) for one in scored) for kind in KINDS}


def _rows_of(kind: str, one: Scored) -> list[Range]:
    truth = [rows for rows in one.series.truth if rows[1] >= one.series.first]
    if kind == "false":
        return [alarm for alarm in one.alarms if not any(_touch(alarm, rows) for rows in truth)]
    return [rows for rows in truth if any(_touch(alarm, rows) for alarm in one.alarms) == (kind == "caught")]


def _touch(one: Range, other: Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def picture(case: Case) -> str:
    """The SVG text; colours are those of the page."""
    scored, (first, last) = case.scored, case.rows
    margin = max(LEAST_MARGIN_ROWS, last - first)
    start, end = max(0, first - margin), min(len(scored.series.x), last + margin + 1)
    scale = WIDTH / (end - start)

    def x_of(row: float) -> float:
        return (min(max(row, start), end) - start) * scale

    top, bottom = VALUE_HEIGHT + GAP, VALUE_HEIGHT + GAP + SCORE_HEIGHT
    score = np.nan_to_num(scored.score[start:end])
    high = max(float(score.max()), scored.threshold) * 1.1
    low = min(float(score.min()), 0.0)
    y_threshold = bottom - (scored.threshold - low) / (high - low) * SCORE_HEIGHT
    title = f"{scored.series.name}, rows {start} to {end - 1}: {KINDS[case.kind].lower()}"
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {bottom + 18}" role="img" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(title)}</title>",
    ]
    for begin, stop in scored.series.truth:
        if begin < end and stop >= start:
            width = max(x_of(stop + 1) - x_of(begin), 1.5)
            parts.append(f'<rect class="truth" x="{x_of(begin):.1f}" width="{width:.1f}" y="0" height="{bottom}"/>')
    for number, channel in enumerate(_channels(scored.series, start, end)):
        line = _line(scored.series.x[start:end, channel].astype(np.float64), 4, VALUE_HEIGHT - 4)
        parts.append(f'<path class="value c{number}" d="{line}"/>')
    parts.append(f'<path class="score" d="{_line(score, top, bottom, low, high)}"/>')
    parts.append(f'<path class="threshold" d="M0 {y_threshold:.1f}H{WIDTH}"/>')
    for begin, stop in scored.alarms:
        if begin < end and stop >= start:
            parts.append(f'<path class="alarm" d="M{x_of(begin):.1f} 0v{VALUE_HEIGHT}M{x_of(begin):.1f} {top}v8"/>')
    for y, height in ((0, VALUE_HEIGHT), (top, SCORE_HEIGHT)):
        parts.append(f'<rect class="frame" x="0.5" y="{y + 0.5}" width="{WIDTH - 1}" height="{height - 1}"/>')
    parts.append(f'<text x="2" y="{bottom + 13}">row {start:,}</text>')
    parts.append(f'<text x="{WIDTH - 2}" y="{bottom + 13}" text-anchor="end">row {end - 1:,}</text>')
    return "".join([*parts, "</svg>"])


def caption(case: Case) -> str:
    """Which series, and how many of its channels are drawn."""
    series = case.scored.series
    channels = series.x.shape[1]
    drawn = f"; the {MAX_CHANNELS} that move most of {channels} channels" if channels > MAX_CHANNELS else ""
    return f"{series.name}, from row {case.rows[0]:,}{drawn}"


def _channels(series: Series, start: int, end: int) -> list[int]:
    """Those whose values here are farthest from their usual ones."""
    x = series.x.astype(np.float64)
    usual, spread = np.median(x, axis=0), x.std(axis=0) + 1e-30
    away = (np.abs(x[start:end] - usual) / spread).max(axis=0)
    return sorted(np.argsort(-away, kind="stable")[:MAX_CHANNELS].tolist())


def _line(values: Numbers, top: float, bottom: float, low: float | None = None, high: float | None = None) -> str:
    """A path through lowest and highest value of each pixel column, `low` at the bottom and `high` at the top."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    columns = np.array_split(np.arange(len(values)), min(WIDTH, len(values)))
    points = []
    for rows in columns:
        ends = sorted({int(rows[values[rows].argmin()]), int(rows[values[rows].argmax()])})
        for row in ends:
            share = (values[row] - low) / (high - low) if high > low else 0.5
            points.append(f"{(row + 0.5) * WIDTH / len(values):.1f} {bottom - share * (bottom - top):.1f}")
    return f"M{'L'.join(points)}"
