"""Reads and checks the ONNX file of a model that takes whole sequences, and answers questions about its graph.

A file with other operator domains or weights that are not finite is an error before ONNX Runtime sees it. The graph's
meaning is not changed here, apart from its precision; step_form.py makes a step of it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from lstmstream.errors import CannotServe
from lstmstream.importer.external_data import embed_external_data
from lstmstream.importer.float32 import to_float32
from lstmstream.model import onnx_proto
from lstmstream.model.foreign_files import SAVED_MODEL, recognise, recognise_folder
from lstmstream.model.onnx_proto import quote_untrusted

Array = NDArray[Any]
RECURRENT = {"LSTM": 2, "GRU": 1, "RNN": 1}  # operator -> number of its states
LOOPS = {"Loop", "Scan", "SequenceMap"}
MAX_FILE_BYTES = 2**31 - 1
MAX_TENSOR_VALUES = 2**28  # of a tensor whose size the file states; more than any step needs
MAX_HIDDEN = 2**16
MAX_INPUT_VALUES = 2**23  # that an input declares; the equivalence check feeds it hundreds of times
_LOWEST_OPSET, _HIGHEST_OPSET = 9, 26
# Names of the step graph; a tensor of the file with such a name is renamed.
RESERVED = {"x", "categories", "timestamp", "elapsed", "state", "state_out", "score", "prediction"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent node of the graph."""

    index: int  # of the node
    name: str  # as messages show it
    kind: str  # LSTM, GRU or RNN
    hidden: int

    @property
    def letters(self) -> str:
        """One letter for each of its states: h, and c of an LSTM."""
        return "hc"[: RECURRENT[self.kind]]


@dataclass(frozen=True, slots=True)
class SourceGraph:
    """The graph of a file that passed the safety checks. What its inputs and outputs mean is not known yet."""

    file: str  # for messages
    sha256: str
    model: onnx.ModelProto
    opset: int
    renamed: Mapping[str, str] = field(default_factory=dict)  # new name of a tensor -> its name in the file
    defaults: Mapping[str, Array] = field(default_factory=dict)  # optional input -> its default, now an initializer
    unused: tuple[str, ...] = ()  # inputs of the file that no output depends on
    precision: str | None = None  # the file's own, where it is not float32
    data_files: Mapping[str, str] = field(default_factory=dict)  # external data: name -> SHA-256

    @property
    def graph(self) -> onnx.GraphProto:
        """The main graph."""
        return self.model.graph

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(value.name for value in self.graph.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(value.name for value in self.graph.output)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The recurrent nodes in the graph's order."""
        found = []
        for index, node in enumerate(self.graph.node):
            if node.op_type in RECURRENT:
                recurrence = self.constant(node.input[2])
                width = recurrence.shape[-1] if recurrence is not None and recurrence.ndim else 0
                hidden = attribute(node, "hidden_size", width)
                found.append(Cell(index, node_title(node, index), node.op_type, int(hidden)))
        return tuple(found)

    def dims(self, name: str) -> tuple[int | None, ...]:
        """Declared dimensions of an input or output, None where symbolic or -1. Raises CannotServe without a shape."""
        for value in [*self.graph.input, *self.graph.output]:
            if value.name == name:
                if not value.type.tensor_type.HasField("shape"):
                    break
                return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim)
        raise self.error(f"{self.quoted(name)} has no shape; export the model with shapes")

    def element(self, name: str) -> int:
        """ONNX element type of an input or output."""
        return int(
            next(v.type.tensor_type.elem_type for v in [*self.graph.input, *self.graph.output] if v.name == name)
        )

    def constant(self, name: str) -> Array | None:
        """The value of an initializer; None for a tensor that is computed."""
        for tensor in self.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        return None

    def current_name(self, name: str) -> str:
        """The name in this graph of what the file calls `name`."""
        return next((new for new, old in self.renamed.items() if old == name), name)

    def quoted(self, name: str) -> str:
        """The tensor's name in the file, quoted for a message."""
        return quote_untrusted(self.renamed.get(name, name))

    def error(self, problem: str) -> CannotServe:
        """The error for a problem of this file."""
        return CannotServe(f"import {self.file}: {problem}")


def read_onnx(path: Path) -> SourceGraph:
    """Reads and checks an ONNX file. Raises CannotServe."""
    try:
        size = path.stat().st_size if path.is_file() else -1
        if size < 0:
            raise _no_file(path)
        if size > MAX_FILE_BYTES:
            raise CannotServe(f"import {path}: {size} bytes, at most {MAX_FILE_BYTES} are accepted")
        if path.name == "saved_model.pb":
            remedy = SAVED_MODEL.remedy.replace("FOLDER", str(path.parent))
            raise CannotServe(f"import {path}: is the graph of {SAVED_MODEL.what}; {remedy}")
        content = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise CannotServe(f"import {path}: cannot be read ({printable(error)})") from error
    return parse_checked(content, str(path), folder=path.parent)


