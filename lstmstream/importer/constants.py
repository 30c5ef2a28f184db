"""Fixes inputs of a graph to constants, and replaces an If whose condition is then constant by the branch it takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.importer.graph import (
    SourceGraph,
    ancestors,
    constants_to_initializers,
    copy_of,
    open_session,
    prune,
    run,
    subgraphs,
)
from lstmstream.model.onnx_proto import TYPE_NAMES, quote_untrusted

_MAX_FOLDED = 1000  # nodes of If in one graph
_BOOLEANS = {"true": 1, "false": 0}


def parse_assignments(option: str, texts: Sequence[str]) -> dict[str, str]:
    """`name=value` of an option that may be repeated, by name. Raises CannotServe."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise CannotServe(f"import: {option} {quote_untrusted(text)}: should be NAME=VALUE")
        if name in found:
            raise CannotServe(f"import: {option}: {quote_untrusted(name)} is given twice")
        found[name] = value
    return found


def fix_inputs(source: SourceGraph, given: Mapping[str, str]) -> SourceGraph:
    """The graph with these inputs replaced by constants of their type. Raises CannotServe."""
    model = copy_of(source.model)
    for name, text in given.items():
        inside = source.current_name(name)
        if inside in source.defaults:  # an optional input: its default is a weight already
            value = _value_like(source, inside, text, source.defaults[inside])
            next(one for one in model.graph.initializer if one.name == inside).CopyFrom(value)
            continue
        if name in source.unused:
            continue
        if inside not in source.inputs:
            there = ", ".join(map(source.quoted, source.inputs))
            raise source.error(f"--constant {quote_untrusted(name)}: the file has no such input; it has {there}")
        dims = [size or 1 for size in source.dims(inside)]
        numpy_type = helper.tensor_dtype_to_np_dtype(source.element(inside))
        model.graph.initializer.append(_value_like(source, inside, text, np.zeros(dims, numpy_type)))
        inputs = [copy_of(value) for value in model.graph.input if value.name != inside]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    fixed = replace(source, model=model)
    fold_branches(fixed)
    prune(model.graph)
    if not fixed.inputs:
        raise source.error("with these constants no input of the graph reaches an output")
    return fixed


def _value_like(source: SourceGraph, name: str, text: str, like: np.ndarray) -> onnx.TensorProto:
    """The constant as a tensor with the shape and type of `like`. Raises CannotServe for a value it cannot hold."""
    kind = like.dtype
    wrong = source.error(
        f"--constant {source.quoted(name)[1:-1]}={text}: the input is {kind} {list(like.shape)}, which takes"
        f" {'a whole number' if kind.kind in 'iu' else 'true or false' if kind.kind == 'b' else 'a finite number'}"
    )
    number = str(_BOOLEANS.get(text.lower(), text))
    try:
        value: float | int = int(number) if re.fullmatch(r"[+-]?[0-9]+", number) else float(number)
        whole = float(value).is_integer()
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            if not whole or not limits.min <= value <= limits.max:
                raise wrong
            value = int(value)
        elif kind.kind == "b":
            if value not in (0, 1):
                raise wrong
        elif kind.kind != "f" or not np.isfinite(np.asarray(value, kind)):
            raise wrong
    except (ValueError, OverflowError) as error:
        raise wrong from error
    return numpy_helper.from_array(np.full(like.shape, value, kind), name)


def fold_branches(source: SourceGraph) -> None:
    """Replaces each If of the main graph whose condition depends on no input, in place.

    Inputs that are read for their shape only do not count as read: whether they are, the check of the result decides.
    """
    graph = source.model.graph
    for number in range(_MAX_FOLDED):
        index = next(
            (
                place
                for place, node in enumerate(graph.node)
                if node.op_type == "If" and not _depends_on_inputs(graph, node.input[0])
            ),
            None,
        )
        if index is None:
            return
        node = copy_of(graph.node[index])
        taken = "then_branch" if _condition(source, node.input[0]) else "else_branch"
        branch = next(one.g for one in node.attribute if one.name == taken)
        nodes = _inlined(graph, node, branch, f"branch {number} ")
        rest = [copy_of(other) for other in graph.node]
        del graph.node[:]
        graph.node.extend([*rest[:index], *nodes, *rest[index + 1 :]])
        constants_to_initializers(graph)


def _depends_on_inputs(graph: onnx.GraphProto, name: str) -> bool:
    inputs = {value.name for value in graph.input}
    found = ancestors(graph, name)
    shapes = {node.input[0] for node in graph.node if node.op_type in {"Shape", "Size"} and set(node.output) & found}
    return bool((found | shapes) & inputs) or any(
        ancestors(graph, shape) & inputs for shape in shapes
    )  # sizes may be dynamic


def _condition(source: SourceGraph, name: str) -> bool:
    """The value of a tensor that depends on no input."""
    part = copy_of(source.model)
    del part.graph.output[:]
    part.graph.output.add(name=name).type.tensor_type.elem_type = onnx.TensorProto.BOOL
    prune(part.graph)
    return bool(run(open_session(part, source.file), [name], {}, source.file)[name].reshape(-1)[0])


def _inlined(
    graph: onnx.GraphProto, node: onnx.NodeProto, branch: onnx.GraphProto, prefix: str
) -> list[onnx.NodeProto]:
    """The branch's nodes under names of their own, and its outputs under the If's; adds its weights to the graph."""
    body = copy_of(branch)
    own = {tensor.name for tensor in body.initializer} | {name for one in body.node for name in one.output if name}
    _rename_free(body, {name: prefix + name for name in own})
    graph.initializer.extend(body.initializer)
    ends = [
        helper.make_node("Identity", [inner.name], [outer], name=outer)
        for inner, outer in zip(body.output, node.output, strict=True)
        if outer
    ]
    return [*(copy_of(one) for one in body.node), *ends]


def _rename_free(graph: onnx.GraphProto, mapping: Mapping[str, str]) -> None:
    """Renames tensors, except those that a subgraph defines itself under the same name."""
    for entry in [*graph.initializer, *graph.output, *graph.value_info]:
        entry.name = mapping.get(entry.name, entry.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = mapping.get(name, name)
        for below in subgraphs(node):
            defined = {value.name for value in [*below.input, *below.initializer]}
            defined |= {name for inner in below.node for name in inner.output}
            _rename_free(below, {old: new for old, new in mapping.items() if old not in defined})


def describe_input(source: SourceGraph, name: str) -> str:
    """The input with its type and shape, for a message."""
    kind = TYPE_NAMES.get(source.element(name), f"type {source.element(name)}")
    shape = [size or "dynamic" for size in source.dims(name)]
    return f"{source.quoted(name)} ({kind}{f' {shape}' if shape else ', a scalar'})".replace("'dynamic'", "dynamic")
