"""Simulated electricity meters: how much power each home draws, every quarter of an hour.

A home has a base load, peaks in the morning and in the evening at hours of its own, more at weekends, and noise. There
are no faults: the model forecasts the next reading. The same seed gives the same readings, because each day has its own
random numbers. This module knows neither Kafka nor the model.

`python -m lstmstream.demo.load FOLDER` writes `load.csv` and `train.yaml`, of which `lstmstream train` makes the model
that is shipped as `builtin:load`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

START_MS = 1_767_571_200_000  # Monday 2026-01-05, 00:00 UTC
STEP_MS = 900_000
_STEPS = 96  # a day
_TRAINING = """\
name: load
task: forecast
data: {path: load.csv, key: home, timestamp: time}
features: {numbers: [kw], hour_of_day: true, day_of_week: true}
target: {horizon: 1}
split: {by: time, validation: 0.15, test: 0.15}
model: {hidden: 32}
training: {epochs: 12, seed: 0}
"""


@dataclass(frozen=True, slots=True)
class Loads:
    """N readings in order of time."""

    numbers: Ints  # [N] 0, 1, 2 ... in order of time
    home: Ints  # [N]
    time_ms: Ints  # [N] milliseconds since 1970 UTC
    kw: Floats  # [N] the mean of the quarter of an hour before

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice) -> Loads:
        return Loads(*(getattr(self, column.name)[rows] for column in fields(self)))

    @property
    def kind(self) -> NDArray[np.uint8]:
        """No reading is a fault, [N]."""
        return np.zeros(len(self), np.uint8)

    @property
    def incidents(self) -> Ints:
        """None, [N]."""
        return np.full(len(self), -1, np.int64)

    @property
    def shown(self) -> Floats:
        """What the forecasts are compared with, [N]."""
        return self.kw

    def keys(self) -> list[bytes]:
        """Return the record key of each event: the home's name."""
        return [b"h%04d" % number for number in self.home.tolist()]

    def values(self) -> list[bytes]:
        """Return each event as JSON."""
        moments = np.datetime_as_string(self.time_ms.astype("datetime64[ms]"), timezone="UTC").tolist()
        rows = zip(self.numbers.tolist(), self.home.tolist(), moments, self.kw.tolist(), strict=True)
        return [
            orjson.dumps({"number": number, "home": f"h{home:04d}", "time": moment, "kw": kw})
            for number, home, moment, kw in rows
        ]


class Town:
    """Homes and their habits. `day(d)` returns the readings of day d."""

    def __init__(self, *, homes: int = 200, seed: int = 1) -> None:
        """Draw the habits. Raises ValueError without homes."""
        if homes < 1:
            raise ValueError(f"need at least 1 home, got {homes}")
        self.homes, self.seed = homes, seed
        random = np.random.default_rng([seed, 0])
        self._base = random.uniform(0.1, 0.4, homes)
        self._peaks = random.uniform([0.5, 1.0], [1.5, 3.0], (homes, 2))  # kW in the morning and in the evening
        self._hours = random.normal([7.0, 19.0], 1.0, (homes, 2))
        self._widths = random.uniform(0.6, 1.5, (homes, 2))  # hours
        self._noise = random.uniform(0.02, 0.08, homes)

    def day(self, day: int) -> Loads:
        """Return the readings of one day in order of time."""
        random = np.random.default_rng([self.seed, 1, day])
        hours = np.arange(_STEPS)[:, None, None] / 4
        late = random.normal(0.0, 0.4, (self.homes, 2)) + (1.5 if day % 7 >= 5 else 0.0)  # of the peaks, in hours
        height = self._peaks * random.uniform(0.6, 1.4, (self.homes, 2))
        apart = (hours - self._hours - late + 12) % 24 - 12
        kw = self._base + (height * np.exp(-0.5 * (apart / self._widths) ** 2)).sum(axis=2)  # [96, homes]
        kw = np.maximum(kw + self._noise * random.normal(size=kw.shape), 0.0)
        count = _STEPS * self.homes
        steps = day * _STEPS + np.arange(_STEPS)
        return Loads(
            numbers=day * count + np.arange(count, dtype=np.int64),
            home=np.tile(np.arange(self.homes), _STEPS),
            time_ms=START_MS + STEP_MS * np.repeat(steps, self.homes),
            kw=np.round(kw, 3).ravel(),
        )

    def stream(self) -> Iterator[Loads]:
        """Yield the readings of day after day without end."""
        day = 0
        while True:
            yield self.day(day)
            day += 1


def write_training(folder: Path, *, days: int = 28) -> None:
    """Write the history of other homes than the demo's, and the training configuration."""
    town = Town(homes=100, seed=1001)
    with (folder / "load.csv").open("w", encoding="utf-8") as file:
        file.write("home,time,kw\n")
        for day in range(days):
            for value in town.day(day).values():
                event = orjson.loads(value)
                file.write(f"{event['home']},{event['time']},{event['kw']}\n")
    (folder / "train.yaml").write_text(_TRAINING, encoding="utf-8")


if __name__ == "__main__":
    write_training(Path(sys.argv[1]))
