"""Simulated card transactions: customers and terminals with habits, and three kinds of fraud.

The simulation follows the Fraud Detection Handbook (https://fraud-detection-handbook.github.io), chapter 3, with code
and numbers of its own. A customer has a home, a usual amount, a usual number of purchases per day, usual hours and
a few favourite terminals near home. There are three kinds of fraud:

1. ``large``: one purchase for an unusually large amount;
2. ``terminal``: a terminal is compromised for two weeks; half of the payments there are tampered with: the amount is
   somewhat too high, and the card is mostly read from its magnetic stripe;
3. ``leaked``: somebody else uses the card for a week, as well as its owner: higher amounts, at any hour, anywhere.

The same seed gives the same transactions in any order of calls, because each day has its own random numbers.
The label never becomes part of an event. This module knows neither Kafka nor the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import orjson
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Codes = NDArray[np.uint8]

KINDS = ("genuine", "large", "terminal", "leaked")
LARGE, TERMINAL, LEAKED = 1, 2, 3
MERCHANTS = ("grocery", "fuel", "restaurant", "clothes", "electronics", "online")
ENTRIES = ("chip", "contactless", "swipe", "online")
CHIP, CONTACTLESS, SWIPE, ONLINE = 0, 1, 2, 3

START_MS = 1_767_571_200_000  # Monday 2026-01-05, 00:00 UTC: the first simulated day
DAY_MS = 86_400_000

_MERCHANT_SHARE = np.array([0.34, 0.14, 0.2, 0.14, 0.06, 0.12])
_MERCHANT_PRICE = np.array([0.8, 1.1, 0.7, 1.3, 2.2, 1.2])  # times the customer's usual amount
_ONLINE_SHOP = len(MERCHANTS) - 1
_FAVOURITES = 12
_AWAY_SHARE = 0.06  # of a customer's purchases: not at a favourite
_SIDE_KM = 100.0  # the country is a square
_LARGE_SHARE = 0.0016  # of the genuine purchases
_TAKEN_OVER_A_DAY, _TAKEN_OVER_DAYS, _TAMPERED_SHARE = 0.0005, 14, 0.5
_LEAKED_A_DAY, _LEAKED_DAYS, _THIEF_A_DAY = 0.0012, 7, 3.0
_WEEK = np.array([0.95, 0.9, 0.95, 1.0, 1.15, 1.2, 0.85])  # Monday first


@dataclass(frozen=True, slots=True)
class Transactions:
    """N transactions in order of time. `kind` is the label: an index into KINDS, 0 for genuine."""

    transaction_id: Ints  # [N] 0, 1, 2 ... in order of time
    customer: Ints  # [N]
    terminal: Ints  # [N]
    time_ms: Ints  # [N] milliseconds since 1970 UTC
    amount: Floats  # [N] two decimals
    distance_km: Floats  # [N] from the customer's home to the terminal; NaN for an online shop
    merchant: Codes  # [N] index into MERCHANTS
    entry: Codes  # [N] index into ENTRIES: how the card was read
    kind: Codes  # [N] index into KINDS

    def __len__(self) -> int:
        return len(self.transaction_id)

    def __getitem__(self, rows: slice | NDArray[np.bool_] | Ints) -> Transactions:
        return Transactions(*(getattr(self, column.name)[rows] for column in fields(self)))

    @property
    def numbers(self) -> Ints:
        """What the events are told apart by, [N]."""
        return self.transaction_id

    @property
    def incidents(self) -> Ints:
        """Each fraudulent transaction is one, [N]; -1 for genuine."""
        return np.where(self.fraud, self.transaction_id, -1)

    @property
    def shown(self) -> Floats:
        """What is shown of an alert, [N]: the amount."""
        return self.amount

    @property
    def fraud(self) -> NDArray[np.bool_]:
        """The label as a boolean, [N]."""
        return self.kind > 0

    def keys(self) -> list[bytes]:
        """Return the record key of each event: the customer's id."""
        return [b"c%06d" % number for number in self.customer.tolist()]

    def values(self) -> list[bytes]:
        """Return each event as JSON, without the label."""
        moments = np.datetime_as_string(self.time_ms.astype("datetime64[ms]"), timezone="UTC").tolist()
        rows = zip(
            self.transaction_id.tolist(),
            self.customer.tolist(),
            self.terminal.tolist(),
            moments,
            self.amount.tolist(),
            self.distance_km.tolist(),
            self.merchant.tolist(),
            self.entry.tolist(),
            strict=True,
        )
        dumps = orjson.dumps
        return [
            dumps(
                {
                    "transaction_id": number,
                    "customer_id": f"c{customer:06d}",
                    "terminal_id": f"t{terminal:06d}",
                    "time": moment,
                    "amount": amount,
                    "distance_km": km,  # orjson writes NaN as null: an online shop has no location
                    "merchant": MERCHANTS[merchant],
                    "entry": ENTRIES[entry],
                }
            )
            for number, customer, terminal, moment, amount, km, merchant, entry in rows
        ]


