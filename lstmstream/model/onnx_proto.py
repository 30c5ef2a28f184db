"""Reads and checks ONNX files with protobuf alone, without onnxruntime, the `onnx` package or the model card.

The schema below is the part of ONNX that a step graph needs. Everything else in a file (doc strings, producer names,
per-node metadata with paths of another machine, sharding) is dropped while reading, so onnxruntime only gets what was
checked here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, EncodeError

from lstmstream.model.foreign_files import recognise

Proto = Any  # classes made at run time have no static type

# name, number, type; "*" marks a repeated field, "#" a packed one. Functions and training graphs are read as opaque
# bytes (the same wire type): they are refused, so there is no need to look inside.
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
# Recurrences with a state tensor that ONNX Runtime has in its own domain; the standard has both since opset 27.
_CONTRIBUTED_DOMAIN = "com.microsoft"
_CONTRIBUTED = frozenset({"CausalConvWithState", "LinearAttention"})
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
    """Return the known part of an ONNX file as a ModelProto. Raises ValueError if the bytes are not an ONNX model."""
    model = ModelProto()
    try:
        model.ParseFromString(content)
        model.DiscardUnknownFields()
    except (DecodeError, UnicodeDecodeError, RecursionError, MemoryError) as error:
        raise _not_onnx(content, type(error).__name__) from error
    for located in walk(model):
        if not _is_text(located):
            raise _not_onnx(content, f"{located.where or 'a text'} is not UTF-8")
    if not model.HasField("graph"):
        raise _not_onnx(content, "it has no graph")
    return model


def _not_onnx(content: bytes, reason: str) -> ValueError:
    found = recognise(content)
    return ValueError("is not an ONNX file" + (f" ({reason})" if found is None else f": it is {found.what}"))


def serialise(model: Proto) -> bytes:
    """Return the bytes for onnxruntime; equal models give equal bytes.

    onnxruntime takes any bytes with ORTM at 4 to 8 for its own flatbuffer format, of which nothing is checked here. A
    hostile producer_name can put it there in a file; in these bytes the graph's length and first field are there.
    Raises ValueError for a model above 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise ValueError(f"the model cannot be written ({error})") from error
    return content


def quote_untrusted(text: str | bytes) -> str:
    """Return a name from a file as it may be logged: escaped, in quotes, cut. Bytes are a name that is not UTF-8."""
    shown = ascii(text)
    return shown if len(shown) <= 82 else f"{shown[:79]}...{shown[-1]}"


@dataclass(frozen=True, slots=True)
class Located:
    """A message of a model with its schema name and its place in the model, as text for error messages."""

    kind: str
    where: str
    message: Proto


def walk(message: Proto, kind: str = "ModelProto", where: str = "") -> Iterator[Located]:
    """Yield every message in the tree, subgraphs included, parents first."""
    yield Located(kind, where, message)
    for name, _, field in _SCHEMA[kind]:
        repeated, kind_below = field[0] in "*#", field.lstrip("*#")
        if kind_below not in _SCALAR and (repeated or message.HasField(name)):
            below = getattr(message, name)
            for index, child in enumerate(below if repeated else [below]):
                label = _label(name, kind_below, child, index)
                yield from walk(child, kind_below, f"{where} / {label}" if where else label)


def _is_text(located: Located) -> bool:
    """Whether its text fields are UTF-8; one of protobuf's two parsers returns bytes if they are not."""
    values = [(getattr(located.message, name), kind) for name, _, kind in _SCHEMA[located.kind] if "string" in kind]
    return all(isinstance(text, str) for value, kind in values for text in (value if kind[0] == "*" else [value]))


def _label(field: str, kind: str, message: Proto, index: int) -> str:
    if kind == "NodeProto":
        return f"node {index} {quote_untrusted(message.name)} ({quote_untrusted(message.op_type)})"
    if kind in {"TensorProto", "ValueInfoProto", "AttributeProto"}:
        return f"{field} {quote_untrusted(message.name) if message.name else index}"
    return field


