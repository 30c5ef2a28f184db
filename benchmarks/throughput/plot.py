"""Horizontal bars with ranges as an SVG file, readable on a light and on a dark page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from benchmarks.throughput.spread import Spread

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 960, 370, 130
TOP, ROW, BAR = 64, 28, 16
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .note, .tick { font-size: 11px; fill: #59636e }
  .paper { fill: #ffffff }
  .value { stroke: #ffffff; stroke-width: 4; paint-order: stroke }
  .grid { stroke: #d1d9e0 }
  .range { stroke: #1f2328; stroke-width: 1.5 }
  .own { fill: #2f74d0 }
  .other { fill: #9aa4af }
  .reference { fill: #c27c1a }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .note, .tick { fill: #9198a1 }
    .paper { fill: #0d1117 }
    .value { stroke: #0d1117 }
    .grid { stroke: #30363d }
    .range { stroke: #e6edf3 }
    .own { fill: #4c8dea }
    .other { fill: #6e7781 }
    .reference { fill: #d29922 }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One line; `kind` is `own`, `other` or `reference`."""

    label: str
    spread: Spread
    kind: str


def bar_chart(title: str, note: str, bars: Sequence[Bar]) -> str:
    """The SVG text. Bars begin at zero, so that lengths compare; a thin line shows the range."""
    space = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    largest = max((bar.spread.high for bar in bars), default=1.0)
    interval = tick_interval(largest)
    scale = space / largest
    height = TOP + ROW * len(bars) + 34
    bottom = TOP + ROW * len(bars)
    size = f'width="{WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="paper" {size}/>',
        _text(16, 28, title, "title"),
        _text(16, 48, note, "note"),
    ]
    for number in range(int(largest / interval) + 1):
        x = LABEL_WIDTH + number * interval * scale
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        lines.append(_text(x, bottom + 16, f"{number * interval:,.0f}", "tick", anchor="middle"))
    for number, bar in enumerate(bars):
        lines += _bar(bar, TOP + number * ROW, scale)
    return "\n".join([*lines, "</svg>", ""])


def tick_interval(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are 4 to 10 ticks."""
    power = 10.0 ** math.floor(math.log10(largest / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if largest / (power * factor) <= 10)


def plain_label(markdown: str) -> str:
    """Without Markdown's emphasis."""
    return re.sub(r"\*\*", "", markdown)


def _bar(bar: Bar, top: float, scale: float) -> list[str]:
    median, low, high = (LABEL_WIDTH + value * scale for value in (bar.spread.median, bar.spread.low, bar.spread.high))
    y, middle = top + (ROW - BAR) / 2, top + ROW / 2
    length = max(1.0, median - LABEL_WIDTH)
    lines = [
        _text(LABEL_WIDTH - 10, middle + 4, bar.label, "label", anchor="end"),
        f'<rect class="{bar.kind}" x="{LABEL_WIDTH}" y="{y:.1f}" width="{length:.1f}" height="{BAR}" rx="2"/>',
    ]
    if high > low:
        ends = "".join(f"M{x:.1f} {middle - 4:.1f}v8" for x in (low, high))
        lines.append(f'<path class="range" fill="none" d="M{low:.1f} {middle:.1f}H{high:.1f}{ends}"/>')
    lines.append(_text(max(median, high) + 8, middle + 4, f"{bar.spread.median:,.0f}", "value"))
    return lines


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
