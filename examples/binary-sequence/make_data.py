"""Writes sequences of random numbers; the label is 1 as soon as the sum of the sequence exceeds LIMIT.

    python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named

`sequences.csv` is the training data; `train.yaml` splits it by key. `events.jsonl` has other sequences as a stream:
their numbers in turn, each with its label, which the model does not see.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

LIMIT = 2.5  # half of the expected sum of a sequence
SEQUENCES, SMALL, STREAMED = 2000, 600, 200
Row = tuple[str, float, int]  # key, value, label


def sequence(key: str, source: random.Random) -> Iterator[Row]:
    """The rows of one sequence: 5 to 15 numbers between 0 and 1."""
    total = 0.0
    for _ in range(source.randint(5, 15)):
        value = round(source.random(), 4)
        total += value
        yield key, value, int(total > LIMIT)


def in_turn(sequences: list[list[Row]]) -> Iterator[Row]:
    """The first row of each sequence, then the second of each, and so on."""
    for place in range(max(map(len, sequences))):
        yield from (rows[place] for rows in sequences if place < len(rows))


def main(folder: Path, *, small: bool = False) -> None:
    """Writes both files."""
    train_random, stream_random = random.Random(1), random.Random(2)  # noqa: S311 -- the same numbers every time
    with (folder / "sequences.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sequence", "value", "label"])
        for number in range(SMALL if small else SEQUENCES):
            writer.writerows(sequence(f"s{number}", train_random))
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for key, value, label in in_turn([list(sequence(f"a{number}", stream_random)) for number in range(STREAMED)]):
            file.write(json.dumps({"sequence": key, "value": value, "label": label}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes sequences.csv and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} sequences instead of {SEQUENCES}")
    options = parser.parse_args()
    main(options.folder, small=options.small)
