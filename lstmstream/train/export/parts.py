"""What a network consists of, as plain numpy arrays in torch's layout: encoder, layers, head.

Describes; computes nothing. The graph is written by the rest of this package, the same network in torch is network.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lstmstream.model import Feature, StatePart, StateSpec

Array = NDArray[np.float32]
Activation = Literal["tanh", "relu"]
STATE_H = "h"
STATE_C = "c"


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric field and how its raw value becomes an input: (v - centre) / scale, missing becomes 0."""

    name: str
    centre: float = 0.0
    scale: float = 1.0
    log: bool = False  # sign(v) * log(1 + |v|) first; centre and scale are then in that unit
    flag_missing: bool = False  # adds an input that is 1 where the value is missing


@dataclass(frozen=True, slots=True)
class Category:
    """A categorical field and its embedding: row 0 for unknown or missing, row i for code i."""

    name: str
    table: Array  # [codes + 1, width]
    vocabulary: tuple[str, ...] | None = None
    buckets: int | None = None


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time since the key's previous event: (log(1 + seconds) - centre) / scale, 0 and a flag on its first."""

    centre: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Encoder:
    """From the raw event to the first layer's inputs; the package gives their order."""

    numbers: tuple[Number, ...] = ()
    categories: tuple[Category, ...] = ()
    elapsed: Elapsed | None = None
    hour_of_day: bool = False
    day_of_week: bool = False
    limit: float = 1e4  # of scaled values, so that no finite event can overflow the layers

    @property
    def width(self) -> int:
        """Number of inputs of the first layer."""
        tables = sum(category.table.shape[1] for category in self.categories)
        return int(self.dense_width + tables)

    @property
    def dense_width(self) -> int:
        """D: the inputs that are not embeddings: numbers, elapsed, flags, clock."""
        flags = sum(number.flag_missing for number in self.numbers)
        clock = 2 * (self.hour_of_day + self.day_of_week)
        return int(len(self.numbers) + flags + 2 * (self.elapsed is not None) + clock)


@dataclass(frozen=True, slots=True)
class Lstm:
    """One layer, as torch.nn.LSTM keeps it: rows are the gates i, f, g, o. H cells; h has P values, H unless projected.

    i, f and o are sigmoids; c' = f c + i act(g), h' = o act(c'), then `projection` h' where there is one.
    """

    weight_ih: Array  # [4H, I]
    weight_hh: Array  # [4H, P]
    bias: Array  # [8H] input biases, then recurrent ones
    initial_h: Array | None = None  # [P], zeros where not given
    initial_c: Array | None = None  # [H]
    projection: Array | None = None  # [P, H], torch's weight_hr
    activation: Activation = "tanh"

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.weight_hh.shape[0]) // 4

    @property
    def width(self) -> int:
        """P: how many values the layer hands on."""
        return int(self.weight_hh.shape[1])

    @property
    def state(self) -> tuple[tuple[str, int, Array | None], ...]:
        """What it remembers: letter, number of values, initial values."""
        return ((STATE_H, self.width, self.initial_h), (STATE_C, self.hidden, self.initial_c))


@dataclass(frozen=True, slots=True)
class Gru:
    """One layer, as torch.nn.GRU keeps it: rows are the gates r, z, n.

    n = act(W x + b + r (R h + b')), h' = n + z (h - n): what ONNX calls linear_before_reset, Keras reset_after.
    """

    weight_ih: Array  # [3H, I]
    weight_hh: Array  # [3H, H]
    bias: Array  # [6H] input biases, then recurrent ones
    activation: Activation = "tanh"
    initial_h: Array | None = None  # [H], zeros where not given

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.weight_hh.shape[0]) // 3

    @property
    def width(self) -> int:
        """How many values the layer hands on: H."""
        return int(self.weight_hh.shape[1])

    @property
    def state(self) -> tuple[tuple[str, int, Array | None], ...]:
        """What it remembers: letter, number of values, initial values."""
        return ((STATE_H, self.width, self.initial_h),)


