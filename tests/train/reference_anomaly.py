"""The detector of `builtin:anomaly` for one key, row by row, in float64: as anomaly_graph.py describes it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SHAPES = {"short": (32, 5), "middle": (32, 8), "long": (64, 25)}


class Centres:
    """A streaming k-means."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.centres: list[Any] = []
        self.counts: list[int] = []
        self.usual, self.rows = 0.0, 0

    def distance(self, window: Any) -> float:
        if not self.centres:
            self.centres.append(window.copy())
            self.counts.append(1)
            return 0.0
        squares = [float(((window - centre) ** 2).sum()) for centre in self.centres]
        nearest = int(np.argmin(squares))
        distance = math.sqrt(squares[nearest] / len(window))
        if len(self.centres) < self.most and distance > self.usual:
            self.centres.append(window.copy())
            self.counts.append(1)
        else:
            self.counts[nearest] += 1
            rate = max(1 / self.counts[nearest], 0.007)
            self.centres[nearest] = self.centres[nearest] + rate * (window - self.centres[nearest])
        self.rows += 1
        self.usual += max(1 / self.rows, 0.001) * (distance - self.usual)
        return distance


class Ratio:
    """A value over its running mean."""

    def __init__(self) -> None:
        self.mean, self.rows = 0.0, 0

    def of(self, value: float) -> float:
        known = self.mean > 0
        ratio = value / self.mean if self.rows > 20 and known else 0.0
        if self.rows > 50 and known:
            value = min(value, 4 * self.mean)
        self.rows += 1
        self.mean += max(1 / self.rows, 1 / 4000) * (value - self.mean)
        return ratio


class Blocks:
    """A value over the largest of the maxima of earlier blocks, or over another one in their order."""

    def __init__(self, rows: int, blocks: int, rank: int, floor: float = 0.0) -> None:
        self.block_rows, self.most, self.rank, self.floor = rows, blocks, rank, floor
        self.maxima: list[float] = []
        self.now, self.rows = 0.0, 0

    def of(self, value: float) -> float:
        found = 0.0
        if self.maxima:
            ordered = sorted(self.maxima)
            reference = ordered[max(len(ordered) - self.rank, 0)]
            if self.rank == 1:
                reference = max(reference, self.now)
            if self.floor:
                found = value / max(reference, self.floor)
            elif reference > 0:
                found = value / (reference + 1e-9)
        self.now, self.rows = max(self.now, value), self.rows + 1
        if self.rows == self.block_rows:
            self.maxima = [*self.maxima, self.now][-self.most :]
            self.now, self.rows = 0.0, 0
        return found


