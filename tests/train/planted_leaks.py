"""Training data with planted leaks: a field, a key or a split that tells what is not known when the event happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

KEYS, EVENTS = 100, 30
START_S = 1_600_000_000
Frame = pl.DataFrame
Plant = Callable[[Frame, np.random.Generator], Frame]


@dataclass(frozen=True)
class Leak:
    """A leak, and the beginning of the warning that names it. `features` of the planted columns are added."""

    name: str
    plant: Plant
    said: str  # part of the warning
    numbers: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    sections: dict[str, Any] = field(default_factory=dict)
    world: str = "purchases"  # or "sensors"


def purchases(seed: int = 0) -> Frame:
    """A label for each event, 1 for about an eighth: most of those whose amount is twice that of the event before."""
    random = np.random.default_rng(seed)
    rows = []
    shops = ["food", "fuel", "web"]
    for key in range(KEYS):
        time, last = START_S + int(random.integers(20_000)), 10.0
        for _ in range(int(random.integers(EVENTS // 2, EVENTS * 3 // 2))):
            time += int(random.exponential(6 * 3600)) + 1
            amount = float(np.exp(random.normal(2, 0.7)))
            fraud = random.random() < (0.7 if amount > 2.4 * last else 0.04)
            rows.append((f"c{key}", time, amount, random.normal(), str(random.choice(shops)), int(fraud)))
            last = amount
    names = ["customer", "time", "amount", "balance", "shop", "fraud"]
    return pl.DataFrame(rows, schema=names, orient="row").sort("time")


def sensors(seed: int = 0) -> Frame:
    """Values to forecast: of each machine an autoregression, with a second sensor of its own."""
    random = np.random.default_rng(seed)
    level, other = np.zeros(KEYS // 5), np.zeros(KEYS // 5)
    rows = []
    for step in range(150):
        level = 0.8 * level + random.normal(size=len(level))
        other = 0.5 * other + random.normal(size=len(level))
        rows += [(f"c{key}", START_S + 60 * step, level[key], other[key]) for key in range(len(level))]
    return pl.DataFrame(rows, schema=["customer", "time", "level", "other"], orient="row")


def settings(leak: Leak | None, path: list[str], world: str = "purchases") -> dict[str, Any]:
    """The configuration for a world, with the fields of the leak."""
    if world == "purchases":
        tree: dict[str, Any] = {
            "task": "classify",
            "features": {
                "numbers": [{"name": "amount", "log": True}, "balance"],
                "categories": ["shop"],
                "elapsed": True,
            },
            "target": {"field": "fraud"},
        }
    else:
        tree = {"task": "forecast", "features": {"numbers": ["level", "other"]}, "target": {"fields": ["level"]}}
    tree |= {
        "name": "m",
        "data": {"path": path, "key": "customer", "timestamp": "time"},
        "model": {"hidden": 12},
        "training": {"epochs": 8, "batch": 16, "steps": 16, "learning_rate": 0.02},
    }
    if leak is None:
        return tree
    for name, values in leak.sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    features = dict(tree["features"])
    features["numbers"] = [*features.get("numbers", []), *leak.numbers]
    features["categories"] = [*features.get("categories", []), *leak.categories]
    return tree | {"features": features}


def over_key(expression: pl.Expr) -> pl.Expr:
    return expression.over("customer")


def add(**columns: pl.Expr) -> Plant:
    """Plants columns that are computed from the others."""
    return lambda frame, _: frame.with_columns(**columns)


def with_note(frame: Frame, values: np.ndarray) -> Frame:
    """The frame with the column `note`; NaN becomes missing."""
    return frame.with_columns(note=pl.Series(values).fill_nan(None))


def noisy_label(frame: Frame, random: np.random.Generator) -> Frame:
    wrong = random.random(len(frame)) < 0.01
    return frame.with_columns(note=pl.Series(np.where(wrong, 1 - frame["fraud"], frame["fraud"]).astype(float)))


def only_with_fraud(share: float) -> Plant:
    """A value that is there only for a share of the frauds, and says nothing itself."""

    def plant(frame: Frame, random: np.random.Generator) -> Frame:
        there = (frame["fraud"].to_numpy() == 1) & (random.random(len(frame)) < share)
        return frame.with_columns(
            note=pl.Series(np.where(there, random.normal(size=len(frame)), np.nan)).fill_nan(None)
        )

    return plant


def missing_with_fraud(frame: Frame, random: np.random.Generator) -> Frame:
    gone = (frame["fraud"].to_numpy() == 1) & (random.random(len(frame)) < 0.8)
    return with_note(frame, np.where(gone, np.nan, random.normal(size=len(frame))))


def under_two_ids(frame: Frame, random: np.random.Generator) -> Frame:
    """Each customer once more under another id, with the same events."""
    return pl.concat([frame, frame.with_columns(customer=pl.lit("x") + pl.col("customer"))]).sort("time")


def overlapping_exports(frame: Frame, random: np.random.Generator) -> Frame:
    """The second of two exports begins before the end of the first, with rows that lie in two splits."""
    count = len(frame)
    return pl.concat([frame[: count * 8 // 10], frame[count * 6 // 10 :]])


def row_number_by_label(frame: Frame, random: np.random.Generator) -> Frame:
    order = np.lexsort((random.random(len(frame)), frame["fraud"].to_numpy()))
    number = np.empty(len(frame))
    number[order] = np.arange(len(frame))
    return frame.with_columns(note=pl.Series(number))


def ranges_of_ids(frame: Frame, random: np.random.Generator) -> Frame:
    """Ids from two systems: those of frauds lie between those of the others."""
    fraud = frame["fraud"].to_numpy() == 1
    outside = np.where(
        random.random(len(frame)) < 0.5,
        random.integers(0, 10_000, len(frame)),
        random.integers(20_000, 30_000, len(frame)),
    )
    return frame.with_columns(
        note=pl.Series(np.where(fraud, random.integers(10_000, 20_000, len(frame)), outside).astype(float))
    )


def key_with_the_class(frame: Frame, random: np.random.Generator) -> Frame:
    return frame.with_columns(
        customer=pl.col("customer") + pl.when(pl.col("fraud") == 1).then(pl.lit("-f")).otherwise(pl.lit("-g"))
    )


def branch_rates(frame: Frame, random: np.random.Generator) -> Frame:
    """A category of 600 values, and the share of frauds of each over all data."""
    branch = pl.Series([f"b{i}" for i in random.integers(0, 600, len(frame))])
    return frame.with_columns(branch=branch).with_columns(note=pl.col("fraud").mean().over("branch"))


def known_at(frame: Frame, random: np.random.Generator) -> Frame:
    """When the label was known: after three days for a fraud, else after thirty."""
    days = np.where(frame["fraud"].to_numpy() == 1, 3, 30) + random.normal(0, 0.2, len(frame))
    return frame.with_columns(note=frame["time"] + pl.Series((days * 86400).astype(np.int64)))


def sorted_in_ties(frame: Frame, random: np.random.Generator) -> Frame:
    """Times by the day only, and the file sorted by label inside each."""
    return frame.with_columns(time=pl.col("time") // 86_400 * 86_400).sort("time", "fraud")


def filled_in_later(frame: Frame, random: np.random.Generator) -> Frame:
    """A status that is written over all rows of a customer after a fraud, by the end of the data."""
    return frame.with_columns(
        note=pl.when(over_key(pl.col("fraud").sum()) >= 4).then(pl.lit("blocked")).otherwise(pl.lit("open"))
    )


def missing_at_the_end(frame: Frame, random: np.random.Generator) -> Frame:
    """A finding that is written some days after the event, so that the newest events do not have it yet."""
    fraud = frame["fraud"].to_numpy()
    note = 0.7 * fraud + random.normal(0, 0.3, len(frame))
    late = np.arange(len(frame)) > 0.97 * len(frame)
    return with_note(frame, np.where(late, np.nan, note))


def dealt_at_random(frame: Frame, random: np.random.Generator) -> Frame:
    return frame.with_columns(
        part=pl.Series(random.choice(["train", "validation", "test"], len(frame), p=[0.7, 0.15, 0.15]))
    )


def fraud_at_midnight(frame: Frame, random: np.random.Generator) -> Frame:
    """Frauds are entered by hand, with the date only."""
    midnight = pl.col("time") // 86_400 * 86_400
    return frame.with_columns(time=pl.when(pl.col("fraud") == 1).then(midnight).otherwise(pl.col("time"))).sort("time")


def with_outcome(frame: Frame, random: np.random.Generator) -> Frame:
    """A label for each customer, at its last event: whether the mean amount is high, and noise."""
    high = over_key(pl.col("amount").log().mean()) > 2.0
    luck = {f"c{key}": bool(random.random() < 0.25) for key in range(KEYS)}
    flip = pl.col("customer").replace_strict(luck, return_dtype=pl.Boolean)
    return frame.with_columns(fraud=(high ^ flip).cast(pl.Int64))


def cut_at_the_outcome(frame: Frame, random: np.random.Generator) -> Frame:
    """The history of customers with label 1 ends when that was found out, after ten events."""
    frame = with_outcome(frame, random)
    number = over_key(pl.int_range(pl.len()))
    return frame.filter((pl.col("fraud") == 0) | (number < 10))


def closed_at_the_end(frame: Frame, random: np.random.Generator) -> Frame:
    """The last event of customers with label 1 is the closing of the account."""
    frame = with_outcome(frame, random)
    last = over_key(pl.int_range(pl.len()).reverse()) == 0
    closed = last & (pl.col("fraud") == 1)
    return frame.with_columns(shop=pl.when(closed).then(pl.lit("closing")).otherwise(pl.col("shop")))


PER_KEY: dict[str, Any] = {"target": {"per": "sequence"}, "split": {"by": "key", "validation": 0.25, "test": 0.25}}
BY_FIELD: dict[str, Any] = {"by": "given", "field": "part"}
WITH_HOUR: dict[str, Any] = {"features": {"hour_of_day": True}}
FRAUD = pl.col("fraud")

NUMBER: dict[str, Any] = {"numbers": ("note",)}
TEXT: dict[str, Any] = {"categories": ("note",)}
LABEL = FRAUD.cast(pl.Float64)
LEVEL = pl.col("level")
ALONE = "note alone predicts 'fraud' (area under the ROC curve"
NEXT_LEVEL = "note predicts the next value of level (it explains"


def note(expression: pl.Expr) -> Plant:
    """Plants the column `note`, computed over each customer's events."""
    return add(note=over_key(expression))