def _no_file(path: Path) -> CannotServe:
    if path.is_dir() and (found := recognise_folder(path)) is not None:
        return CannotServe(f"import {path}: is {found.what}; {found.remedy.replace('FOLDER', str(path))}")
    what = "a folder; give the model's file" if path.is_dir() else "not a regular file"
    return CannotServe(f"import {path}: {what if path.exists() else 'no such file'}")


def parse_checked(content: bytes, file: str, *, folder: Path | None = None) -> SourceGraph:
    """The graph in the bytes of an ONNX file, checked; `file` names it in messages. Raises CannotServe.

    External data is read from files in `folder`, and refused without one.
    """
    data_files: dict[str, Path] = {}
    try:
        wire = onnx_proto.parse(content)
        if folder is not None:
            data_files = embed_external_data(wire, folder, file, MAX_FILE_BYTES)
        onnx_proto.drop_unused_domains(wire)
        problems = [_with_remedy(problem) for problem in onnx_proto.safety_problems(wire)]
        clean = b"" if problems else onnx_proto.serialise(wire)
    except ValueError as error:
        found = recognise(content)
        remedy = "" if found is None else f"; {found.remedy}"
        raise CannotServe(f"import {file}: {error}{remedy}") from error
    if problems:
        shown = [f"import {file}: {problem}" for problem in problems[:10]]
        raise CannotServe(
            *shown, *([f"import {file}: and {len(problems) - 10} more problems"] if problems[10:] else [])
        )
    model = onnx.load_from_string(clean)
    opset = onnx_proto.opset(wire)
    if not _LOWEST_OPSET <= opset <= _HIGHEST_OPSET:
        raise CannotServe(
            f"import {file}: opset {opset}, {_LOWEST_OPSET} to {_HIGHEST_OPSET} are supported; export it with opset 17"
        )
    defaults = _optional_inputs(model.graph)
    renamed = _normalise(model.graph)
    before = [value.name for value in model.graph.input]
    prune(model.graph)
    used = {value.name for value in model.graph.input}
    _check_sizes(model.graph, file)
    precision = to_float32(model.graph)
    kept = {tensor.name for tensor in model.graph.initializer}
    new_names = {old: new for new, old in renamed.items()}
    source = SourceGraph(
        file,
        hashlib.sha256(content).hexdigest(),
        model,
        opset,
        renamed,
        {new_names.get(name, name): value for name, value in defaults.items() if new_names.get(name, name) in kept},
        tuple(renamed.get(name, name) for name in before if name not in used),
        precision,
        {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(data_files.items())},
    )
    if not source.inputs or not source.outputs:
        raise source.error("no input of the graph reaches an output: it is a constant")
    open_session(model, file)  # ONNX Runtime checks every node, so that later code need not
    return source


def _check_sizes(graph: onnx.GraphProto, file: str) -> None:
    """Raises CannotServe for huge tensors that a few bytes ask for; only sizes that the file states are seen here."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(size if size > 0 else 16 for size in sizes) > MAX_INPUT_VALUES:  # free axes are fed with up to 13
            raise CannotServe(
                f"import {file}: the input {quote_untrusted(value.name)} declares {sizes} (0: dynamic): too large to be"
                " fed; export it with dynamic axes of batch and time"
            )
    for index, node in enumerate(graph.node):
        place = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": 1, "Pad": 1, "Upsample": 1}.get(node.op_type)
        if place is not None and len(node.input) > place and node.input[place] in weights:
            sizes = np.abs(numpy_helper.to_array(weights[node.input[place]]).astype(np.float64))
            if np.prod(np.maximum(sizes, 1)) > MAX_TENSOR_VALUES:
                raise CannotServe(
                    f"import {file}: {node_title(node, index)} makes a tensor of {sizes.tolist()}: too large"
                )
        size = next((one.i for one in node.attribute if one.name == "hidden_size"), 0)
        if size > MAX_HIDDEN:
            raise CannotServe(f"import {file}: {node_title(node, index)} has {size} hidden units, at most {MAX_HIDDEN}")


def _with_remedy(problem: str) -> str:
    if "external data" in problem:
        return f"{problem} (torch.onnx.export(..., external_data=False))"
    return problem


def _normalise(graph: onnx.GraphProto) -> dict[str, str]:
    """Makes initializers of constants, removes initializers from the inputs, and renames tensors with RESERVED names.

    Returns new name -> name in the file.
    """
    weights = {tensor.name for tensor in graph.initializer}
    constants_to_initializers(graph)
    inputs = [copy_of(value) for value in graph.input if value.name not in weights]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(inputs)
    names = set(RESERVED & set(_names(graph)))
    mapping = {name: f"{name} (original)" for name in names}
    rename(graph, mapping)
    return {new: old for old, new in mapping.items()}


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Makes initializers of the Constant nodes of the main graph."""
    kept = []
    for node in graph.node:
        value = _constant_node(node)
        if value is None:
            kept.append(copy_of(node))
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    del graph.node[:]
    graph.node.extend(kept)


