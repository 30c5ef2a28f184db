"""Which events are learned from, which choose epoch and threshold, which only measure."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from lstmstream.errors import BadRecord, CannotServe
from lstmstream.serve.decode import timestamp_ms
from lstmstream.train.history.data import Events
from lstmstream.train.history.read import Ints
from lstmstream.train.schema import Split
from lstmstream.train.values import moment

NONE, TRAIN, VALIDATION, TEST = 0, 1, 2, 3  # NONE: warms the state up, counts nowhere
NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}


@dataclass(frozen=True, slots=True)
class Parts:
    """The part of each event, and the rule that made it, for the card."""

    of: np.ndarray[tuple[int], np.dtype[np.int8]]  # [N]
    rule: str

    def rows(self, part: int) -> Ints:
        """Rows of a part, ascending."""
        return np.flatnonzero(self.of == part)


def divide(events: Events, split: Split, seed: int) -> Parts:
    """Gives each event its part. Raises CannotServe where one that is needed would be empty."""
    if split.by == "time":
        parts = _by_time(events, split)
    elif split.by == "key":
        parts = _by_key(events, split, seed)
    else:
        parts = _given(events, split)
    counts = {name: int((parts.of == part).sum()) for part, name in NAMES.items()}
    asked = {"train": True, "validation": True, "test": split.test_from is not None}
    for name in NAMES.values():
        if asked[name] and counts[name] == 0:
            raise CannotServe(
                f"split: the {name} part is empty ({parts.rule}; of {len(events)} events"
                f" {counts['train']} train, {counts['validation']} validate, {counts['test']} test);"
                " change the shares or dates under split, or bring more data"
            )
    return parts


def _by_time(events: Events, split: Split) -> Parts:
    times = np.asarray(events.timestamp)
    ordered = np.sort(times)
    gap = round(split.gap * 1000)

    def share(of: float) -> int:
        """The time before which this share of the events lies; equal times stay together, in the later part."""
        return int(ordered[min(int(of * len(ordered)), len(ordered) - 1)]) if len(ordered) else 0

    last = int(ordered[-1]) + 1 if len(ordered) else 0
    train_from = _moment(split.train_from, "train_from", int(ordered[0]) if len(ordered) else 0)
    test_to = _moment(split.test_to, "test_to", last)
    has_test = split.test > 0 or split.test_from is not None
    test_from = _moment(split.test_from, "test_from", share(1 - split.test) if has_test else last)
    validation_from = _moment(split.validation_from, "validation_from", share(1 - split.test - split.validation))
    train_to = _moment(split.train_to, "train_to", validation_from - gap)
    if train_to > validation_from:
        raise CannotServe(
            f"split.train_to: {moment(train_to)} lies after the validation part's start, {moment(validation_from)};"
            " write an earlier time, or leave it out"
        )
    of = np.zeros(len(times), np.int8)
    of[(times >= train_from) & (times < train_to)] = TRAIN
    validation_to = test_from - (gap if has_test else 0)
    of[(times >= validation_from) & (times < validation_to)] = VALIDATION
    of[(times >= test_from) & (times < test_to)] = TEST
    begin, middle, end = map(moment, (train_to, validation_from, test_from))
    rule = f"by time: train before {begin}, validation from {middle}" + (f", test from {end}" if has_test else "")
    return Parts(of, rule)


def _by_key(events: Events, split: Split, seed: int) -> Parts:
    """By a hash of the key: a key's part does not depend on the other keys."""
    draws = np.array([crc32(f"{seed}:{key}".encode()) / 2**32 for key in events.keys])
    of_key = np.full(len(draws), TRAIN, np.int8)
    of_key[draws < split.validation + split.test] = VALIDATION
    of_key[draws < split.test] = TEST
    rule = f"by key: {split.validation:g} of the keys validate, {split.test:g} test"
    return Parts(np.repeat(of_key, events.lengths), rule)


def _given(events: Events, split: Split) -> Parts:
    known = {name: part for part, name in NAMES.items()} | {"": NONE}
    wrong = [text for text in events.parts if text not in known]
    if wrong:
        raise CannotServe(
            f"split.field: field {split.field!r} holds {', '.join(map(repr, wrong[:5]))}; only train, validation, test"
            " or nothing belongs there"
        )
    codes = np.array([NONE, *(known[text] for text in events.parts)], np.int8)
    return Parts(codes[events.part], f"as field {split.field!r} says")


def _moment(text: str | None, option: str, otherwise: int) -> int:
    """ISO 8601 to ms."""
    if text is None:
        return otherwise
    try:
        return timestamp_ms(text, option)
    except BadRecord as bad:
        raise CannotServe(
            f"split.{option}: {text!r} is not an ISO 8601 time; write 2026-01-31 or 2026-01-31T12:00Z"
        ) from bad
