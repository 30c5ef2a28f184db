"""Makes a float32 graph of one in float64 or float16: ONNX Runtime has no LSTM or GRU for these, and x is float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

_OTHERS = {TensorProto.DOUBLE: "float64", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
_TYPE_ATTRIBUTES = {"to", "dtype", "stash_type", "output_dtype"}


def to_float32(graph: onnx.GraphProto) -> str | None:
    """Changes every type, weight and cast of the graph in place; the type that it had, None where it was float32."""
    found: set[int] = set()
    _convert(graph, found)
    return _OTHERS[min(found)] if found else None


def _convert(graph: onnx.GraphProto, found: set[int]) -> None:
    for tensor in graph.initializer:
        _convert_tensor(tensor, found)
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in _OTHERS:
            found.add(value.type.tensor_type.elem_type)
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    for node in graph.node:
        for one in node.attribute:
            if one.name in _TYPE_ATTRIBUTES and one.i in _OTHERS:
                one.i = TensorProto.FLOAT
            if one.HasField("t"):
                _convert_tensor(one.t, found)
            for below in [*([one.g] if one.HasField("g") else []), *one.graphs]:
                _convert(below, found)


def _convert_tensor(tensor: onnx.TensorProto, found: set[int]) -> None:
    if tensor.data_type not in _OTHERS:
        return
    if len(tensor.dims):  # a scalar of float64 in a float32 graph is a constant of Python, and says nothing
        found.add(tensor.data_type)
    limit = float(np.finfo(np.float32).max)  # masks hold the lowest float64
    values = np.clip(numpy_helper.to_array(tensor).astype(np.float64), -limit, limit)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