def _optional_inputs(graph: onnx.GraphProto) -> dict[str, Array]:
    """Inputs that have a default among the initializers, and these defaults.

    Old files list every weight as an input too; which ones are states, their names tell later.
    """
    inputs = {value.name for value in graph.input}
    return {
        tensor.name: np.asarray(numpy_helper.to_array(tensor), copy=True)
        for tensor in graph.initializer
        if tensor.name in inputs
    }


def _constant_node(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node; None for other nodes."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    one = node.attribute[0]
    kinds: dict[str, tuple[Any, Any]] = {
        "value_float": (np.float32, one.f),
        "value_floats": (np.float32, list(one.floats)),
        "value_int": (np.int64, one.i),
        "value_ints": (np.int64, list(one.ints)),
    }
    if one.name == "value":
        return copy_of(one.t)
    if one.name in kinds:
        kind, value = kinds[one.name]
        return numpy_helper.from_array(np.asarray(value, kind))
    return None


def copy_of(message: Any) -> Any:
    """A copy of a protobuf message."""
    other = type(message)()
    other.CopyFrom(message)
    return other


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    for value in [*graph.input, *graph.output]:
        yield value.name
    for node in graph.node:
        yield from [*node.input, *node.output]
        for below in subgraphs(node):
            yield from _names(below)


def rename(graph: onnx.GraphProto, mapping: Mapping[str, str]) -> None:
    """Renames tensors in the graph and its subgraphs."""
    for entry in [*graph.initializer, *graph.input, *graph.output, *graph.value_info]:
        entry.name = mapping.get(entry.name, entry.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = mapping.get(name, name)
        for below in subgraphs(node):
            rename(below, mapping)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop and Scan."""
    for one in node.attribute:
        if one.HasField("g"):
            yield one.g
        yield from one.graphs


def reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node reads, including those that its subgraphs read."""
    names = {name for name in node.input if name}
    for below in subgraphs(node):
        names |= {value.name for value in below.output}
        for inner in below.node:
            names |= reads(inner)
    return names


def prune(graph: onnx.GraphProto) -> None:
    """Removes nodes, initializers and inputs that no output depends on."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= reads(node)
            kept.append(copy_of(node))
    weights = [copy_of(tensor) for tensor in graph.initializer if tensor.name in needed]
    inputs = [copy_of(value) for value in graph.input if value.name in needed]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
    graph.input.extend(inputs)


def ancestors(graph: onnx.GraphProto, name: str, *, along_data: bool = False) -> set[str]:
    """Every tensor that `name` is computed from, itself included, except tensors of which only the shape is read.

    With `along_data` a recurrent node counts only with its sequence, not with its initial state.
    """
    makers = {output: node for node in graph.node for output in node.output if output}
    found: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current in found or not current:
            continue
        found.add(current)
        node = makers.get(current)
        if node is None or node.op_type in {"Shape", "Size"}:
            continue
        todo += [node.input[0]] if along_data and node.op_type in RECURRENT else reads(node)
    return found


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    for one in node.attribute:
        if one.name == name:
            value = onnx.helper.get_attribute_value(one)
            return value.decode() if isinstance(value, bytes) else value
    return default


def node_title(node: onnx.NodeProto, index: int) -> str:
    """The node in a message, by name and operator."""
    return f"node {quote_untrusted(node.name or node.output[0] or str(index))} ({node.op_type})"


def open_session(model: onnx.ModelProto, file: str) -> ort.InferenceSession:
    """A session on one CPU thread. Raises CannotServe with ONNX Runtime's reason; `file` names the model in it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        content = model.SerializeToString(deterministic=True)
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unrelated classes
        raise CannotServe(f"import {file}: ONNX Runtime cannot load it: {_runtime_reason(error)}") from error


def run(opened: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array], file: str) -> dict[str, Array]:
    """The outputs `names` for the inputs `feed`. Raises CannotServe with ONNX Runtime's reason and node."""
    try:
        return dict(zip(names, opened.run(list(names), dict(feed)), strict=True))
    except Exception as error:
        raise CannotServe(f"import {file}: ONNX Runtime cannot run it: {_runtime_reason(error)}") from error


def _runtime_reason(error: Exception) -> str:
    """The runtime's message on one line, without its file names and codes."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"Non-zero status code returned while running ", "", text)
    text = re.sub(r"Status Message: (/\S+:\d+ .*?\) )?", "", text)
    return printable(text)


def printable(text: object) -> str:
    """Text of other libraries on one line, escaped and shortened: it may hold names from the file."""
    return " ".join(str(text).split()).encode("unicode_escape").decode()[:300]


def with_intermediates(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The same model, returning every tensor that its main graph computes; and their names, in order."""
    with_all = copy_of(model)
    have = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    with_all.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return with_all, names
