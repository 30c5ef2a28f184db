"""Writes the sunlight at eight places, computed hour by hour for two years, as `sunlight.csv`.

    python make_data.py [FOLDER] [--small] [--from FILE.csv]     beside this file, unless a folder is named

The position of the sun is astronomy: declination and equation of time by Spencer's series (1971), and from them the
light of a clear sky (Haurwitz, 1945). The clouds are random. `--from` takes a series of your own instead: a CSV file
with the columns timestamp and value. The last tenth of the hours also goes to `events.jsonl`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PLACES = {  # degrees north and east
    "Berlin": (52.5, 13.4),
    "Cape Town": (-33.9, 18.4),
    "Delhi": (28.6, 77.2),
    "Lisbon": (38.7, -9.1),
    "Nairobi": (-1.3, 36.8),
    "Oslo": (59.9, 10.8),
    "Quito": (-0.2, -78.5),
    "Sydney": (-33.9, 151.2),
}
START, DAYS, SMALL = "2024-01-01", 731, 90
Row = tuple[str, str, float]


def elevation(hours: NDArray[np.datetime64], north: float, east: float) -> Floats:
    """[N] Sine of the elevation of the sun at the hours [N] (UTC), at a place in degrees north and east."""
    year = 2 * np.pi * ((hours - hours.astype("datetime64[Y]")) / np.timedelta64(1, "h")) / 24 / 365.25
    declination = (
        0.006918
        - 0.399912 * np.cos(year)
        + 0.070257 * np.sin(year)
        - 0.006758 * np.cos(2 * year)
        + 0.000907 * np.sin(2 * year)
    )
    equation_of_time = 229.18 * (  # in minutes, by which a sundial is ahead of a clock
        0.000075
        + 0.001868 * np.cos(year)
        - 0.032077 * np.sin(year)
        - 0.014615 * np.cos(2 * year)
        - 0.040849 * np.sin(2 * year)
    )
    utc = (hours - hours.astype("datetime64[D]")) / np.timedelta64(1, "h")
    hour_angle = np.radians(15 * (utc - 12) + east + equation_of_time / 4)
    latitude = np.radians(north)
    height: Floats = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(
        hour_angle
    )
    return height


def sunlight(hours: NDArray[np.datetime64], place: str, seed: int) -> Floats:
    """[N] Light on level ground in watts per square metre: that of a clear sky, reduced by random clouds."""
    height = np.maximum(elevation(hours, *PLACES[place]), 1e-6)
    clear = 1098 * height * np.exp(-0.057 / height)
    random = np.random.default_rng(seed)
    weather = np.zeros(len(hours))
    for hour, change in enumerate(random.normal(0, 0.35, len(hours))):
        weather[hour] = 0.94 * weather[hour - 1] + change  # weather lasts for most of a day
    through = 0.25 + 0.75 / (1 + np.exp(-1.0 - 1.5 * weather))
    light: Floats = clear * through
    return light


def computed_rows(days: int) -> list[Row]:
    """The rows of all places: place, time and value, in the order of time."""
    hours = np.datetime64(START) + np.arange(24 * days).astype("timedelta64[h]")
    series = {place: sunlight(hours, place, seed) for seed, place in enumerate(PLACES)}
    times = np.datetime_as_string(hours, unit="s", timezone="UTC").tolist()
    return [(place, time, round(float(series[place][at]), 1)) for at, time in enumerate(times) for place in PLACES]


def rows_from_file(file: Path) -> list[Row]:
    """The rows of the user's file, as one place."""
    with file.open(newline="", encoding="utf-8") as opened:
        return [(file.stem, row["timestamp"], float(row["value"])) for row in csv.DictReader(opened)]


def main(folder: Path, rows: list[Row]) -> None:
    """Writes both files."""
    with (folder / "sunlight.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["place", "time", "value"])
        writer.writerows(rows)
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for place, time, value in rows[-(len(rows) // 10) :]:
            file.write(json.dumps({"place": place, "time": time, "value": value}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes sunlight.csv and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} days instead of {DAYS}")
    parser.add_argument(
        "--from", dest="file", type=Path, help="a CSV file with timestamp and value, instead of the sun"
    )
    options = parser.parse_args()
    main(
        options.folder,
        rows_from_file(options.file) if options.file else computed_rows(SMALL if options.small else DAYS),
    )