class Channel:
    """One number of the key."""

    def __init__(self) -> None:
        self.rows, self.mean, self.variance, self.least, self.last_x = 0, 0.0, 0.0, math.inf, 0.0
        self.ring = np.zeros(100)
        self.centres = {name: Centres(count) for name, (count, _) in SHAPES.items()}
        self.covariance, self.weights, self.regressors = 100.0 * np.eye(17), np.zeros(17), np.zeros(17)
        self.regressors[16] = 1.0
        self.hours, self.hour_rows, self.residual = np.zeros(24), np.zeros(24), 0.0
        self.fast = self.slow = self.last_z = self.level = 0.0
        self.flat_rows = self.longest_flat = self.changes = 0
        self.smooth = np.zeros(3)
        self.ratios = [Ratio() for _ in range(3)]
        self.blocks = [Blocks(25, 128, 6) for _ in range(5)]
        self.novel = [Blocks(50, 256, 1, 0.1), Blocks(50, 256, 3, 0.1)]

    def rate(self, rows: float) -> float:
        return max(1 / (self.rows + 1), 1 / rows)

    def step(self, x: float, timestamp_ms: int) -> list[float]:
        hangs = self.hangs(x)
        z = self.scaled(x)
        self.ring = np.append(self.ring[1:], z)
        groups = self.ring.reshape(25, 4).mean(axis=1)
        windows = {"short": self.ring[-5:], "middle": self.ring[-8:], "long": groups - groups.mean()}
        started = self.rows >= 150
        near = {name: self.centres[name].distance(one) if started else 0.0 for name, one in windows.items()}
        error = abs(self.forecast_error(z))
        hour = timestamp_ms % 86_400_000 // 3_600_000
        residual = z - self.hours[hour]
        self.hour_rows[hour] += 1
        self.hours[hour] += max(1 / self.hour_rows[hour], 0.1) * residual
        self.residual += self.rate(48) * (residual - self.residual)
        square = (z - self.last_z) ** 2 if self.rows else 0.0
        self.last_z = z
        self.fast += self.rate(16) * (square - self.fast)
        self.slow += self.rate(1000) * (square - self.slow)
        self.level += self.rate(200) * (z - self.level)
        self.smooth += self.rate(8) * (np.array([near["short"], near["middle"], abs(self.level)]) - self.smooth)
        spread = abs(math.log((self.fast + 1e-3) / (self.slow + 1e-3)))
        ratios = [
            self.ratios[0].of(near["middle"]) if started else 0.0,
            self.ratios[1].of(near["long"]) if started else 0.0,
            self.ratios[2].of(error),
        ]
        short, middle, slow = self.smooth
        measures = (short, middle, abs(self.residual), abs(z), spread)
        events = [block.of(value) for block, value in zip(self.blocks, measures, strict=True)]
        novelty = [self.novel[0].of(middle), self.novel[1].of(slow) / 1.75]
        self.rows += 1
        return [*ratios, *events, *novelty, hangs]

    def hangs(self, x: float) -> float:
        if self.rows and x == self.last_x:
            self.flat_rows += 1
        else:
            self.longest_flat = max(self.longest_flat, self.flat_rows)
            self.flat_rows, self.changes = 1, self.changes + 1
        return float(self.flat_rows == max(60, 4 * self.longest_flat) and self.changes > 100)

    def scaled(self, x: float) -> float:
        if not self.rows:
            self.mean = self.last_x = x
        step = abs(x - self.last_x)
        if 0 < step < self.least:
            self.least = step
        self.last_x = x
        floor = max(abs(self.mean) * 1e-6, 1e-30)
        if math.isfinite(self.least):
            floor = max(floor, 0.5 * self.least)
        deviation = max(math.sqrt(self.variance), floor)
        away = x - self.mean
        z = min(max(away / deviation, -20.0), 20.0)
        if self.rows > 50:
            away = min(max(away, -4 * deviation), 4 * deviation)
        rate = self.rate(4000)
        self.mean += rate * away
        self.variance = (1 - rate) * (self.variance + rate * away * away)
        return z

    def forecast_error(self, z: float) -> float:
        error = z - float(self.weights @ self.regressors)
        gain = self.covariance @ self.regressors
        divisor = 0.999 + float(gain @ self.regressors)
        self.weights = self.weights + gain / divisor * min(max(error, -3.0), 3.0)
        self.covariance = (self.covariance - np.outer(gain, gain) / divisor) / 0.999
        trace = float(np.trace(self.covariance))
        if trace > 1700:
            self.covariance *= 1700 / trace
        self.regressors = np.array([z, *self.regressors[:15], 1.0])
        return error


class Detector:
    """One key."""

    def __init__(self, channels: int) -> None:
        self.channels = [Channel() for _ in range(channels)]
        self.rows = self.hold = self.quiet = 0
        self.forecast = self.rank = self.boost = 0.0

    def step(self, values: Any, elapsed_s: float, timestamp_ms: int) -> tuple[float, float, float, float]:
        """rank, events, novelty, warm"""
        top = np.zeros(11)
        for channel, value in zip(self.channels, values, strict=True):
            if not math.isnan(value):
                top = np.maximum(top, channel.step(float(value), timestamp_ms))
        n = self.rows + 1
        self.forecast += max(1 / n, 1 / 40) * (top[2] - self.forecast)
        usual = math.log1p(top[0]) + math.log1p(top[1]) + math.log1p(self.forecast)
        self.rank += max(1 / n, 1 / 12) * (usual - self.rank)
        ranked = self.rank + max(0.0, math.log((top[2] + 1e-3) / 5.0))
        joined = float(np.mean(np.minimum(top[3:8], 5.0) ** 3)) ** (1 / 3)
        self.hold = max(self.hold - 1, 0)
        self.boost *= 1 - 1 / 150
        level = max(0.0 if self.hold else joined / (1 + self.boost), top[10])
        if level >= 1:
            self.hold, self.boost = 30, self.boost + 0.6
        if elapsed_s > 86_400:
            self.quiet = 250
        warm = float(self.rows >= 200)
        novelty = 0.0 if self.quiet else float(max(top[8], top[9])) * warm
        self.quiet = max(self.quiet - 1, 0)
        self.rows += 1
        return ranked, level / (level + 1) * warm, novelty, warm
