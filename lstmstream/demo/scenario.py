"""What a demo is about: its events, its model, and the words for what is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lstmstream.demo import load, sensors, simulate


class Part(Protocol):
    """N simulated events in order of time, with their labels."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        """[N] what they are told apart by: 0, 1, 2 ..."""

    @property
    def kind(self) -> NDArray[np.uint8]:
        """[N] the label: an index into the scenario's kinds, 0 for normal."""

    @property
    def incidents(self) -> NDArray[np.int64]:
        """[N] the same for all events of one incident, -1 for normal."""

    @property
    def shown(self) -> NDArray[np.float64]:
        """[N] the number that is shown of an alert."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Self: ...

    def keys(self) -> list[bytes]:
        """The record keys."""

    def values(self) -> list[bytes]:
        """The events as JSON, without the labels."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One demo."""

    name: str
    model: str
    number: str  # field with the number of an event
    include: Sequence[str]  # fields of the events that predictions carry
    kinds: Mapping[str, str]  # of incidents, by number from 0: their meaning
    key: str  # what a key is
    shown: str  # what `Part.shown` is
    incident: str  # what an incident is
    stream: Callable[[int], Iterator[Part]]  # the events by a seed, without end
    rate_with_end: float  # default events per second, where there is an end
    rate_endless: float
    output: Mapping[str, Any]  # further options of `output`
    forecast: bool = False  # whether the first column of a prediction is the next `shown` of its key


FRAUD = Scenario(
    name="fraud",
    model="builtin:demo",
    number="transaction_id",
    include=("transaction_id", "amount", "merchant"),
    kinds={
        "genuine": "",
        "large": "a payment far too large for its customer",
        "terminal": "a payment at a terminal that was tampered with",
        "leaked": "a payment by somebody else with the customer's card data",
    },
    key="customer",
    shown="amount",
    incident="fraud",
    stream=lambda seed: simulate.World(customers=1_000, terminals=2_000, seed=seed).stream(),
    rate_with_end=5_000.0,
    rate_endless=2_000.0,
    output={},
)
SENSORS = Scenario(
    name="sensors",
    model="builtin:anomaly:temperature,vibration,pressure",
    number="number",
    include=("number", "temperature", "vibration", "pressure"),
    kinds={
        "normal": "",
        "knock": "the vibration jumps for five minutes",
        "leak": "the pressure falls for half an hour",
        "overheating": "the temperature climbs for half an hour",
    },
    key="machine",
    shown="vibration",
    incident="fault",
    stream=lambda seed: sensors.Plant(machines=20, seed=seed).stream(),
    rate_with_end=500.0,
    rate_endless=500.0,
    output={"threshold": 0.525},  # 0.5 gives four times as many alerts of noise
)
FORECAST = Scenario(
    name="forecast",
    model="builtin:load",
    number="number",
    include=("number", "kw"),
    kinds={"normal": ""},
    key="home",
    shown="kW",
    incident="fault",
    stream=lambda seed: load.Town(homes=200, seed=seed).stream(),
    rate_with_end=5_000.0,
    rate_endless=2_000.0,
    output={},
    forecast=True,
)
SCENARIOS = {one.name: one for one in (FRAUD, SENSORS, FORECAST)}
