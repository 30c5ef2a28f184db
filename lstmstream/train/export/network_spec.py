"""The specification of a network as plain numpy arrays in torch's layout: feature encoder, recurrent layers, head.

It describes and computes nothing. The rest of this package writes the step graph from it; `lstmstream/train/network.py`
is the same network in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lstmstream.formats.durations import short_duration
from lstmstream.model import Feature, StatePart, StateSpec
from lstmstream.train.export.named_cells import NAMED_CELLS, CellName

Array = NDArray[np.float32]
HISTORY = "history"  # the first word of the names of its parts of the state
HISTORY_STATISTICS = ("count", "mean", "variance")  # of each pair of a number and a window
Activation = Literal["tanh", "relu"]


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric field and how its raw value v becomes an input: (v - centre) / scale, 0 where it is missing."""

    name: str
    centre: float = 0.0
    scale: float = 1.0
    log: bool = False  # apply sign(v) * log(1 + |v|) first; centre and scale are then in that unit
    flag_missing: bool = False  # add an input that is 1 where the value is missing, else 0


@dataclass(frozen=True, slots=True)
class Category:
    """A categorical field and its embedding table: row 0 for unknown or missing values, row i for code i."""

    name: str
    table: Array  # [codes + 1, width]
    vocabulary: tuple[str, ...] | None = None
    buckets: int | None = None


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Seconds since the key's previous event: (log(1 + seconds) - centre) / scale; on its first event 0 and a flag."""

    centre: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class History:
    """Statistics of a key's earlier events: J pairs of a number and a window. key_history.py has the formulas.

    The inputs are four blocks of J columns: logs of counts, logs of variances, means, deviations of the present value.
    """

    columns: tuple[int, ...]  # [J] indices into the encoder's numbers
    windows_s: tuple[float, ...]  # [J] time constants
    centre: tuple[float, ...]  # [4J] of the inputs; 0 for the deviations
    scale: tuple[float, ...]  # [4J]

    def __len__(self) -> int:
        return len(self.columns)


@dataclass(frozen=True, slots=True)
class FeatureEncoder:
    """From the raw event to the inputs of the first layer; the package docstring gives their order."""

    numbers: tuple[Number, ...] = ()
    categories: tuple[Category, ...] = ()
    elapsed: Elapsed | None = None
    hour_of_day: bool = False
    day_of_week: bool = False
    limit: float = 1e4  # scaled values are clipped to +-limit, so that no finite event can overflow the layers
    history: History | None = None

    @property
    def width(self) -> int:
        """Number of inputs of the first layer, embeddings included."""
        tables = sum(category.table.shape[1] for category in self.categories)
        return int(self.dense_width + tables)

    @property
    def dense_width(self) -> int:
        """D: number of inputs that are not embeddings: numbers, elapsed, missing flags, clock, history."""
        flags = sum(number.flag_missing for number in self.numbers)
        clock = 2 * (self.hour_of_day + self.day_of_week)
        history = 4 * len(self.history) if self.history is not None else 0
        return int(len(self.numbers) + flags + 2 * (self.elapsed is not None) + clock + history)

    @property
    def history_names(self) -> tuple[str, ...]:
        """[J] The number and the window of each pair, as `amount.7d`."""
        if self.history is None:
            return ()
        pairs = zip(self.history.columns, self.history.windows_s, strict=True)
        return tuple(f"{self.numbers[column].name}.{short_duration(window)}" for column, window in pairs)


@dataclass(frozen=True, slots=True)
class Lstm:
    """One LSTM layer in the layout of torch.nn.LSTM: the rows are the gates i, f, g, o.

    H is the number of cells, P the number of values in h (H unless there is a projection). i, f and o are sigmoids;
    c' = f c + i act(g); h' = o act(c'), multiplied by `projection` where there is one.
    """

    cell: ClassVar[CellName] = "lstm"

    weight_ih: Array  # [4H, I]
    weight_hh: Array  # [4H, P]
    bias: Array  # [8H] input biases, then recurrent biases
    initial_h: Array | None = None  # [P], zeros where not given
    initial_c: Array | None = None  # [H], zeros where not given
    projection: Array | None = None  # [P, H], torch's weight_hr
    activation: Activation = "tanh"

    @property
    def hidden(self) -> int:
        """H: number of cells."""
        return int(self.weight_hh.shape[0]) // 4

    @property
    def width(self) -> int:
        """P: number of values in h, which the next layer gets."""
        return int(self.weight_hh.shape[1])

    @property
    def state_parts(self) -> tuple[tuple[str, int, Array | None], ...]:
        """What the layer remembers: letter, number of values, initial values (None for zeros)."""
        return (("h", self.width, self.initial_h), ("c", self.hidden, self.initial_c))


@dataclass(frozen=True, slots=True)
class Gru:
    """One GRU layer in the layout of torch.nn.GRU: the rows are the gates r, z, n. H is the number of cells.

    n = act(W x + b + r (R h + b')); h' = n + z (h - n). ONNX calls this form linear_before_reset, Keras reset_after.
    """

    cell: ClassVar[CellName] = "gru"

    weight_ih: Array  # [3H, I]
    weight_hh: Array  # [3H, H]
    bias: Array  # [6H] input biases, then recurrent biases
    activation: Activation = "tanh"
    initial_h: Array | None = None  # [H], zeros where not given

    @property
    def hidden(self) -> int:
        """H: number of cells."""
        return int(self.weight_hh.shape[0]) // 3

    @property
    def width(self) -> int:
        """Number of values in h, which the next layer gets: H."""
        return int(self.weight_hh.shape[1])

    @property
    def state_parts(self) -> tuple[tuple[str, int, Array | None], ...]:
        """What the layer remembers: letter, number of values, initial values (None for zeros)."""
        return (("h", self.width, self.initial_h),)


