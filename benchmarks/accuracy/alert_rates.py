"""How many alerts `builtin:anomaly` raises where nothing is anomalous: the meaning of a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.accuracy.detectors import Readings
from benchmarks.accuracy.judging import Table, mask_of
from benchmarks.accuracy.series import Numbers, Series, every_second

THRESHOLDS = (0.4, 0.45, 0.475, 0.5, 0.525, 0.55, 0.6, 0.65, 0.7)
WARM_ROWS = 200
MARGIN_ROWS = 200  # around a label
PER_ROWS = 10_000
NOISE_ROWS, NOISE_KEYS = 10_000, 4

Sets = Mapping[str, tuple[Sequence[Series], Sequence[Readings]]]


def noise_series() -> list[Series]:
    """Numbers in which there is nothing to find: names are `<kind> <key>`."""
    found = []
    for key in range(NOISE_KEYS):
        random = np.random.default_rng([7, key])
        white, time = random.standard_normal(NOISE_ROWS), np.arange(NOISE_ROWS)
        kinds: dict[str, Numbers] = {
            "white noise": white,
            "exponential noise": random.exponential(size=NOISE_ROWS),
            "autoregression": _autoregression(white),
            "random walk": np.cumsum(white),
            "daily wave with noise": 3 * np.sin(2 * np.pi * time / 288) + white,
        }
        for name, x in kinds.items():
            values = x[:, np.newaxis].astype(np.float32)
            found.append(Series(f"{name} {key}", values, every_second(NOISE_ROWS), ()))
    return found


def _autoregression(white: Numbers) -> Numbers:
    """Each is 0.9 of the last, and noise."""
    found, last = np.empty_like(white), 0.0
    for row, value in enumerate(white.tolist()):
        last = found[row] = 0.9 * last + value
    return found


def alert_rates(sets: Sets) -> Table:
    """Events at each threshold in 10,000 events of a key that are warm and far from every label."""
    heads = ("threshold", *(f"{name} ({_quiet_rows(series):,})" for name, (series, _) in sets.items()))
    rows = []
    for threshold in THRESHOLDS:
        rates = [_rate(series, readings, threshold) for series, readings in sets.values()]
        rows.append((f"{threshold:g}", *(f"{rate:.1f}" for rate in rates)))
    return Table(heads, rows)


def quiet(series: Series) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[T] Warm, and no label within 200 rows."""
    near = np.convolve(mask_of(series), np.ones(2 * MARGIN_ROWS + 1), mode="same") > 0.5
    near[:WARM_ROWS] = True
    return ~near


def _quiet_rows(series: Sequence[Series]) -> int:
    return int(sum(quiet(one).sum() for one in series))


def _rate(series: Sequence[Series], readings: Sequence[Readings], threshold: float) -> float:
    alerts = sum(
        int((reading.score[quiet(one)] >= threshold).sum()) for one, reading in zip(series, readings, strict=True)
    )
    return PER_ROWS * alerts / max(_quiet_rows(series), 1)


def by_kind(series: Sequence[Series], readings: Sequence[Readings]) -> Sets:
    """The noise, of each kind."""
    found: dict[str, tuple[list[Series], list[Readings]]] = {}
    for one, reading in zip(series, readings, strict=True):
        kind = found.setdefault(one.name.rpartition(" ")[0], ([], []))
        kind[0].append(one)
        kind[1].append(reading)
    return found
