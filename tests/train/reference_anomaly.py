"""The detectors `builtin:anomaly` and `builtin:anomaly-small` for one key, row by row, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lstmstream.train.anomaly_sizes import LARGE, Sizes


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

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.rows, self.mean, self.variance, self.least, self.last_x = 0, 0.0, 0.0, math.inf, 0.0
        self.ring = np.zeros(sizes.ring)
        self.centres = {name: Centres(count) for name, (count, _) in sizes.shapes.items()}
        width = sizes.order + 1
        self.covariance, self.weights, self.regressors = 100.0 * np.eye(width), np.zeros(width), np.zeros(width)
        self.regressors[sizes.order] = 1.0
        self.hours, self.hour_rows, self.residual = np.zeros(sizes.hours), np.zeros(sizes.hours), 0.0
        self.fast = self.slow = self.last_z = self.level = 0.0
        self.flat_rows = self.longest_flat = self.changes = 0
        near = [name for name in sizes.shapes if name != "long"]
        self.smooth = np.zeros(len(near) + 1)
        self.ratios = [Ratio() for name in sizes.shapes if name != "short"]
        self.error_ratio = Ratio()
        self.blocks = [Blocks(sizes.events.rows, sizes.events.blocks, sizes.event_rank) for _ in range(len(near) + 3)]
        self.novel = [Blocks(sizes.novel.rows, sizes.novel.blocks, rank, 0.1) for rank in (1, sizes.level_rank)]

    def rate(self, rows: float) -> float:
        return max(1 / (self.rows + 1), 1 / rows)

    def step(self, x: float, timestamp_ms: int) -> list[float]:
        hangs = self.hangs(x)
        z = self.scaled(x)
        self.ring = np.append(self.ring[1:], z)
        windows = {name: self.ring[-width:] for name, (_, width) in self.sizes.shapes.items()}
        if "long" in windows:
            groups = self.ring.reshape(-1, 4).mean(axis=1)
            windows["long"] = groups - groups.mean()
        started = self.rows >= 150
        near = {name: self.centres[name].distance(one) if started else 0.0 for name, one in windows.items()}
        error = abs(self.forecast_error(z))
        hour = timestamp_ms % 86_400_000 * self.sizes.hours // 86_400_000
        residual = z - self.hours[hour]
        self.hour_rows[hour] += 1
        self.hours[hour] += max(1 / self.hour_rows[hour], 0.1) * residual
        self.residual += self.rate(48) * (residual - self.residual)
        square = (z - self.last_z) ** 2 if self.rows else 0.0
        self.last_z = z
        self.fast += self.rate(16) * (square - self.fast)
        self.slow += self.rate(1000) * (square - self.slow)
        self.level += self.rate(200) * (z - self.level)
        shapes = [value for name, value in near.items() if name != "long"]
        self.smooth += self.rate(8) * (np.array([*shapes, abs(self.level)]) - self.smooth)
        spread = abs(math.log((self.fast + 1e-3) / (self.slow + 1e-3)))
        compared = [value for name, value in near.items() if name != "short"]
        ratios = [one.of(value) if started else 0.0 for one, value in zip(self.ratios, compared, strict=True)]
        ratios.append(self.error_ratio.of(error))
        *smooth, slow = self.smooth
        middle = smooth[-1]
        measures = (*smooth, abs(self.residual), abs(z), spread)
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
        most = 100.0 * (self.sizes.order + 1)
        if trace > most:
            self.covariance *= most / trace
        self.regressors = np.array([z, *self.regressors[: self.sizes.order - 1], 1.0])
        return error


class Detector:
    """One key."""

    def __init__(self, channels: int, sizes: Sizes = LARGE) -> None:
        self.channels = [Channel(sizes) for _ in range(channels)]
        self.compared = sum(name != "short" for name in sizes.shapes)
        self.measures = 3 + sum(name != "long" for name in sizes.shapes)
        self.rows = self.hold = self.quiet = 0
        self.forecast = self.rank = self.boost = 0.0

    def step(self, values: Any, elapsed_s: float, timestamp_ms: int) -> tuple[float, float, float, float]:
        """rank, events, novelty, warm"""
        last = self.compared + 1 + self.measures
        top = np.zeros(last + 3)
        for channel, value in zip(self.channels, values, strict=True):
            if not math.isnan(value):
                top = np.maximum(top, channel.step(float(value), timestamp_ms))
        n = self.rows + 1
        error = top[self.compared]
        self.forecast += max(1 / n, 1 / 40) * (error - self.forecast)
        usual = float(np.log1p(top[: self.compared]).sum()) + math.log1p(self.forecast)
        self.rank += max(1 / n, 1 / 12) * (usual - self.rank)
        ranked = self.rank + max(0.0, math.log((error + 1e-3) / 5.0))
        joined = float(np.mean(np.minimum(top[self.compared + 1 : last], 5.0) ** 3)) ** (1 / 3)
        self.hold = max(self.hold - 1, 0)
        self.boost *= 1 - 1 / 150
        level = max(0.0 if self.hold else joined / (1 + self.boost), top[last + 2])
        if level >= 1:
            self.hold, self.boost = 30, self.boost + 0.6
        if elapsed_s > 86_400:
            self.quiet = 250
        warm = float(self.rows >= 200)
        novelty = 0.0 if self.quiet else float(max(top[last], top[last + 1])) * warm
        self.quiet = max(self.quiet - 1, 0)
        self.rows += 1
        return ranked, level / (level + 1) * warm, novelty, warm
