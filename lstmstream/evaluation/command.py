"""`lstmstream evaluate`: a model file's predictions on data with labels, as metrics with 95 % intervals.

The file is run as the daemon runs it, on the CPU; nothing is fitted. Prints a table, or JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstmstream.config.schema import SilentEvents
from lstmstream.errors import BadRecord, CannotServe
from lstmstream.evaluation.alignment import TaskSpec, align_with_truth, evaluated_rows
from lstmstream.evaluation.descriptions import format_interval, format_number, meaning
from lstmstream.evaluation.intervals import Interval, bootstrap_intervals, resampling_units
from lstmstream.evaluation.metrics import Evaluated
from lstmstream.evaluation.offline import score_events
from lstmstream.evaluation.training_data import Overlap, overlap
from lstmstream.formats.csv_form import FROM_FILE, CsvOptions
from lstmstream.formats.timestamps import format_iso, timestamp_ms, unlikely_times
from lstmstream.history.events import Events, load_events_for_card, order_classes
from lstmstream.history.read import resolve_paths
from lstmstream.model import Card, Model, load_model
from lstmstream.records import Bools, Floats
from lstmstream.serve.step import OnnxStep
from lstmstream.wording import counted

MAX_LISTED = 10  # classes in a message
MAX_LISTED_LABELS = 20  # classes in the table's head
MAX_METRICS = 24  # rows of the table; the metrics of single classes and columns come last


def evaluate(
    model: str,
    data: str,
    *,
    key: str | None = None,
    timestamp: str | None = None,
    target: str | None = None,
    since: str | None = None,
    as_json: bool = False,
    resamples: int = 200,
    k: Collection[int] = (100,),
    csv: CsvOptions = FROM_FILE,
) -> int:
    """Evaluates `model` on `data` (JSONL, CSV or Parquet; a path or a pattern), prints it and returns the exit code.

    Key, time and target are the card's unless given. Events before the time `since` (ISO 8601) are not evaluated: they
    give each key the state that a daemon would have by then. Raises CannotServe where nothing can be evaluated.
    """
    loaded = load_model(model)
    card = loaded.card
    fields: dict[str, Any] = card.training.get("fields", {})
    label = _label_field(card, fields, target)
    key = key or fields.get("key")
    if label is not None and label == key:
        raise CannotServe(f"--target {label}: is the key too, which would tell the label; name another field")
    if not any(char in data for char in "*?[") and not Path(data).exists():
        raise CannotServe(f"{data}: no such file")
    events = load_events_for_card(
        resolve_paths([data], Path(), option="DATA"),
        card,
        key=key,
        timestamp=timestamp or fields.get("timestamp"),
        target=label,
        silent=SilentEvents.model_validate(fields.get("silent") or {}).mark,
        csv=csv,
    )
    for note in events.notes:
        print(f"lstmstream: {note}", file=sys.stderr)
    if not len(events):
        raise CannotServe(f"{data}: has no events; give a file with at least one")
    time_field = timestamp or fields.get("timestamp")
    latest = int(events.timestamp.max())
    if events.timed and time_field and (doubt := unlikely_times(time_field, latest, time.time() * 1000)):
        print(f"lstmstream: {data}: {doubt}", file=sys.stderr)
    spec = _task_spec(card, target)
    score, prediction = score_events(OnnxStep(loaded, device="cpu"), events)
    spec, events = _with_classes(spec, events, prediction, label)
    spec = _with_horizon(spec, prediction)
    mask = None if since is None else _not_before(since, events)
    if events.silent is not None:
        mask = ~events.silent if mask is None else mask & ~events.silent
    evaluated = align_with_truth(spec, events, score, prediction, mask)
    _check_truth(evaluated, data, label)
    metrics = bootstrap_intervals(evaluated, card.threshold, resamples=resamples, k=k)
    units = " and ".join(one.name for one in resampling_units(evaluated))
    summary = _summary(loaded, data, events, evaluated, not_finite=int(np.isnan(score).sum()))
    summary["since"] = since
    in_training = overlap(card.training.get("learned_from") or (), events, evaluated_rows(spec, events, score, mask))
    summary["share_in_training_data"] = None if in_training is None else in_training.share
    if as_json:
        document = {**summary, "resamples": resamples, "resampled": units, "metrics": metrics}
        sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")  # NaN becomes null
    else:
        _print_table(summary, metrics, units, resamples, in_training, per_key=evaluated.per == "sequence")
    return 0


def _not_before(since: str, events: Events) -> Bools:
    """[N] Whether each event is evaluated. Raises CannotServe where none is."""
    if not events.timed:
        raise CannotServe("--from: the data have no timestamps; give --timestamp COLUMN")
    try:
        mask = np.asarray(events.timestamp) >= timestamp_ms(since, "--from")
    except BadRecord as bad:
        raise CannotServe(f"--from {since}: is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12:00Z") from bad
    if not mask.any():
        raise CannotServe(
            f"--from {since}: all events are earlier; the last is of {format_iso(int(events.timestamp.max()))}"
        )
    return mask


def _label_field(card: Card, fields: dict[str, Any], target: str | None) -> str | None:
    if card.task == "forecast":
        return None
    label = target or fields.get("target")
    if label is None and card.task == "classify":
        raise CannotServe(f"model {card.name}: its card does not name the field of the label; give --target COLUMN")
    return label


def _task_spec(card: Card, target: str | None) -> TaskSpec:
    """The card's task, with the fields that --target names for a forecast."""
    spec = TaskSpec.from_card(card)
    if card.task != "forecast" or target is None:
        return spec
    targets = tuple(name.strip() for name in target.split(","))
    for name in targets:
        if name not in spec.numbers:
            known = ", ".join(map(repr, spec.numbers))
            raise CannotServe(f"--target: {name!r} is not a number that the model reads; it reads {known}")
    return replace(spec, targets=targets)


