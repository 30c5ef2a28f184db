"""Sections of the report about alerts: the thresholds to choose from, and the events with the highest scores."""

from __future__ import annotations

import numpy as np

from lstmstream.evaluation.descriptions import format_interval, format_number
from lstmstream.evaluation.intervals import alert_rate_intervals
from lstmstream.evaluation.metrics import Evaluated, alerts, compute_metrics
from lstmstream.evaluation.thresholds import ThresholdRule, choose_threshold
from lstmstream.formats.timestamps import format_iso
from lstmstream.train.report.html import escaped, table, table_row
from lstmstream.train.report.report import Report

MAX_ALERT_SHARE = 0.3  # of the events, for the lowest threshold in the table unless the chosen one is lower
MAX_STEP = 1.35  # from one row's number of alerts to the next, on the evaluated split
TOP_EVENTS = 20
MAX_COLUMNS = 4  # of forecast values beside an event


def threshold_section(report: Report) -> str:
    """Candidate thresholds from the scores of the validation split, with their metrics on the evaluated split."""
    evaluated = report.evaluated
    not_wanted = report.threshold is None and not evaluated.is_binary
    if report.task == "forecast" or not_wanted or not len(report.validation):
        return ""
    chosen = None if report.threshold is None else float(np.float32(report.threshold))
    best = _best_f1(report.validation)
    marked = [one for one in (chosen, best) if one is not None]
    candidates = candidate_thresholds(report.validation, evaluated, marked)
    timed, labelled = evaluated.days > 0, evaluated.has_labels
    lines = []
    for candidate, rate in zip(candidates, alert_rate_intervals(evaluated, candidates), strict=True):
        values = compute_metrics(evaluated, candidate)
        notes = [*(["chosen"] if candidate == chosen else []), *(["best F1"] if candidate == best else [])]
        label = format_number(candidate) + (f" ({', '.join(notes)})" if notes else "")
        cells = [label, f"{int(alerts(evaluated, candidate).sum()):,}"]
        cells += [format_number(rate["value"]), format_interval(rate) or "-"] if timed else []
        cells += [format_number(values.get(name, np.nan)) for name in ("precision", "recall", "f1")] if labelled else []
        lines.append(table_row(cells, "chosen" if candidate == chosen else ""))
    note = f"Thresholds come from the validation split; their alerts are counted on the {report.split_name} split."
    if evaluated.stream_share < 1:
        note += (
            f" That split is {evaluated.stream_share:.1%} of the stream in its time; alerts per day are those of the"
            " whole stream."
        )
    if evaluated.per == "sequence":
        note += (
            " Alerts and precision count every event, as the daemon does; recall is the fraction of positive keys with"
            " an alert at any event."
        )
    if best is not None:
        note += " Best F1: chosen on the validation split."
    heads = [
        "threshold",
        "alerts",
        *(["alerts per day", "95 % interval"] if timed else []),
        *(["precision", "recall", "F1"] if labelled else []),
    ]
    texts = f'<p>{escaped(report.threshold_rule)}</p><p class="soft">{note}</p>'
    return f'{texts}<div class="card">{table(heads, lines)}</div>'


def candidate_thresholds(validation: Evaluated, evaluated: Evaluated, always: list[float]) -> list[float]:
    """Thresholds by falling value: those of `always`, and as few scores of `validation` as leave no gaps.

    From one to the next the alerts in `evaluated` grow by a factor of at most MAX_STEP, or by one, or there is no score
    of `validation` between the two: scores may be spread in another way there.
    """
    falling = np.sort(validation.score)[::-1]
    wanted = np.array(always, np.float32)
    lowest = min([falling[max(1, int(MAX_ALERT_SHARE * len(falling))) - 1], *wanted])
    scores = falling[(falling >= lowest) & (falling > falling[-1])]  # the last one alerts on every event
    pool = np.unique(np.concatenate([scores, wanted]))[::-1]
    rising = np.sort(evaluated.score)
    count = len(rising) - np.searchsorted(rising, pool)  # alerts of each, rising
    kept = sorted({0, len(pool) - 1, *np.flatnonzero(np.isin(pool, wanted)).tolist()}) if len(pool) else []
    chosen = kept[:1]
    for end in kept[1:]:
        while chosen[-1] < end:
            fewer = int(count[chosen[-1]])
            reach = int(np.searchsorted(count, max(MAX_STEP * fewer, fewer + 1), side="right")) - 1
            chosen.append(min(end, max(reach, chosen[-1] + 1)))
    return [float(threshold) for threshold in pool[chosen]]


def _best_f1(validation: Evaluated) -> float | None:
    """The threshold with the highest F1 on the validation split; None where its labels do not determine it."""
    positives = int((validation.label > 0).sum())
    if not 0 < positives < len(validation.labelled):
        return None
    threshold, _ = choose_threshold(validation, ThresholdRule("f1"))
    return None if threshold is None else float(np.float32(threshold))


def top_events_section(report: Report) -> str:
    """The events with the highest scores, to look up in the data."""
    evaluated = report.evaluated
    if report.task == "forecast" or not len(evaluated):
        return ""
    highest = np.argsort(-evaluated.score, kind="stable")[:TOP_EVENTS]
    numbered = len(report.event_numbers) == len(evaluated)
    expected = evaluated.names[:MAX_COLUMNS] if report.task == "anomaly" and numbered and evaluated.truth.size else ()
    lines, labels = [], evaluated.alert_label
    for row in highest.tolist():
        cells: list[object] = [report.keys[evaluated.sequence[row]]]
        cells += [format_iso(int(evaluated.timestamp[row]))] if evaluated.timed else []
        cells += [f"{int(report.event_numbers[row]):,}"] if numbered else []
        cells.append(format_number(float(evaluated.score[row])))
        if report.threshold is not None:
            cells.append("yes" if evaluated.score[row] >= np.float32(report.threshold) else "no")
        if evaluated.has_labels:
            label = int(labels[row])
            cells.append("-" if label < 0 else _class_name(evaluated, label))
        cells += [_observed(report, row, column) for column in range(len(expected))]
        lines.append(table_row(cells))
    heads = [
        "key",
        *(["time (UTC)"] if evaluated.timed else []),
        *(["event of the key"] if numbered else []),
        "score",
        *(["alert"] if report.threshold is not None else []),
        *(["label"] if evaluated.has_labels else []),
        *(f"{name.removesuffix(' t+1')} (expected)" for name in expected),
    ]
    note = f"The {len(lines)} highest scores of the {report.split_name} split."
    if numbered:
        note += " Event 1 of a key is its earliest in the data."
    if expected:
        note += " Expected: the model's forecast at the key's previous event."
    return f'<p class="soft">{note}</p><div class="card">{table(heads, lines)}</div>'


def _class_name(evaluated: Evaluated, label: int) -> str:
    return str(label) if evaluated.task == "anomaly" else evaluated.names[label]


def _observed(report: Report, row: int, column: int) -> str:
    """The value of a forecast column at the event and, in brackets, its forecast at the event before."""
    evaluated = report.evaluated
    follows = (
        row > 0
        and evaluated.sequence[row - 1] == evaluated.sequence[row]
        and report.event_numbers[row - 1] + 1 == report.event_numbers[row]
    )
    if not follows or evaluated.prediction is None:
        return "-"
    value, forecast = float(evaluated.truth[row - 1, column]), float(evaluated.prediction[row - 1, column])
    return f"{format_number(value)} ({format_number(forecast)})"
