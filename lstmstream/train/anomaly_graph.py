"""The step graph of `builtin:anomaly`: an anomaly detector for any numbers, which learns each key's ways as it goes.

It has no trained weights. For each of C channels (numbers of an event) it keeps, as a part of the key's state row:

- a slow mean and deviation of the value x, which scale it: z = clip((x - mean) / deviation, -Z_MAX, Z_MAX);
- the shapes that the last 5, 8 and 100 values of z have had, as centres of a streaming k-means. A window's distance to
  the nearest centre says how unusual it is. A new centre is opened where that is farther than usual;
- an autoregression over 16 values, by recursive least squares with forgetting: its error says how far z is from the
  forecast;
- the usual z of each hour of the day; the variance of differences, fast and slow; a slow level;
- how long x has not changed, and the longest that it did not before.

Three readings of that, each the largest of all channels (`prediction`):

- `rank`: grows with how unusual the row is. log(1 + u) of the ratios u of distances and error to their running means,
  added up and smoothed over 12 rows;
- `events` (the `score`): an alarm at 0.5. Five measures, each over the 6th largest of its maxima in the last 128 blocks
  of 25 rows, joined by the mean of their cubes. After an alarm comes silence of 30 rows, and a threshold that is higher
  for a while. Also an alarm, once: a value that used to change and has stayed for 60 rows, and for 4 times longer than
  ever before;
- `novelty`: 1 and more where something is larger than all that was seen in the last 256 blocks of 50 rows.

`warm` is 1 once 200 rows were seen. Until then `events` and `novelty` are 0. A channel whose value is missing rests. N
keys are independent of each other.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx import TensorProto, helper

from lstmstream.model import Card, write_model
from lstmstream.model.card import WARM, Feature
from lstmstream.train.anomaly_sizes import FAR, KEY_FLOATS, LARGE, MAX_TRACE, MODELS, Blocks, Sizes
from lstmstream.train.export.graph import IR_VERSION, OPSET, GraphBuilder
from lstmstream.train.expressions import Formulas, Tensor

SLOW_ROWS = 4000.0  # of the mean and deviation that scale a channel
WINSOR = 4.0  # deviations, of what may move them
Z_MAX = 20.0
X_MAX, X_MIN = 1e37, 1e-30  # beyond them a value counts as that, and a deviation below as that
START_ROWS = 150  # before the first centre
LEAST_RATE = 0.007  # of a centre
FORGETTING = 0.999
DAY_MS = 86_400_000
NOVEL_FLOOR, LEVEL_WEIGHT = 0.1, 1.75
HOLD_ROWS, BOOST, BOOST_ROWS = 30, 0.6, 150.0
FLAT_ROWS, FLAT_TIMES, FLAT_CHANGES = 60.0, 4.0, 100.0  # of a value that hangs; it has changed so often before
WARM_ROWS = 200.0
SPIKE = 5.0  # times the usual error of the forecast: such a row counts at once
QUIET_ROWS, GAP_S = 250, 86_400.0  # after a gap


def anomaly_model(sizes: Sizes = LARGE) -> tuple[bytes, Card]:
    """The ONNX model, whose nodes are the same for any number of channels, and its card: of one channel.

    `lstmstream/model/channels.py` makes more of it.
    """
    graph = GraphBuilder()
    state = sizes.state()
    outputs = _add_step(Formulas(graph), sizes)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1]),
        helper.make_tensor_value_info("timestamp", TensorProto.INT64, ["N"]),
        helper.make_tensor_value_info("elapsed", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, ["N", state.size]),
    ]
    made = helper.make_graph(graph.nodes, "anomaly", inputs, outputs, graph.weights)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    card = Card(
        name=sizes.name,
        version="1",
        task="anomaly",
        features=(Feature("value", "number"),),
        state=state,
        outputs=("state_out", "score", "prediction"),
        threshold=0.5,
        prediction_names=("rank", "score", "novelty", WARM),
    )
    return proto.SerializeToString(), card


def _add_step(f: Formulas, sizes: Sizes) -> list[object]:
    parts, size = sizes.channel_parts(), sizes.state().size
    x, elapsed = f.given("x"), f.given("elapsed")
    own, rest = f.split_at(f.given("state"), KEY_FLOATS)
    channels = f.reshape_like(rest, x, sizes.channel_floats)  # [N, C, floats]
    missing = f.apply("IsNaN", x)
    before = dict(zip(parts, f.split(channels, [int(np.prod(shape)) for shape in parts.values()]), strict=True))
    after, readings = _Channel(f, sizes, x, missing, before).step()
    kept = f.where(f.unsqueeze(missing), channels, f.join(*[after[name] for name in parts]))
    zero = f.constant(0.0)
    top = f.max(f.where(f.unsqueeze(missing), zero, readings), 1)  # [N, readings]
    new_own, score, prediction = _fuse(f, sizes, own, top, elapsed)
    flat = f.apply("Flatten", kept, axis=1)
    f.apply("Concat", new_own, flat, axis=1, output="state_out")
    f.apply("Squeeze", score, f.integers(1), output="score")
    f.apply("Identity", prediction, output="prediction")
    return [
        helper.make_tensor_value_info("state_out", TensorProto.FLOAT, ["N", size]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["N", 4]),
    ]


class _Channel:
    """One row of each channel. Tensors are [N, C, ...]; those of one value per channel are [N, C, 1]."""

    def __init__(self, f: Formulas, sizes: Sizes, x: Tensor, missing: Tensor, before: dict[str, Tensor]) -> None:
        self.f, self.sizes, self.before = f, sizes, before
        self.mean, self.deviation, self.least_step, self.last_x, self.rows = f.split(before["scale"], [1] * 5)
        self.x = f.clip(f.where(f.unsqueeze(missing), self.last_x, f.unsqueeze(x)), -X_MAX, X_MAX)
        self.after: dict[str, Tensor] = {}

    def rate(self, rows: float) -> Tensor:
        """Of a mean over so many rows: 1 / n until there are as many."""
        return self.f.maximum(1.0 / (self.rows + 1.0), 1.0 / rows)

    def step(self) -> tuple[dict[str, Tensor], Tensor]:
        f, before, after = self.f, self.before, self.after
        z = self.scaled()
        ring = after["ring"] = f.join(f.last(before["ring"], self.sizes.ring - 1), z)
        windows = self.windows(ring)
        started = self.rows >= float(START_ROWS)
        distances = {name: self.distance(name, window, started) for name, window in windows.items()}
        error = self.forecast_error(z)
        residual = self.season(z)
        spread = self.variance_ratio(z)
        level = after["level"] = before["level"] + self.rate(200.0) * (z - before["level"])
        smooth = f.join(*[distances[name] for name in self.sizes.smoothed], f.abs(level))
        smooth = after["smooth"] = before["smooth"] + self.rate(8.0) * (smooth - before["smooth"])
        *near, slow = f.split(smooth, [1] * (len(self.sizes.smoothed) + 1))
        ratios = self.ratios([*[distances[name] for name in self.sizes.compared], error], started)
        events = self.blocks(f.join(*near, f.abs(residual), f.abs(z), spread))
        novelty = self.novelty(f.join(near[-1], slow))
        after["block_count"] = f.join(self.event_count, self.novel_count)
        return after, f.join(ratios, events, novelty, self.hangs())

    def windows(self, ring: Tensor) -> dict[str, Tensor]:
        """The last values of each shape's width; the long one has means of four, less their mean."""
        f, (count, width) = self.f, (self.sizes.ring, self.sizes.ring // 4)
        if "long" in self.sizes.shapes:
            groups = f.reshape(f.total(f.reshape(ring, 0, 0, width, 4), 4), 0, 0, width) / 4.0
        found = {
            name: ring if shape[1] == count else f.last(ring, shape[1])
            for name, shape in self.sizes.shapes.items()
            if name != "long"
        }
        if "long" in self.sizes.shapes:
            found["long"] = groups - f.sum(groups, 3, width, keep=True) / (count / 4)
        return found

    def hangs(self) -> Tensor:
        """1 in the row in which x has not changed for too long, else 0."""
        f = self.f
        rows, longest, changes = f.split(self.before["flat"], [1] * 3)
        same = self.x.equals(self.last_x) & (self.rows > 0.5)
        now = f.where(same, rows + 1.0, 1.0)
        longest = f.where(same, longest, f.maximum(longest, rows))
        changes = f.where(same, changes, changes + 1.0)
        self.after["flat"] = f.join(now, longest, changes)
        limit = f.maximum(longest * FLAT_TIMES, FLAT_ROWS)
        return (now.equals(limit) & (changes > FLAT_CHANGES)).as_float()

    def scaled(self) -> Tensor:
        """z, and the mean and deviation moved."""
        f, x, rows = self.f, self.x, self.rows
        first = rows < 0.5
        mean, last_x = f.where(first, x, self.mean), f.where(first, x, self.last_x)
        step = f.abs(x - last_x)
        least = f.where((step > 0.0) & (step < self.least_step), step, self.least_step)
        floor = f.maximum(f.abs(mean) * 1e-6, X_MIN)
        floor = f.where(least < FAR / 2, f.maximum(floor, least * 0.5), floor)
        deviation = f.maximum(self.deviation, floor)
        away = x - mean
        z = f.clip(away / deviation, -Z_MAX, Z_MAX)
        limit = deviation * WINSOR
        away = f.where(rows > 50.5, f.clip(away, -limit, limit), away)
        rate = self.rate(SLOW_ROWS)
        # variance' = (1 - rate) (variance + rate away^2), in units in which no square overflows
        unit = f.maximum(f.maximum(self.deviation, f.abs(away)), X_MIN)
        before, now = self.deviation / unit, away / unit
        kept = unit * f.sqrt((1.0 - rate) * (before * before + rate * now * now))
        self.after["scale"] = f.join(mean + rate * away, kept, least, x, rows + 1.0)
        return z

    def distance(self, name: str, window: Tensor, started: Tensor) -> Tensor:
        """Of the window to the nearest centre, which moves; or a new one is opened."""
        f, (count, width) = self.f, self.sizes.shapes[name]
        flat, counts = self.before[f"{name}_centres"], self.before[f"{name}_counts"]
        used, usual, rows = f.split(self.before[f"{name}_usual"], [1] * 3)
        centres = f.reshape(flat, 0, 0, count, width)
        away = f.unsqueeze(window, 2) - centres
        index = f.constant(np.arange(count))
        squares = f.where(index < used, f.sum(away * away, 4, width), FAR)
        nearest = f.apply("ArgMin", squares, axis=-1, keepdims=1).as_float()
        some = used > 0.5
        distance = f.where(some, f.sqrt(f.min(squares, keep=True) / float(width)), 0.0)
        opened = (used < count - 0.5) & ((~some) | (distance > usual))
        chosen = index.equals(f.where(opened, used, nearest))
        new_counts = counts + chosen.as_float()
        rate = f.where(opened, 1.0, f.maximum(1.0 / f.maximum(new_counts, 1.0), LEAST_RATE))
        rate = f.where(chosen & started, rate, 0.0)
        self.after[f"{name}_centres"] = f.reshape(centres + f.unsqueeze(rate) * away, 0, 0, count * width)
        self.after[f"{name}_counts"] = f.where(started, new_counts, counts)
        more = (some & started).as_float()
        new_rows = rows + more
        moved = usual + more * f.maximum(1.0 / f.maximum(new_rows, 1.0), 0.001) * (distance - usual)
        self.after[f"{name}_usual"] = f.join(used + (opened & started).as_float(), moved, new_rows)
        return f.where(started, distance, 0.0)

    def forecast_error(self, z: Tensor) -> Tensor:
        """|z - forecast| by recursive least squares, see Haykin, Adaptive Filter Theory, section 10."""
        f, size = self.f, self.sizes.order + 1
        regressors, weights = self.before["regressors"], self.before["weights"]
        covariance = f.reshape(self.before["covariance"], 0, 0, size, size)
        error = z - f.sum(weights * regressors, 3, size, keep=True)
        gain = f.sum(covariance * f.unsqueeze(regressors, 2), 4, size)
        divisor = f.sum(gain * regressors, 3, size, keep=True) + FORGETTING
        self.after["weights"] = weights + gain / divisor * f.clip(error, -3.0, 3.0)
        outer = f.unsqueeze(gain, 3) * f.unsqueeze(gain, 2)
        covariance = (covariance - outer / f.unsqueeze(divisor, 3)) / FORGETTING
        flat = f.reshape(covariance, 0, 0, size * size)
        trace = f.sum(flat * f.constant(np.eye(size).ravel()), 3, size * size, keep=True)
        bound = MAX_TRACE * size
        self.after["covariance"] = flat * f.where(trace > bound, bound / trace, 1.0)
        self.after["regressors"] = f.join(z, f.first(regressors, size - 2), f.last(regressors, 1))
        return f.abs(error)

    def season(self, z: Tensor) -> Tensor:
        """How far z is from what is usual at this hour, smoothed over 48 rows."""
        f, hours = self.f, self.sizes.hours
        usual, rows = f.split(self.before["hours"], [hours] * 2)
        now = f.hour_of_day("timestamp", hours, DAY_MS)  # [N, 1, hours], 1 at the hour
        seen = f.only(rows * now, keep=True)
        residual = z - f.only(usual * now, keep=True)
        new = f.maximum(1.0 / (seen + 1.0), 0.1) * residual
        self.after["hours"] = f.join(usual + now * new, rows + now)
        before = self.before["residual"]
        smooth = self.after["residual"] = before + self.rate(48.0) * (residual - before)
        return smooth

    def variance_ratio(self, z: Tensor) -> Tensor:
        """|log| of the variance of differences over 16 rows to that over 1,000."""
        f = self.f
        fast, slow, last_z = f.split(self.before["differences"], [1] * 3)
        step = f.where(self.rows < 0.5, 0.0, z - last_z)
        square = step * step
        fast, slow = fast + self.rate(16.0) * (square - fast), slow + self.rate(1000.0) * (square - slow)
        self.after["differences"] = f.join(fast, slow, z)
        return f.abs(f.log((fast + 1e-3) / (slow + 1e-3), 1))

    def ratios(self, values: list[Tensor], started: Tensor) -> Tensor:
        """Each over its running mean: distances, and at last the forecast's error, which there is from the start."""
        f = self.f
        parts = f.split(self.before["ratios"], [2] * len(values))
        always = self.rows >= 0.0
        found, kept = [], []
        for part, value, active in zip(parts, values, [started] * (len(values) - 1) + [always], strict=True):
            mean, rows = f.split(part, [1] * 2)
            known = mean > 0.0
            ratio = f.where((rows > 20.5) & known, value / f.maximum(mean, 1e-30), 0.0)
            limited = f.where((rows > 50.5) & known, f.minimum(value, mean * 4.0), value)
            new_mean = mean + f.maximum(1.0 / (rows + 1.0), 1.0 / SLOW_ROWS) * (limited - mean)
            found.append(f.where(active, ratio, 0.0))
            kept += [f.where(active, new_mean, mean), f.where(active, rows + 1.0, rows)]
        self.after["ratios"] = f.join(*kept)
        return f.join(*found)

    def blocks(self, values: Tensor) -> Tensor:
        """Each of the measures over the 6th largest (the small model: 3rd) of the maxima of the last blocks."""
        f, sizes = self.f, self.sizes
        count, _ = f.split(self.before["block_count"], [2] * 2)
        (rings, now, references), self.event_count, some = self.move_blocks(
            "block", "blocks", values, count, sizes.events, (sizes.event_rank,) * len(sizes.measures)
        )
        self.after["blocks"], self.after["block_now"], self.after["block_reference"] = rings, now, references
        before = self.before["block_reference"]
        return f.where(some & (before > 0.0), values / (before + 1e-9), 0.0)

    def novelty(self, values: Tensor) -> Tensor:
        """The middle shape over the largest of all blocks and of this one, the level over one of the largest."""
        f, sizes = self.f, self.sizes
        _, count = f.split(self.before["block_count"], [2] * 2)
        (rings, now, references), self.novel_count, some = self.move_blocks(
            "novel", "novel_blocks", values, count, sizes.novel, (1, sizes.level_rank)
        )
        self.after["novel_blocks"], self.after["novel_now"], self.after["novel_reference"] = rings, now, references
        first, third = f.split(self.before["novel_reference"], [1] * 2)
        current, _ = f.split(self.before["novel_now"], [1] * 2)
        reference = f.maximum(f.join(f.maximum(first, current), third), NOVEL_FLOOR)
        return f.where(some, values / reference / f.constant([1.0, LEVEL_WEIGHT]), 0.0)

    def move_blocks(
        self, part: str, ring: str, values: Tensor, count: Tensor, kept: Blocks, ranks: tuple[int, ...]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """(rings, maxima of the present block, references), counts, and whether a block was complete before."""
        f, width, blocks = self.f, len(ranks), kept.blocks
        rings = f.reshape(self.before[ring], 0, 0, width, blocks)
        rows, done = f.split(count, [1] * 2)
        now = f.maximum(self.before[f"{part}_now"], values)
        closes = rows >= kept.rows - 1.5
        place = done - f.floor(done / float(blocks)) * float(blocks)
        here = f.constant(np.arange(blocks)).equals(place) & closes  # [N, C, blocks]
        rings = f.where(f.unsqueeze(here, 2), f.unsqueeze(now, 3), rings)
        filled = f.minimum(done + 1.0, float(blocks))
        there = f.constant(np.arange(blocks)) < filled
        maxima = f.where(f.unsqueeze(there, 2), rings, -1.0)
        reference = f.where(closes, self.ranked(maxima, ranks, filled), self.before[f"{part}_reference"])
        new_count = f.join(f.where(closes, 0.0, rows + 1.0), f.where(closes, done + 1.0, done))
        flat = f.reshape(rings, 0, 0, width * blocks)
        return (flat, f.where(closes, 0.0, now), reference), new_count, done > 0.5

    def ranked(self, maxima: Tensor, ranks: tuple[int, ...], filled: Tensor) -> Tensor:
        """[N, C, width] Of each of [N, C, width, blocks] the one of this rank; the last one while there are fewer."""
        f = self.f
        if max(ranks) == 1:
            return f.max(maxima)
        largest = f.top(maxima, max(ranks))  # [N, C, width, max(ranks)]
        wanted = f.minimum(filled, f.constant(ranks)) - 1.0  # [N, C, width]
        chosen = f.constant(np.arange(max(ranks))).equals(f.unsqueeze(wanted, 3)).as_float()
        return f.only(largest * chosen)


def _fuse(f: Formulas, sizes: Sizes, own: Tensor, top: Tensor, elapsed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The key's own floats [N, 6], the score [N, 1] and the prediction [N, 4] of the largest readings."""
    forecast, rank, rows, hold, boost, quiet = f.split(own, [1] * 6)
    count, measures = len(sizes.compared), len(sizes.measures)
    *ratios, error, events, novelty, hangs = f.split(top, [1] * (count + 1) + [measures, 2, 1])
    forecast = forecast + f.maximum(1.0 / (rows + 1.0), 1.0 / 40) * (error - forecast)
    logs = f.log(f.join(*[one + 1.0 for one in [*ratios, forecast]], (error + 1e-3) / SPIKE), count + 2)
    usual, spike = f.split(logs, [count + 1, 1])
    rank = rank + f.maximum(1.0 / (rows + 1.0), 1.0 / 12) * (f.total(usual, count + 1) - rank)
    ranked = rank + f.maximum(spike, 0.0)

    cut = f.minimum(events, 5.0)
    joined = f.power(f.total(cut * cut * cut, measures) / float(measures), 1 / 3, 1)
    held = hold - 1.0
    hold = f.maximum(held, 0.0)
    boost = boost * (1 - 1 / BOOST_ROWS)
    level = f.maximum(f.where(hold > 0.5, 0.0, joined / (boost + 1.0)), hangs)
    alarm = level >= 1.0
    hold = f.where(alarm, float(HOLD_ROWS), hold)
    boost = boost + alarm.as_float() * BOOST

    gap = f.unsqueeze(elapsed > GAP_S, 1)
    quiet = f.where(gap, float(QUIET_ROWS), quiet)
    warm = (rows >= WARM_ROWS).as_float()
    novel = f.where(quiet > 0.5, 0.0, f.max(novelty, keep=True)) * warm
    quiet = f.maximum(quiet - 1.0, 0.0)
    score = level / (level + 1.0) * warm
    return f.join(forecast, rank, rows + 1.0, hold, boost, quiet), score, f.join(ranked, score, novel, warm)


def main() -> int:
    """Write the model file that the package ships: FILE [MODEL]."""
    file, *name = sys.argv[1:]
    content, card = anomaly_model(MODELS[name[0] if name else LARGE.name])
    write_model(file, content, card)
    return 0


if __name__ == "__main__":
    sys.exit(main())
