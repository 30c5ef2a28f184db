"""Graphs that keep the state rows of all keys in one tensor, the slab: read rows, write rows, and a step in place.

ONNX Runtime's ScatterND copies its data only where input and output are different memory. Bound to the slab itself,
its output costs what the rows cost, however large the slab is. Only protobuf is used; nothing is run here.
"""

from __future__ import annotations

from collections.abc import Sequence

from lstmstream.model import onnx_proto
from lstmstream.model.graph_parts import STATE, STATE_OUT
from lstmstream.model.onnx_proto import FLOAT, INT64, Proto

BOOL = 9
_IR_VERSION, _OPSET = 8, 13
_INT_ATTRIBUTE = 2
_OWN = "lstmstream_"  # before names that no exporter gives
SLAB, SLAB_OUT = f"{_OWN}slab", f"{_OWN}slab_out"  # [C, S]
ROWS = f"{_OWN}rows"  # [N, 1] row numbers in the slab, all different
VALUES = f"{_OWN}values"  # [N, S]
FRESH = f"{_OWN}fresh"  # [N, 1] the key starts with the initial row
FINITE = f"{_OWN}finite"  # [N, 1] 0 where the new row is finite, else NaN
EVENTS = f"{_OWN}events"  # [T, 1] numbers of the events of one key in a batch, in their order


def read_content(size: int) -> bytes:
    """SLAB, ROWS -> VALUES."""
    model = _empty_model()
    graph = model.graph
    _add_slab(graph, size)
    _declare(graph.output, VALUES, FLOAT, ["N", size])
    graph.node.add(op_type="GatherND", name=VALUES, input=[SLAB, ROWS], output=[VALUES])
    return onnx_proto.serialise(model)


def write_content(size: int) -> bytes:
    """SLAB, ROWS, VALUES -> SLAB_OUT."""
    model = _empty_model()
    graph = model.graph
    _add_slab(graph, size)
    _declare(graph.input, VALUES, FLOAT, ["N", size])
    _add_write(graph, VALUES, size)
    return onnx_proto.serialise(model)


def fill_content(size: int) -> bytes:
    """SLAB, ROWS, VALUES [1, S] -> SLAB_OUT: all rows the same."""
    model = _empty_model()
    graph = model.graph
    _add_slab(graph, size)
    _declare(graph.input, VALUES, FLOAT, [1, size])
    count, repeated = f"{_OWN}count", f"{_OWN}repeated"
    graph.node.add(op_type="Shape", name=count, input=[ROWS], output=[count])
    graph.node.add(op_type="Expand", name=repeated, input=[VALUES, count], output=[repeated])
    _add_write(graph, repeated, size)
    return onnx_proto.serialise(model)


def step_content(content: bytes, initial: Sequence[float]) -> bytes:
    """A step graph, or its part `step` (graph_parts.py), over rows of the slab.

    SLAB, ROWS and FRESH stand for the input `state`, SLAB_OUT and FINITE for the output `state_out`; the others stay.
    The new state has to depend on the old one: rows are read before they are written for no other reason.
    """
    model = onnx_proto.parse(content)
    graph = model.graph
    steps = list(onnx_proto.parse(content).graph.node)
    size = len(initial)
    for field, name in ((graph.input, STATE), (graph.output, STATE_OUT)):
        del field[next(i for i, value in enumerate(field) if value.name == name)]
    del graph.node[:]
    _add_slab(graph, size)
    _declare(graph.input, FRESH, BOOL, ["N", 1])
    initial_name, stored = f"{_OWN}initial", f"{_OWN}stored"
    graph.initializer.add(name=initial_name, data_type=FLOAT, dims=[1, size], float_data=initial)
    graph.node.add(op_type="GatherND", name=stored, input=[SLAB, ROWS], output=[stored])
    graph.node.add(op_type="Where", name=FRESH, input=[FRESH, initial_name, stored], output=[STATE])
    graph.node.extend(steps)
    _add_write(graph, STATE_OUT, size)
    zeros, products = f"{_OWN}zeros", f"{_OWN}products"
    graph.initializer.add(name=zeros, data_type=FLOAT, dims=[1, size], float_data=[0.0] * size)
    graph.initializer.add(name=f"{_OWN}ones", data_type=FLOAT, dims=[size, 1], float_data=[1.0] * size)
    graph.node.add(op_type="Mul", name=products, input=[STATE_OUT, zeros], output=[products])  # NaN if not finite
    graph.node.add(op_type="MatMul", name=FINITE, input=[products, f"{_OWN}ones"], output=[FINITE])
    _declare(graph.output, FINITE, FLOAT, ["N", 1])
    return onnx_proto.serialise(model)


