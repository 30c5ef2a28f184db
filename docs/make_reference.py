"""Rewrites the generated tables of docs/reference.md from the program itself: options and metrics.

    python docs/make_reference.py

The text around the tables is written by hand and not changed. A test checks that the file is up to date.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry

from lstmstream.config import Option, options
from lstmstream.serve.metrics import Metrics
from lstmstream.train.schema import training_options
from lstmstream.workers.metrics import MergedMetrics, rule_name, worker_metrics

REFERENCE = Path(__file__).parent / "reference.md"
PROPERTIES = "kafka.properties."
_UNITS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))


def render(text: str) -> str:
    """Return `text` with every table between `<!-- generated: NAME -->` and `<!-- end -->` generated again."""
    tables = {"options": _options(), "properties": _properties(), "training": _training(), "metrics": _metrics()}
    tables["workers"] = _worker_metrics()
    for name, table in tables.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->\n"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{REFERENCE.name} has no place for {name}: `{begin.strip()}` to `{end.strip()}`")
        text = before + begin + table + end + after
    return text


def _options() -> str:
    rows = [
        (f"`{option.path}`", option.kind, _default(option, durations=True), option.description)
        for option in options()
        if not option.path.startswith(PROPERTIES)
    ]
    return _table(("key", "values", "default", "meaning"), rows)


def _training() -> str:
    rows = [
        (f"`{option.path}`", option.kind, _default(option), option.description)
        for option in training_options()
        if not option.path.startswith("kafka.")
    ]
    return _table(("key", "values", "default", "meaning"), rows)


def _properties() -> str:
    rows = [
        (f"`{option.path.removeprefix(PROPERTIES)}`", option.kind, option.description)
        for option in options()
        if option.path.startswith(PROPERTIES)
    ]
    return _table(("property", "values", "meaning"), rows)


def _metrics() -> str:
    rows = []
    for family in Metrics(CollectorRegistry()).registry.collect():
        if not family.name.startswith("lstmstream_"):
            continue  # process_*: prometheus-client's own
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, rule_name(family.type, family.name), family.documentation))
    return _table(("metric", "type", "workers", "meaning"), rows)


def _worker_metrics() -> str:
    rows = []
    for family in worker_metrics((), MergedMetrics()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, family.documentation))
    return _table(("metric", "type", "meaning"), rows)


def _default(option: Option, *, durations: bool = False) -> str:
    """The default as it is written in the file. `durations`: a float is a duration in seconds."""
    value = option.default
    if option.required:
        return "required"
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float) and (durations or option.path == "split.gap"):
        return f"`{_duration(round(value * 1000))}`"
    if option.path.endswith("bytes") and isinstance(value, int) and value % 10**6 == 0:
        return f"`{value // 10**6}MB`"
    return f"`{value}`"


def _duration(milliseconds: int) -> str:
    """A duration in the largest unit that divides it."""
    for unit, size in _UNITS:
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return "0ms"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    REFERENCE.write_text(render(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