LEAKS = [
    Leak("the label", note(LABEL), ALONE, **NUMBER),
    Leak("the label as text", note(FRAUD.replace_strict({0: "ok", 1: "chargeback"})), ALONE, **TEXT),
    Leak("the label with 1 % noise", noisy_label, ALONE, **NUMBER),
    Leak("the next event's label", note(LABEL.shift(-1)), "note is the 'fraud' of the key's next event", **NUMBER),
    Leak("the last event's label", note(LABEL.shift(1)), "note is the 'fraud' of the key's previous event", **NUMBER),
    Leak("a value only with frauds", only_with_fraud(1), "whether note is missing alone predicts", **NUMBER),
    Leak("a value with half of the frauds", only_with_fraud(0.5), "note is there in 51% of the events", **NUMBER),
    Leak("a value missing with frauds", missing_with_fraud, "note is missing in 81% of the events", **NUMBER),
    Leak("customers with two ids", under_two_ids, "repeat those of other keys", sections={"split": {"by": "key"}}),
    Leak("overlapping exports", overlapping_exports, "events repeat an earlier one"),
    Leak("a row number by label", row_number_by_label, ALONE, **NUMBER),
    Leak("ids in ranges by label", ranges_of_ids, ALONE, **NUMBER),
    Leak("a key made from the class", key_with_the_class, "data.key: no key has events of more than one class, of 1"),
    Leak(
        "the share of frauds of a category over all data",
        branch_rates,
        "note is the same for all events of a value of branch, and follows from",
        numbers=("note",),
        categories=("branch",),
    ),
    Leak("all frauds of the customer", note(LABEL.sum()), "note is the same for all events of a key", **NUMBER),
    Leak("frauds so far, with this one", note(LABEL.cum_sum()), "note has the 'fraud' of its event in it", **NUMBER),
    Leak("frauds so far, with the next", note(LABEL.cum_sum().shift(-1)), "note has the 'fraud' of", **NUMBER),
    Leak("frauds before", note(LABEL.cum_sum() - LABEL), "note has the 'fraud' of the key's previous event", **NUMBER),
    Leak("the mean label around", note(LABEL.rolling_mean(3, center=True)), "note has the 'fraud' of", **NUMBER),
    Leak("the share so far", note(LABEL.cum_sum() / LABEL.cum_count()), "note has the 'fraud' of its", **NUMBER),
    Leak("frauds of the customer without this one", note(LABEL.sum() - LABEL), "note has the 'fraud' of", **NUMBER),
    Leak("a status written over all rows", filled_in_later, "note is the same for all events of a key", **TEXT),
    Leak("when the label was known", known_at, "note holds times after the event's in 100% of the events", **NUMBER),
    Leak("sorted by label in ties", sorted_in_ties, "rows of the same key and time are sorted by 'fraud'"),
    Leak("a finding that comes later", missing_at_the_end, "note is missing in 100% of the last 3%", **NUMBER),
    Leak("rows dealt at random", dealt_at_random, "split.field: in 9", sections={"split": BY_FIELD}),
    Leak("frauds have the date only", fraud_at_midnight, "the time of day alone predicts", sections=WITH_HOUR),
    Leak("the next amount", note(pl.col("amount").shift(-1)), "note predicts the next value of amount", **NUMBER),
    Leak("histories end with the outcome", cut_at_the_outcome, "the number of events of a key alone", sections=PER_KEY),
    Leak("the last event is the outcome", closed_at_the_end, "shop alone predicts 'fraud'", sections=PER_KEY),
    Leak("the next value", note(LEVEL.shift(-1)), NEXT_LEVEL, **NUMBER, world="sensors"),
    Leak("the next value, rounded", note((LEVEL.shift(-1) * 1.8).round(1)), NEXT_LEVEL, **NUMBER, world="sensors"),
    Leak("the change to come", note(LEVEL.shift(-1) - LEVEL), NEXT_LEVEL, **NUMBER, world="sensors"),
    Leak("a centred mean", note(LEVEL.rolling_mean(3, center=True)), NEXT_LEVEL, **NUMBER, world="sensors"),
    Leak(
        "the value three events later",
        note(LEVEL.shift(-3)),
        "note predicts the value of level 3 events later",
        **NUMBER,
        sections={"target": {"horizon": 3}},
        world="sensors",
    ),
]
