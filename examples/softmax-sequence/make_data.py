"""Writes noisy waves of ten different periods; the label of a wave is its period.

    python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named

`waves.csv` is the training data; `train.yaml` splits it by key. `events.jsonl` has other waves as a stream: their
values in turn, each with its label, which the model does not see.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

PERIODS = {f"period-{period}": period for period in (2, 3, 4, 5, 6, 8, 10, 13, 17, 24)}
WAVES, SMALL, STREAMED = 3000, 1200, 200
NOISE = 0.3  # standard deviation; the waves range from -1 to 1
Row = tuple[str, float, str]  # key, value, kind


def wave(key: str, source: random.Random) -> Iterator[Row]:
    """The rows of one wave: 20 to 40 values from a random phase on."""
    kind = source.choice(list(PERIODS))
    begin = source.uniform(0, 2 * math.pi)
    for place in range(source.randint(20, 40)):
        value = math.sin(begin + 2 * math.pi * place / PERIODS[kind]) + source.gauss(0, NOISE)
        yield key, round(value, 4), kind


def in_turn(waves: list[list[Row]]) -> Iterator[Row]:
    """The first row of each wave, then the second of each, and so on."""
    for place in range(max(map(len, waves))):
        yield from (rows[place] for rows in waves if place < len(rows))


def main(folder: Path, *, small: bool = False) -> None:
    """Writes both files."""
    train_random, stream_random = random.Random(1), random.Random(2)  # noqa: S311 -- the same numbers every time
    with (folder / "waves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["wave", "value", "kind"])
        for number in range(SMALL if small else WAVES):
            writer.writerows(wave(f"w{number}", train_random))
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for key, value, kind in in_turn([list(wave(f"a{number}", stream_random)) for number in range(STREAMED)]):
            file.write(json.dumps({"wave": key, "value": value, "kind": kind}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes waves.csv and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} waves instead of {WAVES}")
    options = parser.parse_args()
    main(options.folder, small=options.small)
