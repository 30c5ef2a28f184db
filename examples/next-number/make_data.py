"""Writes the numbers 1 to 10 as training data, `numbers.csv`, and events to score, `events.jsonl`.

python make_data.py [FOLDER] [--small]     beside this file, unless a folder is named; --small changes nothing here
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

SERIES = {  # key: its numbers and the split of each; "" only warms up the state
    "ten": [(number, "train") for number in range(1, 11)],
    "between": [(number + 0.5, "validation") for number in range(1, 10)],  # for validation only
    "beyond": [(8, ""), (9, ""), (10, "test"), (11, "test")],  # one forecast is evaluated: 11, after 8, 9, 10
}


def main(folder: Path) -> None:
    """Writes both files."""
    with (folder / "numbers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["key", "value", "part"])
        writer.writerows([key, value, part] for key, series in SERIES.items() for value, part in series)
    with (folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for key, first in (("from one", 1), ("from eight", 8)):
            file.writelines(json.dumps({"key": key, "value": number}) + "\n" for number in range(first, 11))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes numbers.csv and events.jsonl.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--small", action="store_true", help="no effect: the data are small")
    main(parser.parse_args().folder)
