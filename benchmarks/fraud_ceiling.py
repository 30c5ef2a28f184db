"""How well card fraud can be ranked at all: Bayes' rule with the simulator's own rules, which no detector is told.

    python -m benchmarks.fraud_ceiling [--shared ../shared]

The data follow the recipe of the Fraud Detection Handbook, chapter 3. An event is fraud for one of three reasons:

    amount     it is above 220
    terminal   two of 10,000 terminals are taken over each day, for 28 days, in which each of their events is fraud
    card       three of 5,000 cards leak each day, for 14 days, in which a third of their events is fraud with 5 times
               the amount; genuine amounts are normal around a mean of the customer's own, with half of it as deviation

For each event the probability of each reason is computed from what is known at its time: all amounts, and the labels
that are seven days old. A terminal is in one of 29 states (0: sound, d: in its d-th day), a card in one of 15, and a
state's probabilities are carried from event to event as in the forward pass of a hidden Markov model. A customer's mean
is the median of its amounts so far. The reason itself (TX_FRAUD_SCENARIO) is never read.

Means of the four weeks of benchmarks.fraud_weeks: average precision 0.774, card precision@100 0.291, AUC
0.896. What is missing to 1 are the first days of a terminal that was taken over, which nothing tells from others.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.fraud_features import DAY, DELAY, usual_amount
from benchmarks.fraud_history import METRICS
from benchmarks.fraud_weeks import START, WEEKS, evaluate, read_transactions

Array = NDArray[np.float64]
LIMIT = 220.0
TERMINAL_DAYS, TERMINALS_A_DAY = 28, 2 / 10_000
CARD_DAYS, CARDS_A_DAY = 14, 3 / 5_000
FRAUD_SHARE, FACTOR = 1 / 3, 5.0  # of a leaked card's events, and of their amounts
NEGATIVE = 0.0228  # share of amounts below zero, which the simulator draws again, evenly from 0 to twice the mean
LEAST = 1e-9  # of a density: no amount is impossible


@dataclass(frozen=True, slots=True)
class Event:
    """A purchase, and what was known of it when it came."""

    time_s: int
    amount: float
    fraud: bool
    mean: float
    terminal_fraud: float  # probability that its terminal was taken over


@dataclass
class Attack:
    """The probabilities [days + 1] that a terminal or card is sound (0), or in the d-th day of an attack (d)."""

    days: int
    begins: float  # probability that an attack begins on a day
    day: int = 0
    chances: Array = field(init=False)

    def __post_init__(self) -> None:
        self.chances = np.zeros(self.days + 1)
        self.chances[0] = 1.0

    def copy(self) -> Attack:
        """Another one in the same state."""
        other = Attack(self.days, self.begins, self.day)
        other.chances = self.chances.copy()
        return other

    def advance(self, day: int) -> None:
        """To the morning of `day`."""
        for _ in range(min(day - self.day, 3 * self.days)):
            sound, ended = self.chances[0], self.chances[-1]
            self.chances[2:] = self.chances[1:-1]
            self.chances[1] = sound * self.begins
            self.chances[0] = sound * (1 - self.begins) + ended
        self.day = day

    def observe(self, if_sound: float, if_attacked: float) -> None:
        """Take in an event with these likelihoods."""
        self.chances[0] *= if_sound
        self.chances[1:] *= if_attacked
        self.chances /= self.chances.sum()

    @property
    def attacked(self) -> float:
        """The probability of an attack."""
        return 1 - float(self.chances[0])


def density(amount: float, mean: float) -> float:
    """Of a genuine amount of a customer whose genuine amounts have this mean."""
    mean = max(mean, 1.0)
    z = (amount - mean) / (mean / 2)
    normal = math.exp(-z * z / 2) / (mean / 2 * math.sqrt(2 * math.pi))
    return normal + LEAST + (NEGATIVE / (2 * mean) if amount < 2 * mean else 0.0)


def card_densities(amount: float, mean: float) -> tuple[float, float]:
    """Of an amount: of a genuine purchase, and of a fraud with a leaked card."""
    return density(amount, mean), density(amount / FACTOR, mean) / FACTOR


class Customer:
    """The amounts and labels of one customer."""

    def __init__(self) -> None:
        self.labelled = Attack(CARD_DAYS, CARDS_A_DAY)  # by all events whose labels are known
        self.waiting: deque[Event] = deque()  # without a label so far

    def learn(self, until_s: int) -> None:
        """Take in the labels of the events up to `until_s`."""
        while self.waiting and self.waiting[0].time_s <= until_s:
            event = self.waiting.popleft()
            genuine, stolen = card_densities(event.amount, event.mean)
            other = 1.0 if event.amount > LIMIT else event.terminal_fraud  # reasons other than the card
            self.labelled.advance(event.time_s // DAY)
            if event.fraud:
                self.labelled.observe(genuine * other, genuine * other * (1 - FRAUD_SHARE) + stolen * FRAUD_SHARE)
            else:
                self.labelled.observe(genuine, genuine * (1 - FRAUD_SHARE))

    def card_fraud(self, time_s: int, amount: float, mean: float) -> float:
        """The probability that an event is fraud with a leaked card."""
        card = self.labelled.copy()
        for event in self.waiting:
            card.advance(event.time_s // DAY)
            genuine, stolen = card_densities(event.amount, mean)
            card.observe(genuine, genuine * (1 - FRAUD_SHARE) + stolen * FRAUD_SHARE)
        card.advance(time_s // DAY)
        genuine, stolen = card_densities(amount, mean)
        fraud = card.attacked * stolen * FRAUD_SHARE
        return fraud / (fraud + card.attacked * genuine * (1 - FRAUD_SHARE) + (1 - card.attacked) * genuine)


class Terminal:
    """The labels of one terminal."""

    def __init__(self) -> None:
        self._labelled = Attack(TERMINAL_DAYS, TERMINALS_A_DAY)
        self._waiting: deque[tuple[int, float | None]] = deque()

    def add(self, time_s: int, other: float | None) -> None:
        """An event, later than all others. `other`: the probability of other reasons; None: it is genuine."""
        self._waiting.append((time_s, other))

    def fraud(self, time_s: int) -> float:
        """The probability that the terminal is taken over."""
        while self._waiting and self._waiting[0][0] <= time_s - DELAY:
            at_s, other = self._waiting.popleft()
            self._labelled.advance(at_s // DAY)
            if other is None:
                self._labelled.observe(1.0, 0.0)
            else:
                self._labelled.observe(max(other, 1e-5), 1.0)
        now = self._labelled.copy()
        now.advance(time_s // DAY)
        return now.attacked


def scores(raw: pl.DataFrame, from_day: int) -> Iterator[tuple[int, float]]:
    """Number and probability of fraud of each event from day `from_day` on; `raw` in the order of time."""
    customers, terminals = defaultdict[int, Customer](Customer), defaultdict[int, Terminal](Terminal)
    columns = ("TRANSACTION_ID", "TX_TIME_SECONDS", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD")
    means = usual_amount(raw["CUSTOMER_ID"].cast(pl.Int64).to_numpy(), raw["TX_AMOUNT"].to_numpy(), last=len(raw))
    for (number, time_s, customer_id, terminal_id, amount, fraud), mean in zip(
        raw.select(columns).iter_rows(), means.tolist(), strict=True
    ):
        customer, terminal = customers[customer_id], terminals[terminal_id]
        by_terminal = terminal.fraud(time_s)
        customer.learn(time_s - DELAY)
        needed = fraud or time_s // DAY >= from_day
        by_card = customer.card_fraud(time_s, amount, mean) if needed else 0.0
        other = 1.0 if amount > LIMIT else by_card
        terminal.add(time_s, other if fraud else None)
        customer.waiting.append(Event(time_s, amount, bool(fraud), mean, by_terminal))
        if time_s // DAY >= from_day:
            yield number, 1 - (1 - other) * (1 - by_terminal)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--shared", type=Path, default=root.parent / "shared", help="folder with fraud/ and scorers/")
    options = parser.parse_args()
    first = (date.fromisoformat(min(WEEKS)) - START.date()).days + 14
    made = list(scores(read_transactions(options.shared), first))
    table = pl.DataFrame(made, schema=["TRANSACTION_ID", "score"], orient="row")
    with tempfile.TemporaryDirectory(prefix="lstmstream-fraud-") as name:
        weeks = evaluate(options.shared, table, Path(name))
    for begins, found in zip(WEEKS, weeks, strict=True):
        print(f"{begins}:  " + "  ".join(f"{metric} {found[metric]:.4f}" for metric in METRICS))
    for metric in METRICS:
        print(f"{metric}: {np.mean([found[metric] for found in weeks]):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
