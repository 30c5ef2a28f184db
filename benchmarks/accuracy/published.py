"""Figures that others published for the same files, with where they are from. Facts, not measured here."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.accuracy.judging import Table

SOURCES = {
    "nab": "NAB's published results of HTM and ARTime, thresholds fitted on all files, counted on the 29 files here",
    "touchstone": "the board touchstone-rs (published.csv, beside the data): means over these files",
    "smapmsl": "the best published range F0.5 of these channels",
}


def published(name: str, folder: Path, table: Table) -> list[tuple[str, ...]]:
    """Rows for the table of this set; `-` where a figure was not published."""
    given: dict[str, tuple[str, ...]] = {}
    if name == "nab":
        given = {"HTM": ("70.9",), "ARTime": ("74.4",)}
    elif name == "smapmsl":
        given = {"the best published": ("0.861",)}
    elif name == "touchstone":
        given = _board(folder / "published.csv")
    rest = len(table.heads) - 1
    return [(f"{who} (published)", *(*cells, *["-"] * rest)[:rest]) for who, cells in given.items()]


def _board(path: Path) -> dict[str, tuple[str, ...]]:
    """ROC, AP, none, VUS; the best ROC first."""
    columns: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            columns[row["detector"]].append((float(row["ROC-AUC"]), float(row["AvgPrec"]), float(row["RangePR-VUS"])))
    means = {name: np.mean(rows, axis=0).tolist() for name, rows in columns.items() if name != "Baseline"}
    ordered = sorted(means.items(), key=lambda item: -item[1][0])
    return {name: (f"{roc:.3f}", f"{ap:.3f}", "-", f"{vus:.3f}") for name, (roc, ap, vus) in ordered}
