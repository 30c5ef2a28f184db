"""Writes what the sensors of twelve machines say, every 15 minutes for five weeks, as `sensors.csv`.

    python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named

Load has a daily rhythm, by machine and by weekday; temperature follows the load; vibration follows it too, and grows as
the machine wears. Faults are in the last week only, and none of them needs a value that the machine did not have
before:

    hot      the temperature climbs, and the load does not
    bearing  the vibration trembles
    jump     the load leaps for one reading

`fault` is for measuring: nothing learns from it. The last week also goes to `events.jsonl`.
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
MACHINES, SMALL, WEEKS, A_DAY = 12, 4, 5, 96
HOT, BEARING, JUMP = 6, 8, 1  # readings that each fault lasts
FAULTS = 4  # of each kind, for each machine


def slow(random: np.random.Generator, count: int, keep: float, size: float) -> Floats:
    """[count] Noise with a memory: each value is `keep` of the last and something new, `size` in all."""
    values = np.zeros(count)
    for at, change in enumerate(random.normal(0, size * np.sqrt(1 - keep**2), count)):
        values[at] = keep * values[at - 1] + change
    return values


def healthy(random: np.random.Generator) -> Floats:
    """[N, 3] Load in percent, temperature in degrees Celsius, vibration in mm/s."""
    count = WEEKS * 7 * A_DAY
    time = np.arange(count)
    day, weekday = 2 * np.pi * time / A_DAY, (time // A_DAY) % 7
    rhythm = np.sin(day - random.uniform(1.2, 2.2)) + 0.3 * np.sin(2 * day + random.uniform(0, 6))
    load = 55 + 22 * rhythm * np.where(weekday < 5, 1.0, 0.4) + slow(random, count, 0.9, 4) + random.normal(0, 1, count)
    load = np.clip(load, 2, 100)
    temperature = np.empty(count)
    temperature[0] = 30 + 0.4 * load[0]
    for at in range(1, count):  # warms and cools slowly
        temperature[at] = temperature[at - 1] + 0.15 * (30 + 0.4 * load[at] - temperature[at - 1])
    temperature += random.normal(0, 0.3, count)
    wear = random.uniform(0.2, 0.8) * time / count
    vibration = 1.5 + wear + 0.02 * load + random.normal(0, 0.08, count)
    return np.stack([load, temperature, vibration], axis=1)


def broken(values: Floats, random: np.random.Generator) -> list[str]:
    """[N] The fault at each reading, "" where there is none; changes `values` [N, 3]."""
    fault = [""] * len(values)
    first = (WEEKS - 1) * 7 * A_DAY
    places = (
        first + 10 + np.arange(3 * FAULTS) * ((7 * A_DAY - 20) // (3 * FAULTS)) + random.integers(0, 30, 3 * FAULTS)
    )
    kinds = random.permutation(["hot", "bearing", "jump"] * FAULTS)
    for start, kind in zip(places.tolist(), kinds.tolist(), strict=True):
        length = {"hot": HOT, "bearing": BEARING, "jump": JUMP}[kind]
        span = slice(start, start + length)
        if kind == "hot":
            values[span, 1] += 1.6 * np.arange(1, length + 1)
        elif kind == "bearing":
            values[span, 2] += random.choice([-1, 1], length) * random.uniform(0.3, 0.7, length)
        else:
            values[span, 0] = 110 - values[span, 0]
        fault[span] = [kind] * length
    return fault


def main(folder: Path, machines: int) -> None:
    """Writes both files."""
    rows = []
    for number in range(machines):
        random = np.random.default_rng([11, number])
        values = healthy(random)
        fault = broken(values, random)
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