def sequence_step_content(content: bytes, initial: Sequence[float]) -> bytes:
    """A sequence graph (sequence_graph.py) over one row of the slab: T events of one key, at EVENTS in a batch of M.

    For each feature [T, 1, D] it takes `of_batch(feature)` [M, D], and each of its outputs [T, 1, H] of every event it
    writes into `of_batch(output)` [M, H], which it gives as `of_batch_out(output)`. The state: as in `step_content`.
    """
    source, model = onnx_proto.parse(content).graph, onnx_proto.parse(content)
    graph = model.graph
    for field in (graph.input, graph.output, graph.node):
        del field[:]
    _declare(graph.input, EVENTS, INT64, ["T", 1])
    one_by_one = f"{_OWN}one_by_one"
    graph.initializer.add(name=one_by_one, data_type=INT64, dims=[3], int64_data=[0, 1, -1])
    for value in source.input:
        if value.name == STATE:
            graph.input.append(value)
            continue
        declared = onnx_proto.tensor_type(value)
        assert declared is not None, value.name
        whole, mine = of_batch(value.name), f"{_OWN}mine_{value.name}"
        _declare(graph.input, whole, declared[0], ["M", declared[1][2]])
        graph.node.add(op_type="GatherND", name=mine, input=[whole, EVENTS], output=[mine])
        graph.node.add(op_type="Reshape", name=whole, input=[mine, one_by_one], output=[value.name])
    graph.node.extend(source.node)
    for value in source.output:
        if value.name == STATE_OUT:
            graph.output.append(value)
            continue
        whole, written, flat = of_batch(value.name), of_batch_out(value.name), f"{_OWN}flat_{value.name}"
        for field, name in ((graph.input, whole), (graph.output, written)):
            _declare(field, name, FLOAT, ["M", f"width_{value.name}"])
        node = graph.node.add(op_type="Flatten", name=flat, input=[value.name], output=[flat])
        node.attribute.add(name="axis", type=_INT_ATTRIBUTE, i=1)
        graph.node.add(op_type="ScatterND", name=written, input=[whole, EVENTS, flat], output=[written])
    return step_content(onnx_proto.serialise(model), initial)


def of_batch(name: str) -> str:
    """The input that has a tensor for all events of a batch."""
    return f"{_OWN}batch_{name}"


def of_batch_out(name: str) -> str:
    """The output that is that input's memory."""
    return f"{_OWN}batch_out_{name}"


def _empty_model() -> Proto:
    model = onnx_proto.ModelProto(ir_version=_IR_VERSION)
    model.opset_import.add(domain="", version=_OPSET)
    model.graph.name = "slab"
    return model


def _add_slab(graph: Proto, size: int) -> None:
    _declare(graph.input, SLAB, FLOAT, ["C", size])
    _declare(graph.input, ROWS, INT64, ["N", 1])


def _add_write(graph: Proto, values: str, size: int) -> None:
    graph.node.add(op_type="ScatterND", name=SLAB_OUT, input=[SLAB, ROWS, values], output=[SLAB_OUT])
    _declare(graph.output, SLAB_OUT, FLOAT, ["C", size])


def _declare(field: Proto, name: str, element: int, dimensions: Sequence[int | str]) -> None:
    tensor = field.add(name=name).type.tensor_type
    tensor.elem_type = element
    for size in dimensions:
        if isinstance(size, int):
            tensor.shape.dim.add(dim_value=size)
        else:
            tensor.shape.dim.add(dim_param=_OWN + size)