@dataclass(frozen=True, slots=True)
class NamedLayer:
    """One layer of a cell of named_cells.py, which has its formulas and the names and shapes of its weights."""

    cell: CellName
    weights: Mapping[str, Array]  # by name, matrices as [out, in]
    initial: Mapping[str, Array] = field(default_factory=dict)  # by letter; the cell's own values where not given
    activation: Activation = "tanh"  # the only one

    @property
    def hidden(self) -> int:
        """H: number of units."""
        bias = "bias_in" if self.cell == "s4d" else "bias"
        return int(self.weights[bias].size) // NAMED_CELLS[self.cell].weight_shapes(1, 1)[bias][0]

    @property
    def width(self) -> int:
        """Number of outputs, which the next layer gets: H."""
        return self.hidden

    @property
    def state_parts(self) -> tuple[tuple[str, int, Array | None], ...]:
        """What the layer remembers: letter, number of values, initial values."""
        return tuple(
            (letter, count * self.hidden, self.initial.get(letter, np.full(count * self.hidden, value, np.float32)))
            for letter, count, value in NAMED_CELLS[self.cell].state
        )


Layer = Lstm | Gru | NamedLayer


@dataclass(frozen=True, slots=True)
class DenseHead:
    """A dense layer from the last layer's h to P outputs, then an activation."""

    weight: Array  # [P, H]
    bias: Array  # [P]
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"


@dataclass(frozen=True, slots=True)
class ForecastHead:
    """The next `horizon` values of C numbers, in raw units: event t + 1 of all columns, then t + 2, ..."""

    weight: Array  # [horizon * C, H]
    bias: Array  # [horizon * C]
    columns: tuple[int, ...]  # C indices into the encoder's numbers
    horizon: int = 1
    residual: bool = True  # the linear output is added to the present (scaled) value, 0 where that is missing


@dataclass(frozen=True, slots=True)
class Calibration:
    """How a normalized error e becomes a score: e against the recent errors of the same key.

    The state keeps a running fourth moment of e (state part `power`), so that level = moment^(1/4) follows the larger
    errors; score = e / (e + half_point * level), which is 1/2 at e = half_point * level.
    """

    initial_level: float  # the level of a new key
    half_point: float  # in levels: the error whose score is 1/2
    alpha: float  # weight of the newest error in the moment

    @property
    def initial_moment(self) -> float:
        """The fourth moment of a new key, as float32 holds it."""
        return float(np.float32(self.initial_level**4))

    @property
    def min_moment(self) -> float:
        """The least moment, as float32 holds it: a key's level never falls below a thousandth of the initial one."""
        return float(np.float32(self.initial_moment * 1e-12))


@dataclass(frozen=True, slots=True)
class AnomalyHead:
    """A forecast of the next event with its spread; the score compares each event with the forecast made before it.

    Rows of `weight`: the means of C columns, then the logs of their scales.
    """

    weight: Array  # [2C, H]
    bias: Array  # [2C]
    columns: tuple[int, ...]  # C indices into the encoder's numbers
    calibration: Calibration
    residual: bool = True  # as in ForecastHead, for the means


HeadSpec = DenseHead | ForecastHead | AnomalyHead


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A whole step, as it is exported. With `window` T it runs over the key's last T events, from the initial state."""

    encoder: FeatureEncoder
    layers: tuple[Layer, ...]
    head: HeadSpec
    window: int | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """The model card's features: numbers, then categories."""
        numbers = tuple(Feature(number.name, "number") for number in self.encoder.numbers)
        return numbers + tuple(
            Feature(category.name, "category", category.vocabulary, category.buckets)
            for category in self.encoder.categories
        )

    @property
    def state(self) -> StateSpec:
        """The state row: those of the layers (h0, c0, h1, c1, ... of an LSTM) or the window, of head and history."""
        parts: list[StatePart] = []
        initial: list[float] = []

        def add(name: str, shape: tuple[int, ...], first: Any) -> None:
            values = np.broadcast_to(np.asarray(first, np.float32).ravel(), int(np.prod(shape)))
            parts.append(StatePart(name, len(initial), shape))
            initial.extend(float(str(value)) for value in values)  # the shortest text of a float32, as in JSON

        if self.window is not None:
            add("window", (self.window, self.encoder.width), 0)  # oldest first; the last `filled` rows are in use
            add("filled", (1,), 0)
        else:
            for index, layer in enumerate(self.layers):
                for letter, size, first in layer.state_parts:
                    add(f"{letter}{index}", (size,), 0 if first is None else first)
        if isinstance(self.head, AnomalyHead):
            add("forecast", (2, len(self.head.columns)), 0)  # means, then logs of scales
            add("has_forecast", (1,), 0)
            add("power", (1,), self.head.calibration.initial_moment)
        for statistic in HISTORY_STATISTICS:
            for name in self.encoder.history_names:
                add(f"{HISTORY}.{name}.{statistic}", (1,), 0)
        return StateSpec(len(initial), tuple(initial), tuple(parts))

    @property
    def head_state_size(self) -> int:
        """Number of values after those of the layers that belong to the head."""
        return 2 * len(self.head.columns) + 2 if isinstance(self.head, AnomalyHead) else 0

    @property
    def history_state_size(self) -> int:
        """Number of values at the end of the state row that belong to the history."""
        return len(HISTORY_STATISTICS) * len(self.encoder.history_names)


def as_float32(values: Any) -> Array:
    """The values as a float32 array of the same shape."""
    return np.asarray(values, np.float32)