def _with_horizon(spec: TaskSpec, prediction: Floats | None) -> TaskSpec:
    """The horizon from the number of columns: the card of an imported model does not hold it."""
    if spec.task != "forecast" or prediction is None or prediction.shape[1] % max(1, len(spec.targets)):
        return spec
    return replace(spec, horizon=prediction.shape[1] // len(spec.targets))


def _with_classes(
    spec: TaskSpec, events: Events, prediction: Floats | None, label: str | None
) -> tuple[TaskSpec, Events]:
    """Labels as class indices in the card's order; if it has none, numbers by value, then texts alphabetically.

    Raises CannotServe where the labels do not fit the model's number of classes.
    """
    if label is None:
        return spec, events
    classes = spec.classes
    if not classes:
        classes = tuple(sorted(events.classes, key=_by_value))
        columns = 1 if prediction is None or spec.task == "anomaly" else prediction.shape[1]
        if len(classes) > max(2, columns):
            raise CannotServe(
                f"field {label!r} has {counted(len(classes), 'value')}"
                f" ({', '.join(map(repr, classes[:MAX_LISTED]))}), but the"
                f" model has {max(2, columns)} classes; is it the label?"
            )
        if set(classes) <= {"0", "1"}:
            classes = ("0", "1")
        elif columns > len(classes):
            raise CannotServe(
                f"field {label!r} has {counted(len(classes), 'value')}, but the model has"
                f" {counted(columns, 'class', 'classes')}, so their order is"
                " not known; give data with all classes, or a model whose card names them"
            )
    return replace(spec, classes=classes), order_classes(events, classes)


def _by_value(text: str) -> tuple[int, float, str]:
    """A sort key: numbers by value, then texts."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _check_truth(evaluated: Evaluated, data: str, label: str | None) -> None:
    """Raises CannotServe where there are no true values to evaluate against."""
    if not len(evaluated):
        if evaluated.task == "forecast":
            reason = "no event is followed by another of its key with a known value"
        else:
            reason = "the model's output for every event is not finite"
        raise CannotServe(f"{data}: nothing can be evaluated: {reason}; are the key and time columns right?")
    if evaluated.task != "classify":
        return
    if not evaluated.has_labels:
        known = ", ".join(map(repr, evaluated.names[:MAX_LISTED]))
        raise CannotServe(f"{data}: no event has a label: field {label!r} is never one of {known}")
    present = np.unique(evaluated.label[evaluated.labelled])
    if len(present) == 1:
        raise CannotServe(
            f"{data}: all {len(evaluated.labelled)} labelled events are of class {evaluated.names[present[0]]!r}; give"
            " data with at least two classes"
        )


def _summary(loaded: Model, data: str, events: Events, evaluated: Evaluated, *, not_finite: int) -> dict[str, Any]:
    """What was evaluated, as JSON values. `not_finite` is the number of events without a finite output."""
    card = loaded.card
    summary: dict[str, Any] = {
        "model": card.name,
        "version": card.version,
        "fingerprint": card.fingerprint,
        "sha256": loaded.sha256,
        "task": card.task,
        "data": data,
        "events": len(events),
        "keys": len(events.keys),
        "judged": len(evaluated.labelled) if evaluated.per == "sequence" else len(evaluated),
        "unanswered": not_finite,
        "trained_on": bool(events.sha256) and card.training.get("data", {}).get("sha256") == events.sha256,
        "from": format_iso(int(events.timestamp.min())),
        "to": format_iso(int(events.timestamp.max())),
        "threshold": card.threshold,
    }
    if evaluated.has_labels:
        counts = np.bincount(evaluated.label[evaluated.labelled], minlength=2)
        names = evaluated.names if evaluated.task == "classify" else ("0", "1")
        summary["labels"] = {name: int(count) for name, count in zip(names, counts, strict=False)}
    return summary


def _print_table(
    summary: dict[str, Any],
    metrics: dict[str, Interval],
    units: str,
    resamples: int,
    in_training: Overlap | None,
    *,
    per_key: bool,
) -> None:
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(Text(text))  # not as markup: names may hold brackets

    say(f"{summary['model']} {summary['version']} ({summary['task']}) on {summary['data']}")
    say(
        f"{counted(summary['events'], 'event')} of {counted(summary['keys'], 'key')}, {summary['from']} to"
        f" {summary['to']}"
    )
    if per_key:
        say(
            f"{counted(summary['judged'], 'key has', 'keys have')} a label at their last event, where they"
            " are evaluated; alerts, precision,"
            " recall and f1 count every event"
        )
    elif summary["judged"] != summary["events"]:
        say(f"{summary['judged']:,} of them are evaluated")
    if summary["unanswered"]:
        say(f"{summary['unanswered']:,} without a finite output are left out; the daemon would dead-letter them")
    if summary["trained_on"] and in_training is None:  # a model that does not say which events it learned from
        say("The model was trained on these data: expect worse results on new data; see the test split in its report.")
    if in_training is not None and in_training.share:
        say(
            f"warning: {in_training} of these events lie in the data that the model was trained on or its epoch and"
            " threshold were chosen by: expect worse results on new data"
        )
    if summary["since"] is None:
        say(
            "Every key starts with an empty state here, while a daemon remembers its past. If the past matters, give"
            " earlier events too, and evaluate from --from TIME on."
        )
    else:
        say(f"Events before {summary['since']} only give the keys their states.")
    if "labels" in summary:
        labels = list(summary["labels"].items())[:MAX_LISTED_LABELS]
        say("labels: " + ", ".join(f"{name!r} {count:,}" for name, count in labels))
    if summary["threshold"] is not None:
        say(f"threshold: {summary['threshold']:g}")
    table = Table("metric", "value", "95 % interval", "meaning")
    overall_first = sorted(metrics.items(), key=lambda item: "[" in item[0])
    for name, interval in overall_first[:MAX_METRICS]:
        table.add_row(*map(Text, (name, format_number(interval["value"]), format_interval(interval), meaning(name))))
    console.print(table)
    if len(metrics) > MAX_METRICS:
        say(f"{len(metrics) - MAX_METRICS} more metrics of single classes or columns: use --json")
    if resamples:
        say(f"Intervals: {resamples} resamples of {units}.")
