"""Formulas over the tensors of an ONNX graph, written as formulas over arrays are: `mean + rate * (value - mean)`.

Each operator adds a node to a GraphBuilder. Numbers become float32 scalars. Comparisons give booleans, for `where`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from lstmstream.train.export.graph import VECTOR_COLUMNS, GraphBuilder

Operand: TypeAlias = "Tensor | float"
_END = int(np.iinfo(np.int64).max)  # of a slice: the last one too


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the graph that `graph` builds."""

    graph: Formulas
    name: str

    def __add__(self, other: Operand) -> Tensor:
        return self.graph.apply("Add", self, other)

    def __radd__(self, other: float) -> Tensor:
        return self.graph.apply("Add", other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return self.graph.apply("Sub", self, other)

    def __rsub__(self, other: float) -> Tensor:
        return self.graph.apply("Sub", other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return self.graph.apply("Mul", self, other)

    def __rmul__(self, other: float) -> Tensor:
        return self.graph.apply("Mul", other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return self.graph.apply("Div", self, other)

    def __rtruediv__(self, other: float) -> Tensor:
        return self.graph.apply("Div", other, self)

    def __neg__(self) -> Tensor:
        return self.graph.apply("Neg", self)

    def __lt__(self, other: Operand) -> Tensor:
        return self.graph.apply("Less", self, other)

    def __gt__(self, other: Operand) -> Tensor:
        return self.graph.apply("Greater", self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return self.graph.apply("GreaterOrEqual", self, other)

    def __and__(self, other: Tensor) -> Tensor:
        return self.graph.apply("And", self, other)

    def __or__(self, other: Tensor) -> Tensor:
        return self.graph.apply("Or", self, other)

    def __invert__(self) -> Tensor:
        return self.graph.apply("Not", self)

    def equals(self, other: Operand) -> Tensor:
        """Element by element."""
        return self.graph.apply("Equal", self, other)

    def as_float(self) -> Tensor:
        """1 and 0 of a boolean, or an integer as float32."""
        return self.graph.apply("Cast", self, to=TensorProto.FLOAT)


class Formulas:
    """Adds nodes with names of their own; constants that are equal are added once."""

    def __init__(self, graph: GraphBuilder) -> None:
        self._graph = graph
        self._made = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}

    def given(self, name: str) -> Tensor:
        """An input of the graph."""
        return Tensor(self, name)

    def constant(self, values: Any, dtype: Any = np.float32) -> Tensor:
        """An initializer."""
        array: NDArray[Any] = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        found = self._constants.get(key)
        if found is None:
            found = self._constants[key] = Tensor(self, self._graph.weight(f"c{len(self._constants)}", array))
        return found

    def integers(self, *values: int) -> Tensor:
        """An int64 initializer with one axis, as shapes and axes are."""
        return self.constant(values, np.int64)

    def apply(self, operator: str, *operands: Operand, output: str | None = None, **attributes: Any) -> Tensor:
        """A node with one output, named `output` or by a number."""
        if output is None:
            self._made += 1
            output = f"t{self._made}"
        names = [one.name if isinstance(one, Tensor) else self.constant(one).name for one in operands]
        return Tensor(self, self._graph.node(operator, names, output, **attributes))

    def split(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Along the last axis."""
        self._made += 1
        names = [f"p{self._made}_{number}" for number in range(len(sizes))]
        inputs = [tensor.name, self.integers(*sizes).name]
        self._graph.multi_output_node("Split", inputs, names, f"split{self._made}", axis=-1)
        return [Tensor(self, name) for name in names]

    def join(self, *tensors: Tensor) -> Tensor:
        """Along the last axis."""
        return self.apply("Concat", *tensors, axis=-1)

    def where(self, condition: Tensor, one: Operand, other: Operand) -> Tensor:
        """One where the condition holds, else the other."""
        return self.apply("Where", condition, one, other)

    def maximum(self, one: Operand, other: Operand) -> Tensor:
        """Element by element."""
        return self.apply("Max", one, other)

    def minimum(self, one: Operand, other: Operand) -> Tensor:
        """Element by element."""
        return self.apply("Min", one, other)

    def clip(self, tensor: Tensor, low: Operand, high: Operand) -> Tensor:
        """Between two bounds."""
        return self.minimum(self.maximum(tensor, low), high)

    def abs(self, tensor: Tensor) -> Tensor:
        """Element by element."""
        return self.apply("Abs", tensor)

    def sqrt(self, tensor: Tensor) -> Tensor:
        """Element by element."""
        return self.apply("Sqrt", tensor)

    def only(self, tensor: Tensor, *, keep: bool = False) -> Tensor:
        """The one value along the last axis that is not 0."""
        return self.apply("ReduceSum", tensor, self.integers(-1), keepdims=int(keep))

    def sum(self, tensor: Tensor, rank: int, width: int, *, keep: bool = False) -> Tensor:
        """Along the last of `rank` axes, which has so many columns: on a multiple of 16, see `_in_vectors`."""
        pads = self.integers(*[0] * (2 * rank - 1), -width % VECTOR_COLUMNS)
        return self.apply("ReduceSum", self.apply("Pad", tensor, pads), self.integers(-1), keepdims=int(keep))

    def total(self, tensor: Tensor, width: int) -> Tensor:
        """The sum of a few columns, as one column."""
        first, *others = self.split(tensor, [1] * width)
        for other in others:
            first = first + other
        return first

    def max(self, tensor: Tensor, axis: int = -1, *, keep: bool = False) -> Tensor:
        """Along an axis."""
        return self.apply("ReduceMax", tensor, self.integers(axis), keepdims=int(keep))

    def min(self, tensor: Tensor, axis: int = -1, *, keep: bool = False) -> Tensor:
        """Along an axis."""
        return self.apply("ReduceMin", tensor, self.integers(axis), keepdims=int(keep))

    def reshape(self, tensor: Tensor, *shape: int) -> Tensor:
        """0 keeps an axis, -1 takes what is left."""
        return self.apply("Reshape", tensor, self.integers(*shape))

    def last(self, tensor: Tensor, count: int) -> Tensor:
        """The last so many along the last axis."""
        return self._slice(tensor, -count, _END)

    def first(self, tensor: Tensor, count: int) -> Tensor:
        """The first so many along the last axis."""
        return self._slice(tensor, 0, count)

    def split_at(self, tensor: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` along the last axis, and the others."""
        rest = self._slice(tensor, count, _END)
        return self.first(tensor, count), rest

    def _slice(self, tensor: Tensor, start: int, end: int) -> Tensor:
        return self.apply("Slice", tensor, self.integers(start), self.integers(end), self.integers(-1))

    def reshape_like(self, flat: Tensor, rows: Tensor, width: int) -> Tensor:
        """[N, C * width] as [N, C, width], where `rows` is [N, C]: also with N = 0."""
        shape = self.apply("Concat", self.apply("Shape", rows), self.integers(width), axis=0)
        return self.apply("Reshape", flat, shape)

    def unsqueeze(self, tensor: Tensor, axis: int = -1) -> Tensor:
        """One more axis."""
        return self.apply("Unsqueeze", tensor, self.integers(axis))

    def floor(self, tensor: Tensor) -> Tensor:
        """Element by element."""
        return self.apply("Floor", tensor)

    def top(self, tensor: Tensor, count: int) -> Tensor:
        """The largest so many along the last axis, the largest first."""
        self._made += 1
        names = [f"top{self._made}", f"top{self._made}_index"]
        inputs = [tensor.name, self.integers(count).name]
        self._graph.multi_output_node("TopK", inputs, names, f"topk{self._made}", axis=-1)
        return Tensor(self, names[0])

    def log(self, tensor: Tensor, columns: int) -> Tensor:
        """Of a tensor with so many columns."""
        return self._in_vectors(tensor, columns, lambda wide: self.apply("Log", wide))

    def power(self, tensor: Tensor, exponent: float, columns: int) -> Tensor:
        """Of a tensor with so many columns."""
        return self._in_vectors(tensor, columns, lambda wide: self.apply("Pow", wide, exponent))

    def _in_vectors(self, tensor: Tensor, columns: int, function: Callable[[Tensor], Tensor]) -> Tensor:
        """On a multiple of 16 columns: on fewer, the bits of a row depend on the rows beside it."""
        ones = self.constant(np.ones(-columns % VECTOR_COLUMNS))
        shape = self.apply(
            "Concat", self.apply("Shape", tensor, end=-1), self.integers(-columns % VECTOR_COLUMNS), axis=0
        )
        return self.first(function(self.join(tensor, self.apply("Expand", ones, shape))), columns)

    def hour_of_day(self, timestamp: str, hours: int, day_ms: int) -> Tensor:
        """[N, 1, hours], 1 at the hour of the timestamps [N]."""
        since = self.apply("Mod", self.given(timestamp), self.integers(day_ms))
        hour = self.apply("Div", since, self.integers(day_ms // hours))
        there = self.apply("Unsqueeze", hour, self.integers(1, 2)).equals(self.constant(np.arange(hours), np.int64))
        return there.as_float()
