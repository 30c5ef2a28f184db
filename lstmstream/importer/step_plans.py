"""How the keys of a batch can go through a graph that is a step already: which axis of each input is the batch.

An axis that the file names or leaves dynamic tells; where all sizes are fixed, the possible axes are tried in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import helper

from lstmstream.importer.graph import Array, SourceGraph
from lstmstream.importer.state_pairs import Dims, StatePair, StatePairing


@dataclass(frozen=True, slots=True)
class Port:
    """An input of the graph for one key: its shape, and the axis of the keys."""

    name: str
    shape: tuple[int, ...]  # with `axis` as the original takes it
    axis: int | None  # None: there is no axis of keys
    element: int  # ONNX type

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one key's values, without the axis of keys."""
        return tuple(size for axis, size in enumerate(self.shape) if axis != self.axis)

    @property
    def width(self) -> int:
        """Number of values of one key."""
        return math.prod(self.row)

    def arrange(self, rows: Array) -> Array:
        """Rows [N, width] as the input takes them; without an axis of keys N is 1."""
        values = rows.reshape(len(rows), *self.row) if self.axis is not None else rows.reshape(self.row)
        moved = values if self.axis is None else np.moveaxis(values, 0, self.axis)
        return np.ascontiguousarray(moved.astype(helper.tensor_dtype_to_np_dtype(self.element)))


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of a batch go through the graph."""

    data: Port
    states: tuple[Port, ...]  # in the order of the pairing
    batch: int | None  # keys in one run of the original; None: any number
    scan: bool  # row by row

    @property
    def features(self) -> int:
        """F, the number of values of an event."""
        return self.data.width


def possible_plans(source: SourceGraph, pairing: StatePairing) -> Iterator[Plan]:
    """Every plan for the graph, the fastest first; the last one changes least."""
    data = source.dims(pairing.data)
    dims = {pair.input: source.dims(pair.input) for pair in pairing.states}

    def port(name: str, axis: int | None, keys: int) -> Port:
        sizes = [size or 1 for size in source.dims(name)]
        if axis is not None:
            sizes[axis] = keys
        return Port(name, tuple(sizes), axis, source.element(name))

    def plan(axes: dict[str, int | None], batch: int | None, *, scan: bool) -> Plan:
        keys = batch or 1
        states = tuple(port(pair.input, axes[pair.input], keys) for pair in pairing.states)
        return Plan(port(pairing.data, axes[pairing.data], keys), states, batch, scan)

    unbatched: dict[str, int | None] = dict.fromkeys([pairing.data, *dims])
    if any(None in one for one in dims.values()):
        label = _batch_label(source, pairing)
        axes: dict[str, int | None] = {name: _dynamic_axis(source, name, label) for name in unbatched}
        if all(axis is not None for axis in axes.values()):
            yield plan(axes, None, scan=False)
    else:
        for size in [*sorted({size for size in data[:2] if size and size > 1 and len(data) > 1}, reverse=True), 1]:
            first = next((axis for axis, found in enumerate(data[:2]) if found == size), None)
            if size == 1 and None in data[:1]:
                first = 0
            for before in (1, 0):
                places = {name: _fixed_axis(one, size, before) for name, one in dims.items()}
                if first is None or None in places.values() or (before == 0 and not _either(dims, size)):
                    continue
                yield plan({pairing.data: first, **places}, size, scan=False)
                if size > 1:
                    yield plan({pairing.data: first, **places}, size, scan=True)
    yield plan(unbatched, 1, scan=True)


def _batch_label(source: SourceGraph, pairing: StatePairing) -> str:
    """The name of the axis that event and states have in common; empty where the file has no such name."""
    labels = [{text for text in _labels(source, pair.input) if text} for pair in pairing.states]
    common = set.intersection(*labels) & set(_labels(source, pairing.data)) if labels else set[str]()
    return min(common, key=lambda text: ("batch" not in text.lower(), text), default="")


def _labels(source: SourceGraph, name: str) -> list[str]:
    value = next(value for value in source.graph.input if value.name == name)
    return [dim.dim_param for dim in value.type.tensor_type.shape.dim]


def _dynamic_axis(source: SourceGraph, name: str, label: str) -> int | None:
    """The batch axis of an input with dynamic axes; None where there is none."""
    labels, dims = _labels(source, name), source.dims(name)
    if label and label in labels:
        return labels.index(label)
    free = [axis for axis, size in enumerate(dims) if size is None]
    if len(free) > 1 and len(dims) == 3 and 1 in free and any(dims[axis] for axis in (0, 2)):
        return 0 if name == source.inputs[0] and 0 in free else 1
    return free[0] if free else None


def _fixed_axis(dims: Dims, size: int, before: int) -> int | None:
    """The batch axis of a state whose batch is fixed to `size`; `before` is tried first where there are three axes."""
    order = [before, 1 - before] if len(dims) >= 3 else [0]
    return next((axis for axis in order if axis < len(dims) and dims[axis] == size), None)


def _either(dims: dict[str, Dims], size: int) -> bool:
    """Whether any state may have its batch on either of two axes."""
    return any(len(one) >= 3 and one[0] == size and one[1] == size for one in dims.values())


def initial_row(source: SourceGraph, port: Port, pair: StatePair) -> list[float]:
    """The state of a new key: zeros, or the default of the input."""
    if pair.initial is None:
        return [0.0] * port.width
    rows = np.asarray(pair.initial, np.float32).reshape(port.shape)
    rows = rows[np.newaxis] if port.axis is None else np.moveaxis(rows, port.axis, 0)
    if not (rows == rows[:1]).all():
        raise source.error(f"the default of {source.quoted(pair.input)} is not the same for every key of a batch")
    return [float(str(value)) for value in rows[0].reshape(-1)]
