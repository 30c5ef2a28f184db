"""Simulated machines with three sensors each, and three kinds of faults.

Each machine has its own levels, a daily wave and noise. A fault is one incident of several readings:

1. ``knock``: the vibration jumps for a few minutes;
2. ``leak``: the pressure falls for half an hour;
3. ``overheating``: the temperature climbs for half an hour.

The same seed gives the same readings, because each hour has its own random numbers. The label never becomes part of an
event. This module knows neither Kafka nor the model.
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

KINDS = ("normal", "knock", "leak", "overheating")
KNOCK, LEAK, OVERHEATING = 1, 2, 3
START_MS = 1_767_571_200_000  # Monday 2026-01-05, 00:00 UTC
MINUTE_MS = 60_000
_MINUTES = 60
_DAY_MINUTES = 1440
_QUIET_HOURS = 5  # without faults: the detector learns each machine's first 200 readings
_FAULTS_AN_HOUR = 0.03  # of a machine
_LENGTH = (0, 5, 30, 30)  # readings, by kind
_RETURN = 10  # readings after a fault that belong to it: its end is a jump too


@dataclass(frozen=True, slots=True)
class Readings:
    """N readings in order of time. `kind` is the label: an index into KINDS, 0 for normal."""

    numbers: Ints  # [N] 0, 1, 2 ... in order of time
    machine: Ints  # [N]
    time_ms: Ints  # [N] milliseconds since 1970 UTC
    temperature: Floats  # [N] degrees Celsius
    vibration: Floats  # [N] millimetres per second
    pressure: Floats  # [N] bar
    kind: Codes  # [N]
    incidents: Ints  # [N] the same for all readings of a fault, -1 for normal

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice) -> Readings:
        return Readings(*(getattr(self, column.name)[rows] for column in fields(self)))

    @property
    def shown(self) -> Floats:
        """What is shown of an alert, [N]: the vibration."""
        return self.vibration

    def keys(self) -> list[bytes]:
        """Return the record key of each event: the machine's name."""
        return [b"m%03d" % number for number in self.machine.tolist()]

    def values(self) -> list[bytes]:
        """Return each event as JSON, without the label."""
        moments = np.datetime_as_string(self.time_ms.astype("datetime64[ms]"), timezone="UTC").tolist()
        columns = (self.numbers, self.machine, self.temperature, self.vibration, self.pressure)
        return [
            orjson.dumps(
                {
                    "number": number,
                    "machine": f"m{machine:03d}",
                    "time": moment,
                    "temperature": temperature,
                    "vibration": vibration,
                    "pressure": pressure,
                }
            )
            for moment, number, machine, temperature, vibration, pressure in zip(
                moments, *(column.tolist() for column in columns), strict=True
            )
        ]


class Plant:
    """Machines and their habits. `hour(h)` returns the readings of hour h, one a minute of each machine."""

    def __init__(self, *, machines: int = 20, seed: int = 1) -> None:
        """Draw the habits. Raises ValueError without machines."""
        if machines < 1:
            raise ValueError(f"need at least 1 machine, got {machines}")
        self.machines, self.seed = machines, seed
        random = np.random.default_rng([seed, 0])
        self._level = random.uniform([45, 1.5, 4], [75, 4, 8], (machines, 3))  # temperature, vibration, pressure
        self._wave = random.uniform([2, 0.1, 0.1], [6, 0.4, 0.3], (machines, 3))
        self._phase = random.uniform(0, 2 * np.pi, (machines, 3))
        self._noise = random.uniform([0.2, 0.05, 0.03], [0.5, 0.15, 0.08], (machines, 3))

    def hour(self, hour: int) -> Readings:
        """Return the readings of one hour in order of time."""
        random = np.random.default_rng([self.seed, 1, hour])
        minutes = hour * _MINUTES + np.arange(_MINUTES)
        angle = 2 * np.pi * minutes[:, None, None] / _DAY_MINUTES + self._phase
        values = self._level + self._wave * np.sin(angle)  # [60, machines, 3]
        values += self._noise * random.normal(size=values.shape)
        kind = np.zeros((_MINUTES, self.machines), np.uint8)
        incidents = np.full((_MINUTES, self.machines), -1, np.int64)
        if hour >= _QUIET_HOURS:
            for machine in np.flatnonzero(random.random(self.machines) < _FAULTS_AN_HOUR).tolist():
                what, start = int(random.integers(1, len(KINDS))), int(random.integers(5, 20))
                values[start : start + _LENGTH[what], machine] += self._fault(what, machine)
                rows = slice(start, start + _LENGTH[what] + _RETURN)
                kind[rows, machine], incidents[rows, machine] = what, hour * self.machines + machine
        count = _MINUTES * self.machines
        values = np.maximum(np.round(values, 3), 0.0)
        return Readings(
            numbers=hour * count + np.arange(count, dtype=np.int64),
            machine=np.tile(np.arange(self.machines), _MINUTES),
            time_ms=START_MS + MINUTE_MS * np.repeat(minutes, self.machines),
            temperature=values[:, :, 0].ravel(),
            vibration=values[:, :, 1].ravel(),
            pressure=values[:, :, 2].ravel(),
            kind=kind.ravel(),
            incidents=incidents.ravel(),
        )

    def stream(self) -> Iterator[Readings]:
        """Yield the readings of hour after hour without end."""
        hour = 0
        while True:
            yield self.hour(hour)
            hour += 1

    def _fault(self, kind: int, machine: int) -> Floats:
        """What a fault adds, [readings, 3]."""
        added = np.zeros((_LENGTH[kind], 3))
        climb = np.linspace(0, 1, _LENGTH[kind])
        sensor = {KNOCK: 1, LEAK: 2, OVERHEATING: 0}[kind]
        noise, level = self._noise[machine, sensor], self._level[machine, sensor]
        if kind == KNOCK:
            added[:, sensor] = 20 * noise
        elif kind == LEAK:
            added[:, sensor] = -(15 * noise + 0.2 * level * climb)
        else:
            added[:, sensor] = 15 * noise + 20 * climb
        return added