def to_json_lines(transactions: Transactions) -> bytes:
    """Return the events as JSON lines, without the label."""
    return b"".join(value + b"\n" for value in transactions.values())


class World:
    """Customers, terminals and their habits. `day(d)` returns the transactions of day d, d = 0, 1, 2 ..."""

    def __init__(self, *, customers: int = 1000, terminals: int = 2000, seed: int = 1) -> None:
        """Draw the habits. Raises ValueError without customers, or with too few terminals."""
        if customers < 1 or terminals < _FAVOURITES:
            raise ValueError(f"need at least 1 customer and {_FAVOURITES} terminals, got {customers} and {terminals}")
        self.customers, self.terminals, self.seed = customers, terminals, seed
        random = np.random.default_rng([seed, 0])
        self.terminal_place = random.uniform(0, _SIDE_KM, (terminals, 2))
        self.terminal_merchant = random.choice(len(MERCHANTS), terminals, p=_MERCHANT_SHARE).astype(np.uint8)
        self.home = random.uniform(0, _SIDE_KM, (customers, 2))
        self.radius = random.uniform(1, 8, customers)
        self.usual_amount = np.clip(random.lognormal(np.log(30), 0.6, customers), 6, 250)
        self.spread = random.uniform(0.25, 0.55, customers)  # of the logarithm of the amount
        self.a_day = random.gamma(4, 1.25, customers).clip(0.3, 15)
        self.hours = random.normal([11.5, 18.5], [2.0, 1.5], (customers, 2))  # two peaks of the day
        self.hours_spread = random.uniform(0.8, 2.5, customers)
        self.contactless = random.beta(4, 2, customers)  # share of small purchases
        self.favourites = self._draw_favourites(random)
        usage = 1 / np.arange(1, _FAVOURITES + 1)
        self._usage = np.cumsum(usage / usage.sum())

    def day(self, day: int, *, first_id: int = 0) -> Transactions:
        """Return the transactions of one day in order of time, numbered from `first_id`."""
        random = np.random.default_rng([self.seed, 1, day])
        by_owner = self._purchases(day, random)
        by_others = self._fraudulent_purchases(day, random)
        customer, terminal, time_ms, amount, kind, entry = (
            np.concatenate(pair) for pair in zip(by_owner, by_others, strict=True)
        )
        place = self.terminal_place[terminal] - self.home[customer]
        distance: Floats = np.round(np.hypot(place[:, 0], place[:, 1]), 2).astype(np.float64)
        distance[self.terminal_merchant[terminal] == _ONLINE_SHOP] = np.nan
        order = np.argsort(time_ms, kind="stable")
        return Transactions(
            transaction_id=first_id + np.arange(len(order), dtype=np.int64),
            customer=customer[order],
            terminal=terminal[order],
            time_ms=time_ms[order] + (START_MS + day * DAY_MS),
            amount=np.maximum(np.round(amount[order], 2), 0.5),
            distance_km=distance[order],
            merchant=self.terminal_merchant[terminal[order]],
            entry=entry[order],
            kind=kind[order],
        )

    def stream(self) -> Iterator[Transactions]:
        """Yield the transactions of day after day without end, numbered from 0."""
        day, number = 0, 0
        while True:
            batch = self.day(day, first_id=number)
            yield batch
            day, number = day + 1, number + len(batch)

    def taken_over(self, day: int) -> NDArray[np.bool_]:
        """Return which terminals are compromised on that day, [terminals]."""
        return self._affected(day, salt=2, share=_TAKEN_OVER_A_DAY, days=_TAKEN_OVER_DAYS, count=self.terminals)

    def leaked(self, day: int) -> NDArray[np.bool_]:
        """Return which customers' cards somebody else uses on that day, [customers]."""
        return self._affected(day, salt=3, share=_LEAKED_A_DAY, days=_LEAKED_DAYS, count=self.customers)

    def _purchases(self, day: int, random: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
        """Purchases by the owners, kinds 0, 1 and 2: columns customer, terminal, time of day, amount, kind, entry."""
        customer = np.repeat(np.arange(self.customers), random.poisson(self.a_day * _WEEK[day % 7]))
        count = len(customer)
        favourite = self.favourites[customer, np.searchsorted(self._usage, random.random(count))]
        away = random.random(count) < _AWAY_SHARE
        terminal = np.where(away, random.integers(0, self.terminals, count), favourite)
        peak = self.hours[customer, random.integers(0, 2, count)]
        time_ms = _time_of_day(peak + random.normal(size=count) * self.hours_spread[customer])
        price = self.usual_amount[customer] * _MERCHANT_PRICE[self.terminal_merchant[terminal]]
        amount = price * np.exp(self.spread[customer] * random.normal(size=count))
        entry = self._entry(customer, terminal, amount, random)

        kind = np.zeros(count, np.uint8)
        large = random.random(count) < _LARGE_SHARE
        amount[large] = (self.usual_amount[customer] * random.uniform(7, 20, count))[large] + 100
        kind[large] = LARGE
        tampered = self.taken_over(day)[terminal] & (random.random(count) < _TAMPERED_SHARE) & ~large
        amount[tampered] *= random.uniform(1.3, 3, count)[tampered]
        kind[tampered] = TERMINAL
        swiped = tampered & (random.random(count) < 0.8) & (entry != ONLINE)
        entry[swiped] = SWIPE
        return customer, terminal, time_ms, amount, kind, entry

    def _fraudulent_purchases(self, day: int, random: np.random.Generator) -> tuple[NDArray[np.generic], ...]:
        """Purchases by others with leaked cards, kind 3; the same columns."""
        cards = np.flatnonzero(self.leaked(day))
        customer = np.repeat(cards, random.poisson(_THIEF_A_DAY, len(cards)))
        count = len(customer)
        shops = np.flatnonzero(self.terminal_merchant == _ONLINE_SHOP)
        terminal = random.integers(0, self.terminals, count)
        if len(shops):
            terminal = np.where(random.random(count) < 0.5, random.choice(shops, count), terminal)
        time_ms = _time_of_day(random.uniform(0, 24, count))
        amount = self.usual_amount[customer] * random.uniform(1.5, 6, count)
        entry = np.where(self.terminal_merchant[terminal] == _ONLINE_SHOP, ONLINE, SWIPE).astype(np.uint8)
        chip = (entry == SWIPE) & (random.random(count) < 0.5)
        entry[chip] = CHIP
        return customer, terminal, time_ms, amount, np.full(count, LEAKED, np.uint8), entry

    def _entry(self, customer: Ints, terminal: Ints, amount: Floats, random: np.random.Generator) -> Codes:
        """How the owner's card is read: contactless for small amounts, sometimes by its magnetic stripe."""
        draw = random.random(len(customer))
        entry = np.where((amount < 50) & (draw < self.contactless[customer]), CONTACTLESS, CHIP).astype(np.uint8)
        entry[random.random(len(customer)) < 0.015] = SWIPE
        entry[self.terminal_merchant[terminal] == _ONLINE_SHOP] = ONLINE
        return entry

    def _affected(self, day: int, *, salt: int, share: float, days: int, count: int) -> NDArray[np.bool_]:
        """Which of `count` are affected: drawn on this day or in the `days` - 1 before, even before day 0; [count]."""
        affected = np.zeros(count, np.bool_)
        for start in range(day - days + 1, day + 1):
            random = np.random.default_rng([self.seed, salt, start + days])
            affected[random.integers(0, count, random.poisson(share * count))] = True
        return affected

    def _draw_favourites(self, random: np.random.Generator) -> Ints:
        """Draw favourite terminals, nearer ones more likely, most used first; [customers, _FAVOURITES]."""
        chosen = np.empty((self.customers, _FAVOURITES), np.int64)
        online = self.terminal_merchant == _ONLINE_SHOP
        for start in range(0, self.customers, 256):  # limits the memory for the distances
            rows = slice(start, start + 256)
            place = self.home[rows, None, :] - self.terminal_place[None, :, :]
            distance = np.hypot(place[:, :, 0], place[:, :, 1]) / self.radius[rows, None]
            distance[:, online] = 4  # equally near to every customer
            order = distance - random.gumbel(size=distance.shape)  # draws without replacement, weight exp(-distance)
            chosen[rows] = np.argsort(order, axis=1)[:, :_FAVOURITES]
        return chosen


def transactions(*, customers: int = 1000, terminals: int = 2000, days: int = 30, seed: int = 1) -> Transactions:
    """Return the transactions of `days` days in order of time, numbered from 0."""
    stream = World(customers=customers, terminals=terminals, seed=seed).stream()
    batches = [next(stream) for _ in range(max(days, 0))]
    if not batches:
        raise ValueError(f"days must be at least 1, got {days}")
    columns = (np.concatenate([getattr(batch, column.name) for batch in batches]) for column in fields(Transactions))
    return Transactions(*columns)


def _time_of_day(hours: Floats) -> Ints:
    """Convert hours to milliseconds since midnight; hours past midnight wrap around."""
    return ((hours % 24) * 3_600_000).astype(np.int64) % DAY_MS