def safety_problems(model: Proto) -> list[str]:
    """Return everything in a model that must not be in a model file, one line each with its place."""
    problems = []
    if model.functions:
        problems.append("local functions are not accepted; inline them (onnx.inliner) and export again")
    if model.training_info:
        problems.append("training graphs are not accepted; export the model for inference")
    if not any(opset.domain in _STANDARD for opset in model.opset_import):
        problems.append("opset_import: the version of the standard operators is missing; export the model again")
    problems += [
        f"opset_import: operator domain {quote_untrusted(opset.domain)} is not accepted, only the standard one"
        for opset in model.opset_import
        if opset.domain not in {*_STANDARD, _CONTRIBUTED_DOMAIN}  # its operators are checked one by one
    ]
    for located in walk(model):
        if located.kind == "NodeProto":
            problems += _node_problems(located)
        elif located.kind == "AttributeProto":
            attribute = located.message
            if not (math.isfinite(attribute.f) and np.isfinite(np.asarray(attribute.floats, np.float32)).all()):
                problems.append(f"{located.where}: the value is not finite (NaN or infinity)")
        elif located.kind == "SparseTensorProto":
            problems.append(f"{located.where}: sparse weights are not accepted; export dense ones")
        elif located.kind == "TensorProto":
            problems += [f"{located.where}: {problem}" for problem in _tensor_problems(located.message)]
    return problems


def _node_problems(located: Located) -> Iterator[str]:
    node = located.message
    if node.domain == _CONTRIBUTED_DOMAIN:
        if node.op_type not in _CONTRIBUTED:
            yield (
                f"{located.where}: operator {quote_untrusted(node.op_type)} of domain {_CONTRIBUTED_DOMAIN!r} is not"
                f" accepted, only {' and '.join(sorted(_CONTRIBUTED))} of it; export the model with standard operators"
            )
    elif node.domain not in _STANDARD:
        yield f"{located.where}: operator domain {quote_untrusted(node.domain)} is not accepted, only the standard one"
    if node.overload:
        yield f"{located.where}: an overload (a local function) is not accepted; inline it and export again"
    if node.op_type in _RANDOM:
        yield f"{located.where}: a random operator gives different results at each run; export the model without it"


def _tensor_problems(tensor: Proto) -> Iterator[str]:
    """Find external data, data that does not match the shape, and values that are not finite."""
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
            yield f"shape {list(tensor.dims)} needs {count * width} bytes, but there are {len(tensor.raw_data)}"
            return
        values = np.frombuffer(tensor.raw_data, numpy_type)
    else:
        if len(getattr(tensor, field)) != count:
            yield f"shape {list(tensor.dims)} needs {count} values, but there are {len(getattr(tensor, field))}"
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


def bytes_per_value(data_type: int) -> int | None:
    """The width of a tensor's values in raw_data, by TensorProto.DataType; None for types that are not accepted."""
    return np.dtype(_TYPES[data_type][0]).itemsize if data_type in _TYPES else None


def tensor_type(value_info: Proto) -> tuple[int, list[int | str]] | None:
    """Return the declared element type and dimensions (text where symbolic), or None if no tensor is declared."""
    if not value_info.type.HasField("tensor_type") or not value_info.type.tensor_type.HasField("shape"):
        return None
    tensor = value_info.type.tensor_type
    return tensor.elem_type, [
        dim.dim_value if dim.HasField("dim_value") else str(dim.dim_param) for dim in tensor.shape.dim
    ]


def set_columns(value_info: Proto, columns: int) -> None:
    """Declare another size of the second axis."""
    value_info.type.tensor_type.shape.dim[1].dim_value = columns


def opset(model: Proto) -> int:
    """Return the version of the standard operators."""
    return max(int(entry.version) for entry in model.opset_import if entry.domain in _STANDARD)


def drop_unused_domains(model: Proto) -> None:
    """Remove imports of operator domains that no node uses; exporters leave such imports behind."""
    used = {located.message.domain for located in walk(model) if located.kind == "NodeProto"}
    kept = [entry for entry in model.opset_import if entry.domain in _STANDARD or entry.domain in used]
    copies = [(entry.domain, entry.version) for entry in kept]
    del model.opset_import[:]
    for domain, version in copies:
        model.opset_import.add(domain=domain, version=version)


def with_all_outputs(content: bytes) -> tuple[bytes, list[str]]:
    """Return the model with every tensor of its main graph as an output, and their names in the order of the graph.

    Used to find the first tensor that differs between two runs. onnxruntime fuses fewer nodes in such a graph, so a
    difference may disappear in it. Raises ValueError if `content` is not an ONNX model.
    """
    model = parse(content)
    names = [name for node in model.graph.node for name in node.output if name]
    have = {value.name for value in model.graph.output}
    for name in names:
        if name not in have:
            model.graph.output.add(name=name)  # without a type: onnxruntime infers it
    return serialise(model), names