Layer = Lstm | Gru


@dataclass(frozen=True, slots=True)
class Head:
    """Linear from the last layer's h to P outputs, then an activation."""

    weight: Array  # [P, H]
    bias: Array  # [P]
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"


@dataclass(frozen=True, slots=True)
class ForecastHead:
    """The next `horizon` values of some numbers, in raw units: event t + 1 of all columns, then t + 2 ..."""

    weight: Array  # [horizon * C, H]
    bias: Array  # [horizon * C]
    columns: tuple[int, ...]  # C indices into the encoder's numbers
    horizon: int = 1
    residual: bool = True  # the linear part is added to the present (scaled) value, 0 where that is missing


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a surprise e becomes a score: e against the recent surprises of the same key.

    power is a running fourth moment of e, so level = power^(1/4) follows the larger surprises;
    score = e / (e + unit * level), which is 1/2 at e = unit * level.
    """

    start: float  # the level of a new key
    unit: float
    alpha: float  # share of the newest surprise in power

    @property
    def power(self) -> float:
        """Where power starts, in float32."""
        return float(np.float32(self.start**4))

    @property
    def floor(self) -> float:
        """The least power, in float32: the level of a key never falls below a thousandth of `start`."""
        return float(np.float32(self.power * 1e-12))


@dataclass(frozen=True, slots=True)
class AnomalyHead:
    """A forecast with its spread for the next event, and how far the event that came was from the one before.

    Rows of `weight`: the means of C columns, then the logs of their scales.
    """

    weight: Array  # [2C, H]
    bias: Array  # [2C]
    columns: tuple[int, ...]  # C indices into the encoder's numbers
    calibration: Calibration
    residual: bool = True  # as ForecastHead, for the means


AnyHead = Head | ForecastHead | AnomalyHead


@dataclass(frozen=True, slots=True)
class Network:
    """A whole step: what is exported. With `window` T it sees the key's last T events, each time from the start."""

    encoder: Encoder
    layers: tuple[Layer, ...]
    head: AnyHead
    window: int | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """The card's features: numbers, then categories."""
        numbers = tuple(Feature(number.name, "number") for number in self.encoder.numbers)
        return numbers + tuple(
            Feature(category.name, "category", category.vocabulary, category.buckets)
            for category in self.encoder.categories
        )

    @property
    def state(self) -> StateSpec:
        """The state row: h0, c0, h1, c1, ... (h only for GRU) or the window; then what the head remembers."""
        parts: list[StatePart] = []
        initial: list[float] = []

        def add(name: str, shape: tuple[int, ...], first: Any) -> None:
            values = np.broadcast_to(np.asarray(first, np.float32).ravel(), int(np.prod(shape)))
            parts.append(StatePart(name, len(initial), shape))
            initial.extend(float(str(value)) for value in values)  # the shortest text of a float32, as JSON has it

        if self.window is not None:
            add("window", (self.window, self.encoder.width), 0)  # oldest first; the last `filled` rows are in use
            add("filled", (1,), 0)
        else:
            for index, layer in enumerate(self.layers):
                for letter, size, first in layer.state:
                    add(f"{letter}{index}", (size,), 0 if first is None else first)
        if isinstance(self.head, AnomalyHead):
            add("forecast", (2, len(self.head.columns)), 0)  # means, then logs of scales
            add("has_forecast", (1,), 0)
            add("power", (1,), self.head.calibration.power)
        return StateSpec(len(initial), tuple(initial), tuple(parts))

    @property
    def head_state(self) -> int:
        """How many values of the state row, its last ones, belong to the head."""
        return 2 * len(self.head.columns) + 2 if isinstance(self.head, AnomalyHead) else 0


def floats(values: Any) -> Array:
    """As float32."""
    return np.asarray(values, np.float32)
