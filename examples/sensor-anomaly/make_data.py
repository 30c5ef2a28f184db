"""Writes sensor readings of twelve simulated machines, every 15 minutes for eight weeks, as `sensors.csv`.

    python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named

Each machine works its own hours on weekdays, so that its load jumps twice a day. Temperature follows the load and the
weather; vibration follows the load, and grows as the machine wears. Faults are in the last week only, and their values
are within the usual range of the machine:

    hot      the temperature rises, and the load does not
    bearing  the vibration is unsteady
    leap     the load jumps for one reading, outside or within the working hours

`fault` is 1 from the first reading of a fault to the first normal one after it. It is for evaluation only. The last
week also goes to `events.jsonl`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
START = np.datetime64("2026-03-02T00:00")  # a Monday
MACHINES, SMALL, WEEKS, A_DAY = 12, 4, 8, 96
LENGTH = {"hot": 6, "bearing": 8, "leap": 1}  # readings
FAULTS = 2  # of each kind, for each machine


def autocorrelated_noise(random: np.random.Generator, count: int, keep: float, size: float) -> Floats:
    """[count] Autocorrelated noise: `keep` is the correlation of neighbors, `size` the standard deviation."""
    values = np.zeros(count)
    for at, change in enumerate(random.normal(0, size * np.sqrt(1 - keep**2), count)):
        values[at] = keep * values[at - 1] + change
    return values


def healthy(random: np.random.Generator) -> Floats:
    """[N, 3] Load in percent, temperature in degrees Celsius, vibration in mm/s."""
    count = WEEKS * 7 * A_DAY
    time = np.arange(count)
    hour, weekday = 24 * (time % A_DAY) / A_DAY, (time // A_DAY) % 7
    begin, end = random.integers(5, 9), random.integers(16, 23)
    works = (hour >= begin) & (hour < end) & (weekday < 5)
    load = (
        np.where(works, random.uniform(45, 75), 10)
        + autocorrelated_noise(random, count, 0.9, 4)
        + random.normal(0, 1, count)
    )
    load = np.clip(load, 2, 100)
    outside = 20 + 4 * np.sin(2 * np.pi * (hour - 9) / 24) + autocorrelated_noise(random, count, 0.999, 3)
    temperature = np.empty(count)
    temperature[0] = outside[0] + 0.4 * load[0]
    for at in range(1, count):  # warms and cools slowly
        temperature[at] = temperature[at - 1] + 0.15 * (outside[at] + 0.4 * load[at] - temperature[at - 1])
    temperature += random.normal(0, 0.3, count)
    wear = random.uniform(0.2, 0.8) * time / count
    vibration = 1.5 + wear + 0.02 * load + random.normal(0, 0.08, count)
    return np.stack([load, temperature, vibration], axis=1)


def add_faults(values: Floats, random: np.random.Generator) -> list[str]:
    """Adds faults to `values` [N, 3] in place; returns the kind of fault at each reading [N], "" for none."""
    fault = [""] * len(values)
    kinds = random.permutation(list(LENGTH) * FAULTS).tolist()
    week = 7 * A_DAY
    apart = (week - 20) // len(kinds)
    for place, kind in enumerate(kinds):
        start = len(values) - week + 10 + place * apart + int(random.integers(0, apart - 12))
        length = LENGTH[kind]
        span = slice(start, start + length)
        if kind == "hot":
            values[span, 1] += 1.6 * np.arange(1, length + 1)
        elif kind == "bearing":
            values[span, 2] += random.choice([-1, 1], length) * random.uniform(0.3, 0.7, length)
        else:
            values[span, 0] += 30 if values[start, 0] < 40 else -30
        fault[start : start + length + 1] = [kind] * (length + 1)
    return fault


def main(folder: Path, machines: int) -> None:
    """Writes both files."""
    rows = []
    for number in range(machines):
        random = np.random.default_rng([11, number])
        values = healthy(random)
        fault = add_faults(values, random)
        for at, (load, temperature, vibration) in enumerate(values.round(2).tolist()):
            time = f"{START + np.timedelta64(15 * at, 'm')}:00Z"
            rows.append((time, f"m{number:02d}", load, temperature, vibration, fault[at]))
    rows.sort(key=lambda row: row[0])
    names = ["time", "machine", "load", "temperature", "vibration", "kind", "fault"]
    table = [[*row, int(bool(row[-1]))] for row in rows]
    with (folder / "sensors.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(table)
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in table[-(len(table) // WEEKS) :]
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes sensors.csv and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} machines instead of {MACHINES}")
    options = parser.parse_args()
    main(options.folder, SMALL if options.small else MACHINES)
