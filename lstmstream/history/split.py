"""Divides events into the training, validation and test split.

The network learns from `train`, `validation` chooses the epoch and the threshold, and `test` is only evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, NamedTuple, Protocol

import numpy as np

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.formats.timestamps import format_iso, timestamp_ms
from lstmstream.history.events import Events
from lstmstream.records import Ints
from lstmstream.wording import counted

NONE, TRAIN, VALIDATION, TEST = 0, 1, 2, 3  # events of NONE only warm up the state
SPLIT_NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
_DAY_MS = 86_400_000


class SplitOptions(Protocol):
    """How to divide; section `split` of a training configuration. Times are ISO 8601 text."""

    @property
    def by(self) -> Literal["time", "key", "given"]:
        """What decides: the event's time, a hash of its key, or a field of the data."""
        ...

    @property
    def validation(self) -> float:
        """Share of the events from train_from to test_to, or of the keys, for validation."""
        ...

    @property
    def test(self) -> float:
        """Share of the events from train_from to test_to, or of the keys, for testing."""
        ...

    @property
    def gap(self) -> float:
        """Seconds left out after the training and after the validation split."""
        ...

    @property
    def train_from(self) -> str | None:
        """Start of the training split."""
        ...

    @property
    def train_to(self) -> str | None:
        """End of the training split, not included."""
        ...

    @property
    def validation_from(self) -> str | None:
        """Start of the validation split, instead of a share."""
        ...

    @property
    def test_from(self) -> str | None:
        """Start of the test split, instead of a share."""
        ...

    @property
    def test_to(self) -> str | None:
        """End of the test split, not included."""
        ...

    @property
    def field(self) -> str | None:
        """The field that holds the split's name, with `by: given`."""
        ...


@dataclass(frozen=True, slots=True)
class Split:
    """The split of each event, and how it was made."""

    labels: np.ndarray[tuple[int], np.dtype[np.int8]]  # [N] NONE, TRAIN, VALIDATION or TEST
    description: str  # for the model card

    def rows(self, label: int) -> Ints:
        """Rows of one split, ascending."""
        return np.flatnonzero(self.labels == label)


def without_silent(split: Split, events: Events) -> Split:
    """The split in which events without a prediction only warm up the state."""
    if events.silent is None:
        return split
    labels = np.where(events.silent, np.int8(NONE), split.labels)
    for label, name in SPLIT_NAMES.items():
        if (split.labels == label).any() and not (labels == label).any():
            raise CannotServe(f"data.silent: all events of the {name} split are silent; check the field and its value")
    return Split(labels, split.description)


def split_events(events: Events, options: SplitOptions, seed: int) -> Split:
    """Assigns each event to a split. Raises CannotServe where a split that is needed would be empty."""
    if options.by == "time":
        split = _by_time(events, options)
    elif options.by == "key":
        split = _by_key(events, options, seed)
    else:
        split = _by_field(events, options)
    counts = {name: int((split.labels == label).sum()) for label, name in SPLIT_NAMES.items()}
    # with `by: given`, data without a test split are the user's choice
    has_test = options.by != "given" and (options.test > 0 or options.test_from is not None)
    required = {"train": True, "validation": True, "test": has_test}
    for name in SPLIT_NAMES.values():
        if required[name] and counts[name] == 0:
            raise CannotServe(
                f"split: the {name} split is empty ({split.description}; of {counted(len(events), 'event')}"
                f" {counts['train']}"
                f" train, {counts['validation']} validation, {counts['test']} test); {_remedy(name, options, events)}"
            )
    return split


class Coverage(NamedTuple):
    """What the events of a split stand for, so that counts in it can be stated per day of the whole stream."""

    span_days: float | None  # None: the time from the split's first event to its last
    stream_share: float  # the part of the stream in that time that the split has


def coverage(events: Events, split: Split, label: int, by: Literal["time", "key", "given"]) -> Coverage:
    """The coverage of one split, which has events.

    By time it is the whole stream, for a while. By key it is some of the keys, over the time of all events. A field may
    divide in either way, so its split has the events that it has of those in its time.
    """
    rows = split.rows(label)
    if by == "key":
        keys = len(np.unique(np.searchsorted(events.starts, rows, side="right")))
        return Coverage(float(np.ptp(events.timestamp)) / _DAY_MS, keys / len(events.keys))
    if by == "given":
        times = np.asarray(events.timestamp)
        own = times[rows]
        return Coverage(None, len(own) / int(((times >= own.min()) & (times <= own.max())).sum()))
    return Coverage(None, 1.0)


