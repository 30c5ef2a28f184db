"""`lstmstream evaluate`: a model file's own answers on data with labels, as measures with 95 % intervals.

The file is run as the daemon runs it, on the processor; nothing is fitted. Prints a table for a person or JSON for a
program.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lstmstream.errors import CannotServe
from lstmstream.model import Card, Model, load_model
from lstmstream.serve.step import OnnxStep
from lstmstream.train.history.data import Events, load_for_card, order_classes
from lstmstream.train.history.read import resolve
from lstmstream.train.measure.intervals import Interval, intervals, units
from lstmstream.train.measure.judge import Goal, judge_events
from lstmstream.train.measure.metrics import Judged
from lstmstream.train.measure.replay import replay
from lstmstream.train.measure.wording import meaning, number, span
from lstmstream.train.values import moment


def evaluate(
    model: str,
    data: str,
    *,
    key: str | None = None,
    timestamp: str | None = None,
    target: str | None = None,
    as_json: bool = False,
    resamples: int = 200,
    k: Collection[int] = (100,),
) -> int:
    """Measures `model` on `data` (CSV, JSONL, Parquet; a path or a pattern) and prints it. Returns the exit code.

    Key, time and target are the card's unless named. Raises CannotServe where there is nothing to measure.
    """
    loaded = load_model(model)
    card = loaded.card
    fields: dict[str, Any] = card.training.get("fields", {})
    label = _label_field(card, fields, target)
    if not any(char in data for char in "*?[") and not Path(data).is_file():
        raise CannotServe(f"{data}: no such file")
    events = load_for_card(
        resolve([data], Path()),
        card,
        key=key or fields.get("key"),
        timestamp=timestamp or fields.get("timestamp"),
        target=label,
    )
    if not len(events.timestamp):
        raise CannotServe(f"{data}: has no events; give a file with some")
    goal = _goal(card, target)
    step = OnnxStep(loaded, device="cpu")
    score, prediction = replay(step, events)
    goal, events = _with_classes(goal, events, prediction, label)
    judged = judge_events(_horizon(goal, prediction), events, score, prediction)
    _check(judged, data, label)
    found = intervals(judged, card.threshold, resamples=resamples, k=k)
    facts = _facts(loaded, data, events, judged, unanswered=int(np.isnan(score).sum()))
    if as_json:
        whole = {**facts, "resamples": resamples, "resampled": units(judged).name, "metrics": found}
        sys.stdout.write(orjson.dumps(whole, option=orjson.OPT_INDENT_2).decode() + "\n")  # NaN becomes null
    else:
        _show(facts, found, units(judged).name, resamples)
    return 0


def _label_field(card: Card, fields: dict[str, Any], target: str | None) -> str | None:
    if card.task == "forecast":
        return None
    label = target or fields.get("target")
    if label is None and card.task == "classify":
        raise CannotServe(f"model {card.name}: its card does not say which field is the label; give --target COLUMN")
    return label


def _goal(card: Card, target: str | None) -> Goal:
    """The card's, with the fields that --target names for a forecast."""
    goal = Goal.of(card)
    if card.task != "forecast" or target is None:
        return goal
    targets = tuple(name.strip() for name in target.split(","))
    for name in targets:
        if name not in goal.numbers:
            known = ", ".join(map(repr, goal.numbers))
            raise CannotServe(f"--target: {name!r} is not among the numbers that the model reads: {known}")
    return replace(goal, targets=targets)


