"""Writes the number line, 0 -> 1, 1 -> 2, ... 99 -> 100, as `line.csv`, and the event 100 to score, `events.jsonl`.

python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named; --small changes nothing here
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path


def rows() -> Iterator[tuple[str, float, str]]:
    """Key, value and split of each row."""
    for number in range(101):
        yield "line", number, "train"
    for number in range(100):  # the numbers between, for validation only
        yield "between", number + 0.5, "validation"
    for number in (100, 101):  # one forecast is evaluated: 101, after 100
        yield "beyond", number, "test"


def main(folder: Path) -> None:
    """Writes both files."""
    with (folder / "line.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "value", "part"])
        writer.writerows(rows())
    (folder / "events.jsonl").write_text(json.dumps({"key": "asked", "value": 100}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes line.csv and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help="no effect: the data are small")
    main(parser.parse_args().folder)
