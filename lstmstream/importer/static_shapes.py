"""Makes static sizes dynamic: constants that an exporter has computed from a fixed batch size or length.

An exporter with static axes writes [5, 2, 8] where a Reshape splits joined axes, and 4 where the last of five steps is
taken. Each such constant is replaced by comparing the shapes of a run of the original with those of two new runs. This
is a guess, which the equivalence check then tests.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.importer.graph import Array, attribute, copy_of, open_session, prune, run, with_intermediates

Feed = Mapping[str, Array]
Shape = tuple[int, ...]


def make_dynamic(
    model: onnx.ModelProto, original: onnx.ModelProto, old: Feed, new: tuple[Feed, Feed], sizes: AxisSizes, file: str
) -> None:
    """Changes constants of `model` in place.

    `old` are inputs of `original`; `new` are inputs of two runs of `model` that differ only in their batch size.
    Raises CannotServe where the graph cannot be run up to such a constant.
    """
    tensors, names = with_intermediates(original)
    before = {name: value.shape for name, value in run(open_session(tensors, file), names, old, file).items()
              if hasattr(value, "shape")}  # fmt: skip
    before |= {name: value.shape for name, value in old.items()}
    for index, node in enumerate(model.graph.node):
        place = {"Reshape": 1, "Gather": 1, "Slice": 1}.get(node.op_type)
        constant = _weight(model.graph, node.input[place]) if place and len(node.input) > place else None
        if constant is None or not {node.input[0], node.output[0]} <= before.keys():
            continue
        one, other = (_shape_of(model, node.input[0], feed, file) for feed in new)
        if one is None or other is None or (one == before[node.input[0]] and one == other):
            continue
        if node.op_type == "Reshape":
            fitted: Any = dynamic_reshape(before[node.input[0]], before[node.output[0]], (one, other), sizes)
        else:
            fitted = _last_of(node, constant, before[node.input[0]], one, sizes.length, model.graph)
        if fitted is not None:
            name = f"{node.input[1]} (dynamic {index})"
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(fitted, np.int64), name))
            node.input[1] = name
            if node.op_type == "Slice" and (ends := _weight(model.graph, node.input[2])) is not None:
                node.input[2] = f"{name} end"
                model.graph.initializer.append(
                    numpy_helper.from_array(np.full(ends.shape, 2**31 - 1, np.int64), node.input[2])
                )


@dataclass(frozen=True, slots=True)
class AxisSizes:
    """Sizes of the batch and time axes in the original's run and in the two new ones."""

    batch: int  # in the run of the original
    length: int
    batches: tuple[int, int]  # in the new runs
    new_length: int


def dynamic_reshape(before: Shape, target: Shape, now: tuple[Shape, Shape], sizes: AxisSizes) -> list[int] | None:
    """The constant for a Reshape whose input was `before`, became `target`, and is now one of `now`.

    None where there is no such constant.

        >>> dynamic_reshape((5, 2, 1, 8), (5, 2, 8), ((1, 3, 1, 8), (1, 7, 1, 8)), AxisSizes(2, 5, (3, 7), 1))
        [1, -1, 8]
        >>> dynamic_reshape((10, 4), (2, 5, 4), ((3, 4), (7, 4)), AxisSizes(2, 5, (3, 7), 1))
        [-1, 1, 4]
    """
    best: tuple[int, list[int]] | None = None
    for grouping in _groupings(tuple(before), tuple(target), 0, 0):
        result: list[int] = []
        cost = 0
        for (i, k), (j, m) in grouping:
            products = math.prod(now[0][i:k]), math.prod(now[1][i:k])
            if before[i:k] == now[0][i:k] == now[1][i:k]:
                result += target[j:m]
                cost += k == i or j == m
                continue
            part = _split_again(target[j:m], products, sizes)
            if part is None:
                break
            result += part
            cost += abs(k - i - 1) + abs(m - j - 1)  # an axis that stays one axis is the likeliest
        else:
            if result.count(-1) <= 1 and (best is None or cost < best[0]):
                best = cost, result
    return best[1] if best else None


def _split_again(target: Shape, products: tuple[int, int], sizes: AxisSizes) -> list[int] | None:
    """Sizes for one group of axes that together have `products` values in the two new runs; -1 for the batch."""
    if len(target) == 1:
        return [products[0] if products[0] == products[1] else -1]
    options = []
    for size in target:
        choices = [size]
        choices += [sizes.new_length] if size == sizes.length != sizes.new_length else []
        choices += [-1] if size == sizes.batch else []
        options.append(choices)
    for chosen in itertools.product(*options):
        known = math.prod(size for size in chosen if size != -1)
        free = chosen.count(-1)
        wanted = sizes.batches if free else (1, 1)
        if free <= 1 and (known * wanted[0], known * wanted[1]) == products:
            return list(chosen)
    return None


def _groupings(before: tuple[int, ...], target: tuple[int, ...], i: int, j: int) -> list[list[Any]]:
    """All ways to cut both shapes into groups of equal products, at least one of each pair a single axis."""
    if i == len(before) and j == len(target):
        return [[]]
    found: list[list[Any]] = []
    for k in range(i, len(before) + 1):
        for m in range(j, len(target) + 1):
            if (k > i or m > j) and min(k - i, m - j) <= 1 and math.prod(before[i:k]) == math.prod(target[j:m]):
                found += [[((i, k), (j, m)), *rest] for rest in _groupings(before, target, k, m)]
    return found


def _last_of(
    node: onnx.NodeProto,
    constant: Array,
    before: Sequence[int],
    now: Sequence[int],
    length: int,
    graph: onnx.GraphProto,
) -> Array | None:
    """The index of the last step (4 of 5) as -1; None where the constant is not that index."""
    if node.op_type == "Gather":
        axes = [int(attribute(node, "axis", 0))]
    else:
        given = _weight(graph, node.input[3]) if len(node.input) > 3 else None
        axes = [int(axis) for axis in (range(constant.size) if given is None else given)]
    if len(axes) != 1 or constant.size != 1 or before[axes[0]] != length or now[axes[0]] == length:
        return None
    return np.full(constant.shape, -1) if int(constant.reshape(-1)[0]) == length - 1 else None


def _weight(graph: onnx.GraphProto, name: str) -> Array | None:
    for tensor in graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    return None


def _shape_of(model: onnx.ModelProto, name: str, feed: Feed, file: str) -> tuple[int, ...] | None:
    """The shape of a tensor in a run up to it; None where that run fails, whose reason a later run reports."""
    if name in feed:
        return tuple(feed[name].shape)
    part = copy_of(model)
    del part.graph.output[:]
    part.graph.output.add(name=name)
    prune(part.graph)
    feeds = {value.name: feed[value.name] for value in part.graph.input}
    try:
        return tuple(run(open_session(part, file), [name], feeds, file)[name].shape)
    except CannotServe:
        return None