def _horizon(goal: Goal, prediction: Any) -> Goal:
    """A card without training facts does not say how far ahead; the number of columns does."""
    if goal.task != "forecast" or prediction is None or prediction.shape[1] % max(1, len(goal.targets)):
        return goal
    return replace(goal, horizon=prediction.shape[1] // len(goal.targets))


def _with_classes(goal: Goal, events: Events, prediction: Any, label: str | None) -> tuple[Goal, Events]:
    """Labels as class indices in the card's order; without one, numbers by value, then texts by the alphabet."""
    if label is None:
        return goal, events
    classes = goal.classes
    if not classes:
        classes = tuple(sorted(events.classes, key=_by_value))
        columns = 1 if prediction is None or goal.task == "anomaly" else prediction.shape[1]
        if len(classes) > max(2, columns):
            raise CannotServe(
                f"field {label!r} has {len(classes)} values ({', '.join(map(repr, classes[:10]))}), and the model tells"
                f" {max(2, columns)} classes apart; is it the label?"
            )
        if set(classes) <= {"0", "1"}:
            classes = ("0", "1")
        elif columns > len(classes):
            raise CannotServe(
                f"field {label!r} has {len(classes)} values, and the model tells {columns} classes apart, so which is"
                " which is not known; give data with all of them, or a model whose card names them"
            )
    return replace(goal, classes=classes), order_classes(events, classes)


def _by_value(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _check(judged: Judged, data: str, label: str | None) -> None:
    """Whether there is anything to measure."""
    if not len(judged):
        reason = "no event is followed by another of its key with a known value" if judged.task == "forecast" else (
            "the model's answer to every event is not finite")  # fmt: skip
        raise CannotServe(f"{data}: nothing can be measured: {reason}; are the key and time columns right?")
    if judged.task != "classify":
        return
    if not judged.has_labels:
        known = ", ".join(map(repr, judged.names[:10]))
        raise CannotServe(f"{data}: no event has a label: field {label!r} is never one of {known}")
    present = np.unique(judged.label[judged.labelled])
    if len(present) == 1:
        raise CannotServe(
            f"{data}: all {len(judged.labelled)} labelled events are of class {judged.names[present[0]]!r}; give data"
            " with others too, or nothing can be told apart"
        )


def _facts(loaded: Model, data: str, events: Events, judged: Judged, *, unanswered: int) -> dict[str, Any]:
    card = loaded.card
    facts: dict[str, Any] = {
        "model": card.name,
        "version": card.version,
        "fingerprint": card.fingerprint,
        "sha256": loaded.sha256,
        "task": card.task,
        "data": data,
        "events": len(events.timestamp),
        "keys": len(events.keys),
        "judged": len(judged),
        "unanswered": unanswered,
        "trained_on": bool(events.sha256) and card.training.get("data", {}).get("sha256") == events.sha256,
        "from": moment(int(events.timestamp.min())),
        "to": moment(int(events.timestamp.max())),
        "threshold": card.threshold,
    }
    if judged.has_labels:
        counts = np.bincount(judged.label[judged.labelled], minlength=2)
        names = judged.names if judged.task == "classify" else ("0", "1")
        facts["labels"] = {name: int(count) for name, count in zip(names, counts, strict=False)}
    return facts


def _show(facts: dict[str, Any], found: dict[str, Interval], resampled: str, resamples: int) -> None:
    console = Console(highlight=False)

    def say(text: str) -> None:
        console.print(Text(text))  # as it is: names may hold brackets, which are no markup

    say(f"{facts['model']} {facts['version']} ({facts['task']}) on {facts['data']}")
    say(f"{facts['events']:,} events of {facts['keys']:,} keys, {facts['from']} to {facts['to']}")
    if facts["judged"] != facts["events"]:
        say(f"{facts['judged']:,} of them are judged")
    if facts["unanswered"]:
        say(f"{facts['unanswered']:,} have no finite answer and are left out; the daemon would send dead letters")
    if facts["trained_on"]:
        say("These are the data that the model was trained with: expect less of new data; see its report's test part.")
    if "labels" in facts:
        say("labels: " + ", ".join(f"{name!r} {count:,}" for name, count in list(facts["labels"].items())[:20]))
    if facts["threshold"] is not None:
        say(f"threshold: {facts['threshold']:g}")
    table = Table("measure", "value", "95 % interval", "meaning")
    for name, one in found.items():
        table.add_row(*map(Text, (name, number(one["value"]), span(one), meaning(name))))
    console.print(table)
    if resamples:
        say(f"Intervals: {resamples} resamples of {resampled}.")