def _remedy(name: str, options: SplitOptions, events: Events) -> str:
    """What to change where a split is empty."""
    remedy = "change the fractions or dates under split, or add more data"
    times = events.timestamp
    if options.by == "time" and len(times) > 1 and times.min() == times.max():
        remedy = f"all events have the time {format_iso(int(times.min()))}: check data.timestamp, or set split.by: key"
    if options.by == "key":
        remedy = f"the data have {len(events.keys)} key(s): change the fractions or training.seed, or add more keys"
    return remedy + (", or do without a test split (split.test: 0)" if name == "test" else "")


def _by_time(events: Events, options: SplitOptions) -> Split:
    times = np.asarray(events.timestamp)
    first, last = (int(times.min()), int(times.max()) + 1) if len(times) else (0, 0)
    gap = round(options.gap * 1000)
    train_from = _time_ms(options.train_from, "train_from", first)
    test_to = _time_ms(options.test_to, "test_to", last)
    # shares are of the events that may be in a split, not of those that only warm up the states
    ordered = np.sort(times[(times >= train_from) & (times < test_to)])

    def quantile(share: float) -> int:
        """The time before which this share of the events lies; equal times stay together, in the later split."""
        return int(ordered[min(int(share * len(ordered)), len(ordered) - 1)]) if len(ordered) else last

    has_test = options.test > 0 or options.test_from is not None
    test_from = _time_ms(options.test_from, "test_from", quantile(1 - options.test) if has_test else last)
    validation_from = _time_ms(
        options.validation_from, "validation_from", quantile(1 - options.test - options.validation)
    )
    train_to = _time_ms(options.train_to, "train_to", validation_from - gap)
    if train_to > validation_from:
        raise CannotServe(
            f"split.train_to: {format_iso(train_to)} is later than the start of the validation split,"
            f" {format_iso(validation_from)}; write an earlier time, or remove the option"
        )
    if train_to > validation_from - gap:
        raise CannotServe(
            f"split.train_to: {format_iso(train_to)} leaves less than split.gap before the start of the validation"
            f" split, {format_iso(validation_from)}; write {format_iso(validation_from - gap)} or earlier, or remove"
            " one of the two"
        )
    labels = np.zeros(len(times), np.int8)
    labels[(times >= train_from) & (times < train_to)] = TRAIN
    validation_to = test_from - (gap if has_test else 0)
    labels[(times >= validation_from) & (times < validation_to)] = VALIDATION
    labels[(times >= test_from) & (times < test_to)] = TEST
    begin, middle, end = map(format_iso, (train_to, validation_from, test_from))
    test = f", test from {end}" if has_test else ""
    return Split(labels, f"by time: train before {begin}, validation from {middle}{test}")


def _by_key(events: Events, options: SplitOptions, seed: int) -> Split:
    """By a hash of the key, so that a key's split does not depend on the other keys.

    The hash mixes: with a linear one, such as a CRC, numbered keys fall into a pattern and seeds are not independent.
    """
    hashes = [blake2b(f"{seed}:{key}".encode(), digest_size=8).digest() for key in events.keys]
    draws = np.array([int.from_bytes(one, "big") / 2**64 for one in hashes])
    of_key = np.full(len(draws), TRAIN, np.int8)
    of_key[draws < options.validation + options.test] = VALIDATION
    of_key[draws < options.test] = TEST
    description = f"by key: {options.validation:g} of the keys validation, {options.test:g} test"
    return Split(np.repeat(of_key, events.lengths), description)


def _by_field(events: Events, options: SplitOptions) -> Split:
    labels = {name: label for label, name in SPLIT_NAMES.items()} | {"": NONE}
    if unknown := [text for text in events.split_names if text not in labels]:
        raise CannotServe(
            f"split.field: field {options.field!r} holds {', '.join(map(repr, unknown[:5]))}; it should hold only"
            " train, validation, test, or nothing"
        )
    codes = np.array([NONE, *(labels[text] for text in events.split_names)], np.int8)
    return Split(codes[events.split], f"by field {options.field!r}")


def _time_ms(text: str | None, option: str, default: int) -> int:
    """Milliseconds of the ISO 8601 text, or the default without one. Raises CannotServe naming the option."""
    if text is None:
        return default
    try:
        return timestamp_ms(text, option)
    except BadRecord as bad:
        raise CannotServe(
            f"split.{option}: {text!r} is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12:00Z"
        ) from bad
