"""Upstream features of card purchases, each from the past of its event only, as a stream processor would compute them.

Takes arrays of transactions in time order (times in seconds, labels known 7 days after their transaction) and returns
one column for each feature. Does not scale or train, and never reads the scenario column. Needs numpy only.

Beyond the counts and risks of the book, two features helped most: the current run of known frauds at the terminal
(terminal_streak), and the amount against the median of the customer's last 100 (usual_amount, amount_ratio).
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
DAY = 86_400
DELAY = 7 * DAY  # a fraud is reported this long after its transaction


def features(time: Ints, customer: Ints, terminal: Ints, amount: Array, fraud: Ints) -> dict[str, Array]:
    """All columns [N], in the order of the transactions. `time` in s, ascending; `fraud` is used after 7 days only."""
    out: dict[str, Array] = {"amount": amount}
    day = time // DAY
    out["weekend"] = ((day + 6) % 7 >= 5).astype(float)  # day 0 is a Sunday (2018-04-01)
    out["night"] = (time % DAY // 3600 <= 6).astype(float)
    ones = np.ones(len(time))
    for days in (1, 7, 30):  # including the transaction itself, as in the book
        spent, count = (_between(customer, time, v, days * DAY, 0) for v in (amount, ones))
        out[f"customer_count_{days}d"], out[f"customer_mean_{days}d"] = count, spent / count
    for days in (1, 7, 30):  # transactions whose label is known
        frauds, count = (_between(terminal, time, v, DELAY + days * DAY, DELAY) for v in (fraud.astype(float), ones))
        out[f"terminal_count_{days}d"], out[f"terminal_risk_{days}d"] = count, frauds / np.maximum(count, 1)
    usual = usual_amount(customer, amount)
    ratio = amount / np.maximum(usual, 1.0)
    out["usual_amount"], out["amount_ratio"] = usual, ratio
    out |= terminal_run(terminal, time, fraud, ratio)
    return out


def _between(group: Ints, time: Ints, value: Array, oldest: int, newest: int) -> Array:
    """Sum of `value` [N] over the group's events in (t - oldest, t - newest]; the event's own if newest is 0."""
    order = np.lexsort((time, group))  # stable: events of one second stay in order
    key = group[order] * (int(time.max()) + 1000 * DAY) + time[order]
    first = np.searchsorted(group[order], group[order], side="left")
    total = np.concatenate([[0.0], np.cumsum(value[order])])
    start = np.maximum(np.searchsorted(key, key - oldest, side="right"), first)
    end = (
        np.arange(1, len(key) + 1)
        if newest == 0
        else np.maximum(np.searchsorted(key, key - newest, side="right"), first)
    )
    out = np.empty(len(key))
    out[order] = total[np.maximum(end, start)] - total[start]
    return out


def usual_amount(customer: Ints, amount: Array, last: int = 100, start: float = 50.0) -> Array:
    """[N] Median of the customer's `last` earlier amounts, with `start` as the first. Frauds hardly change it."""
    order = np.argsort(customer, kind="stable")
    begins = np.concatenate([[0], np.flatnonzero(np.diff(customer[order])) + 1, [len(order)]])
    out = np.empty(len(order))
    for begin, end in itertools.pairwise(begins):
        rows = order[begin:end]
        amounts = [start, *amount[rows].tolist()]
        ordered: list[float] = []  # the last ones, smallest first
        for i, row in enumerate(rows):
            insort(ordered, amounts[i])
            if i >= last:
                del ordered[bisect_left(ordered, amounts[i - last])]
            n = len(ordered)
            out[row] = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return out


def terminal_run(terminal: Ints, time: Ints, fraud: Ints, ratio: Array, stolen: float = 3.0) -> dict[str, Array]:
    """Features [N] that show whether the terminal is compromised, from its known labels.

    A fraud of more than `stolen` times its customer's usual amount points to a stolen card, and is left out.
    terminal_streak   number of frauds in a row up to the last known transaction (0 if that one is genuine)
    terminal_since    days from the first fraud of that streak to now (0 without a streak)
    """
    order = np.lexsort((time, terminal))
    order = order[~((fraud[order] == 1) & (ratio[order] > stolen))]  # transactions that count
    g, t, y = terminal[order], time[order], fraud[order] == 1
    index = np.arange(len(order))
    begins = np.r_[True, g[1:] != g[:-1]] if len(g) else np.empty(0, bool)
    first = y & (begins | np.r_[True, ~y[:-1]])  # first fraud of a streak
    started = np.maximum.accumulate(np.where(first, index, 0))
    streak = np.where(y, index - started + 1, 0)
    wide = int(time.max()) + 1000 * DAY
    at = (
        np.searchsorted(g * wide + t, terminal * wide + time - DELAY, side="right") - 1
    )  # the terminal's last known transaction
    known = (at >= 0) & (g[at] == terminal)
    length = np.where(known, streak[at], 0)
    since = np.where(length > 0, (time - t[started[at]]) / DAY, 0.0)
    return {"terminal_streak": length.astype(float), "terminal_since": since}
