"""Reads and checks ONNX files with protobuf alone; knows nothing of the model card, onnxruntime or the `onnx` package.

The schema below is the part of ONNX that a step graph needs. Everything else in a file (doc strings, producer names,
per-node metadata with paths of somebody's machine, sharding) is dropped while reading, so what onnxruntime gets to see
is what was checked here, and nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, EncodeError

Proto = Any  # classes made at run time: no static type

# name, number, type; "*" marks a repeated field, "#" a packed one. Functions and training graphs are read as opaque
# bytes (the same wire type): they are refused, so nobody needs to look inside.
_SCHEMA: dict[str, tuple[tuple[str, int, str], ...]] = {
    "ModelProto": (
        ("ir_version", 1, "int64"),
        ("opset_import", 8, "*OperatorSetIdProto"),
        ("graph", 7, "GraphProto"),
        ("metadata_props", 14, "*StringStringEntryProto"),
        ("training_info", 20, "*bytes"),
        ("functions", 25, "*bytes"),
    ),
    "OperatorSetIdProto": (("domain", 1, "string"), ("version", 2, "int64")),
    "StringStringEntryProto": (("key", 1, "string"), ("value", 2, "string")),
    "GraphProto": (
        ("node", 1, "*NodeProto"),
        ("name", 2, "string"),
        ("initializer", 5, "*TensorProto"),
        ("sparse_initializer", 15, "*SparseTensorProto"),
        ("input", 11, "*ValueInfoProto"),
        ("output", 12, "*ValueInfoProto"),
        ("value_info", 13, "*ValueInfoProto"),
    ),
    "NodeProto": (
        ("input", 1, "*string"),
        ("output", 2, "*string"),
        ("name", 3, "string"),
        ("op_type", 4, "string"),
        ("domain", 7, "string"),
        ("overload", 8, "string"),
        ("attribute", 5, "*AttributeProto"),
    ),
    "AttributeProto": (
        ("name", 1, "string"),
        ("ref_attr_name", 21, "string"),
        ("type", 20, "int32"),
        ("f", 2, "float"),
        ("i", 3, "int64"),
        ("s", 4, "bytes"),
        ("t", 5, "TensorProto"),
        ("g", 6, "GraphProto"),
        ("sparse_tensor", 22, "SparseTensorProto"),
        ("tp", 14, "TypeProto"),
        ("floats", 7, "*float"),
        ("ints", 8, "*int64"),
        ("strings", 9, "*bytes"),
        ("tensors", 10, "*TensorProto"),
        ("graphs", 11, "*GraphProto"),
        ("sparse_tensors", 23, "*SparseTensorProto"),
        ("type_protos", 15, "*TypeProto"),
    ),
    "TensorProto": (
        ("dims", 1, "*int64"),
        ("data_type", 2, "int32"),
        ("float_data", 4, "#float"),
        ("int32_data", 5, "#int32"),
        ("string_data", 6, "*bytes"),
        ("int64_data", 7, "#int64"),
        ("name", 8, "string"),
        ("raw_data", 9, "bytes"),
        ("double_data", 10, "#double"),
        ("uint64_data", 11, "#uint64"),
        ("external_data", 13, "*StringStringEntryProto"),
        ("data_location", 14, "int32"),
    ),
    "SparseTensorProto": (("values", 1, "TensorProto"), ("indices", 2, "TensorProto"), ("dims", 3, "*int64")),
    "ValueInfoProto": (("name", 1, "string"), ("type", 2, "TypeProto")),
    "TypeProto": (
        ("tensor_type", 1, "TensorType"),
        ("sequence_type", 4, "ElementType"),
        ("sparse_tensor_type", 8, "TensorType"),
        ("optional_type", 9, "ElementType"),
    ),
    "TensorType": (("elem_type", 1, "int32"), ("shape", 2, "TensorShapeProto")),
    "ElementType": (("elem_type", 1, "TypeProto"),),
    "TensorShapeProto": (("dim", 1, "*Dimension"),),
    "Dimension": (("dim_value", 1, "int64"), ("dim_param", 2, "string")),
}
_ONEOF = {"TypeProto": "value", "Dimension": "value"}
_SCALAR = {name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}") for name in
           ("int32", "int64", "uint64", "float", "double", "string", "bytes")}  # fmt: skip
_PACKAGE = "lstmstream_onnx"  # not `onnx`: that name belongs to the onnx package, should both be imported

FLOAT, INT64 = 1, 7
_EXTERNAL = 1
# TensorProto.DataType -> (numpy type of raw_data, field used without raw_data); bfloat16 is widened by hand.
_TYPES: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"),
    2: ("<u1", "int32_data"),
    3: ("<i1", "int32_data"),
    4: ("<u2", "int32_data"),
    5: ("<i2", "int32_data"),
    6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"),
    9: ("<u1", "int32_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"),
    13: ("<u8", "uint64_data"),
    16: ("<u2", "int32_data"),
}
TYPE_NAMES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string",
              9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}  # fmt: skip
_FLOAT16, _BFLOAT16 = 10, 16
_STANDARD = frozenset({"", "ai.onnx"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


def _model_class() -> Proto:
    file = descriptor_pb2.FileDescriptorProto(name="lstmstream/onnx.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        if name in _ONEOF:
            message.oneof_decl.add(name=_ONEOF[name])
        for field_name, number, kind in fields:
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if kind[0] in "*#" else field.LABEL_OPTIONAL
            if kind[0] == "#":
                field.options.packed = True
            single = kind.lstrip("*#")
            if single in _SCALAR:
                field.type = _SCALAR[single]
            else:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{single}"
            if name in _ONEOF:
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ModelProto"))


ModelProto: Proto = _model_class()


def parse(content: bytes) -> Proto:
    """The known part of an ONNX file as a ModelProto. Raises ValueError where the bytes are no ONNX model."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
        model.DiscardUnknownFields()
    except (DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an ONNX file ({type(error).__name__})") from error
    for found in walk(model):
        if not _is_text(found):
            raise ValueError(f"not an ONNX file ({found.where or 'a text'} is not UTF-8)")
    if not model.HasField("graph"):
        raise ValueError("not an ONNX file (it has no graph)")
    return model


def serialise(model: Proto) -> bytes:
    """The bytes for onnxruntime; the same model gives the same bytes.

    onnxruntime takes any bytes with ORTM at 4 to 8 for its own flatbuffer format, of which nothing is checked here. A
    hostile producer_name can put it there in a file, but in these bytes the graph's length and first field stand there.
    Raises ValueError for a model above 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ValueError(f"the model cannot be written ({error})") from error
    return content


def quote(text: str | bytes) -> str:
    """A name out of a file, fit for a log line: escaped, in quotes, cut. Bytes: a name that is not UTF-8."""
    shown = ascii(text)
    return shown if len(shown) <= 82 else f"{shown[:79]}...{shown[-1]}"


@dataclass(frozen=True, slots=True)
class Found:
    """A message somewhere in a model: its schema name, where it stands (for people), itself."""

    kind: str
    where: str
    message: Proto


def walk(message: Proto, kind: str = "ModelProto", where: str = "") -> Iterator[Found]:
    """Every message in the tree, subgraphs included, parents first."""
    yield Found(kind, where, message)
    for name, _, field in _SCHEMA[kind]:
        repeated, kind_below = field[0] in "*#", field.lstrip("*#")
        if kind_below not in _SCALAR and (repeated or message.HasField(name)):
            below = getattr(message, name)
            for index, child in enumerate(below if repeated else [below]):
                label = _label(name, kind_below, child, index)
                yield from walk(child, kind_below, f"{where} / {label}" if where else label)


def _is_text(found: Found) -> bool:
    """Whether its text fields are UTF-8; one of protobuf's two parsers gives bytes where they are not."""
    values = [(getattr(found.message, name), kind) for name, _, kind in _SCHEMA[found.kind] if "string" in kind]
    return all(isinstance(text, str) for value, kind in values for text in (value if kind[0] == "*" else [value]))


def _label(field: str, kind: str, message: Proto, index: int) -> str:
    if kind == "NodeProto":
        return f"node {index} {quote(message.name)} ({quote(message.op_type)})"
    if kind in {"TensorProto", "ValueInfoProto", "AttributeProto"}:
        return f"{field} {quote(message.name) if message.name else index}"
    return field


def unsafe(model: Proto) -> list[str]:
    """What no model file may hold, one line each with its place; empty for a sound model."""
    problems = []
    if model.functions:
        problems.append("local functions are not accepted; inline them (onnx.inliner) and export again")
    if model.training_info:
        problems.append("training graphs are not accepted; export the model for inference")
    if not any(opset.domain in _STANDARD for opset in model.opset_import):
        problems.append("opset_import names no version of the standard operators")
    problems += [
        f"opset_import: operator domain {quote(opset.domain)} is not accepted, only the standard one"
        for opset in model.opset_import
        if opset.domain not in _STANDARD
    ]
    for found in walk(model):
        if found.kind == "NodeProto":
            problems += _node_problems(found)
        elif found.kind == "AttributeProto":
            attribute = found.message
            if not (math.isfinite(attribute.f) and np.isfinite(np.asarray(attribute.floats, np.float32)).all()):
                problems.append(f"{found.where}: the value is not finite (NaN or infinity)")
        elif found.kind == "SparseTensorProto":
            problems.append(f"{found.where}: sparse weights are not accepted; export dense ones")
        elif found.kind == "TensorProto":
            problems += [f"{found.where}: {problem}" for problem in _tensor_problems(found.message)]
    return problems


def _node_problems(found: Found) -> Iterator[str]:
    node = found.message
    if node.domain not in _STANDARD:
        yield f"{found.where}: operator domain {quote(node.domain)} is not accepted, only the standard one"
    if node.overload:
        yield f"{found.where}: an overload names a local function, which is not accepted"
    if node.op_type in _RANDOM:
        yield f"{found.where}: a random operator would give other answers at each run; export without it"


def _tensor_problems(tensor: Proto) -> Iterator[str]:
    """External data, data that does not fill the shape, values that are not finite."""
    if tensor.data_location == _EXTERNAL or tensor.external_data:
        yield "external data is not accepted; save the weights inside the file"
        return
    if any(size < 0 for size in tensor.dims):
        yield "a dimension is negative"
        return
    count = math.prod(tensor.dims)
    if tensor.data_type == 8:  # strings cannot be weights; onnxruntime checks their count
        return
    if tensor.data_type not in _TYPES:
        yield f"data type {tensor.data_type} is not accepted"
        return
    numpy_type, field = _TYPES[tensor.data_type]
    values: Any
    if tensor.HasField("raw_data"):
        width = np.dtype(numpy_type).itemsize
        if len(tensor.raw_data) != count * width or getattr(tensor, field):
            yield f"shape {list(tensor.dims)} needs {count * width} bytes, there are {len(tensor.raw_data)}"
            return
        values = np.frombuffer(tensor.raw_data, numpy_type)
    else:
        if len(getattr(tensor, field)) != count:
            yield f"shape {list(tensor.dims)} needs {count} values, there are {len(getattr(tensor, field))}"
            return
        values = np.asarray(getattr(tensor, field))
        if tensor.data_type in {_FLOAT16, _BFLOAT16}:  # kept as bit patterns
            values = values.astype(np.uint16)
            values = values.view(np.float16) if tensor.data_type == _FLOAT16 else values
    if tensor.data_type == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        yield f"the weights are not finite (NaN or infinity), first at value {place}"


def tensor_type(value_info: Proto) -> tuple[int, list[int | str]] | None:
    """Element type and dimensions of a declared tensor (a text where symbolic); None where there is no such thing."""
    if not value_info.type.HasField("tensor_type") or not value_info.type.tensor_type.HasField("shape"):
        return None
    tensor = value_info.type.tensor_type
    return tensor.elem_type, [
        dim.dim_value if dim.HasField("dim_value") else str(dim.dim_param) for dim in tensor.shape.dim
    ]


def opset(model: Proto) -> int:
    """Version of the standard operators."""
    return max(int(entry.version) for entry in model.opset_import if entry.domain in _STANDARD)


def drop_unused_domains(model: Proto) -> None:
    """Forgets imports of operator domains that no node uses; exporters leave such behind."""
    used = {found.message.domain for found in walk(model) if found.kind == "NodeProto"}
    kept = [entry for entry in model.opset_import if entry.domain in _STANDARD or entry.domain in used]
    copies = [(entry.domain, entry.version) for entry in kept]
    del model.opset_import[:]
    for domain, version in copies:
        model.opset_import.add(domain=domain, version=version)


def with_all_outputs(content: bytes) -> tuple[bytes, list[str]]:
    """The same model, returning every tensor its main graph computes; and their names, in the graph's order.

    For finding the first tensor that differs between two runs. onnxruntime fuses fewer nodes in such a graph, so a
    difference may vanish in it. Raises ValueError where `content` is no ONNX model.
    """
    model = parse(content)
    names = [name for node in model.graph.node for name in node.output if name]
    have = {value.name for value in model.graph.output}
    for name in names:
        if name not in have:
            model.graph.output.add(name=name)  # without a type: onnxruntime infers it
    return serialise(model), names
