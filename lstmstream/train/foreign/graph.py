"""Reads a foreign ONNX file, a model of somebody else's that takes whole sequences, and looks at what is in it.

What a file may not hold (other operator domains, external data, weights that are not finite) is refused before
onnxruntime sees a byte of it. Does not change the graph's meaning and does not know what a step is: rewrite.py does.
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

from lstmstream import onnx_wire
from lstmstream.errors import CannotServe
from lstmstream.onnx_wire import quote

Array = NDArray[Any]
RECURRENT = {"LSTM": 2, "GRU": 1, "RNN": 1}  # operator -> parts of its state
LOOPS = {"Loop", "Scan", "SequenceMap"}
MAX_FILE_BYTES = 2**31 - 1
MAX_TRACED = 2**28  # values of one tensor; more than any step needs, few enough for memory
MAX_HIDDEN = 2**16
MAX_FED = 2**23  # values that an input declares; the proof feeds it hundreds of times
_LOWEST_OPSET, _HIGHEST_OPSET = 9, 26
# Our graph's own names; a foreign tensor of such a name gets another.
RESERVED = {"x", "categories", "timestamp", "elapsed", "state", "state_out", "score", "prediction"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrent node of the graph."""

    index: int  # of the node
    name: str  # as people find it in the file
    kind: str  # LSTM, GRU or RNN
    hidden: int

    @property
    def letters(self) -> str:
        """The parts of its state."""
        return "hc"[: RECURRENT[self.kind]]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A foreign graph that passed the safety checks; nothing is known yet of what it means."""

    source: str  # the file, for messages
    sha256: str
    model: onnx.ModelProto
    opset: int
    renamed: Mapping[str, str] = field(default_factory=dict)  # our name of a tensor -> the file's

    @property
    def graph(self) -> onnx.GraphProto:
        """The main graph."""
        return self.model.graph

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what has to be fed."""
        return tuple(value.name for value in self.graph.input)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the answers."""
        return tuple(value.name for value in self.graph.output)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Recurrent nodes in the graph's order."""
        found = []
        for index, node in enumerate(self.graph.node):
            if node.op_type in RECURRENT:
                recurrence = self.constant(node.input[2])
                width = recurrence.shape[-1] if recurrence is not None and recurrence.ndim else 0
                hidden = attribute(node, "hidden_size", width)
                found.append(Cell(index, title(node, index), node.op_type, int(hidden)))
        return tuple(found)

    def dims(self, name: str) -> tuple[int | None, ...]:
        """Declared dimensions of an input or output, None where symbolic or -1. Raises CannotServe for none at all."""
        for value in [*self.graph.input, *self.graph.output]:
            if value.name == name:
                if not value.type.tensor_type.HasField("shape"):
                    break
                return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim)
        raise self.refuse(f"{self.shown(name)} declares no shape; export it with one")

    def element(self, name: str) -> int:
        """ONNX element type of an input or output."""
        return int(
            next(v.type.tensor_type.elem_type for v in [*self.graph.input, *self.graph.output] if v.name == name)
        )

    def constant(self, name: str) -> Array | None:
        """The value of a weight, None for everything that is computed."""
        for tensor in self.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        return None

    def shown(self, name: str) -> str:
        """A tensor's name in the file, quoted."""
        return quote(self.renamed.get(name, name))

    def refuse(self, problem: str) -> CannotServe:
        """The error that says so of this file."""
        return CannotServe(f"import {self.source}: {problem}")


def read_foreign(path: Path) -> Foreign:
    """Reads and checks a file. Raises CannotServe."""
    try:
        size = path.stat().st_size if path.is_file() else -1
        if size < 0:
            raise CannotServe(f"import {path}: {'not a regular file' if path.exists() else 'no such file'}")
        if size > MAX_FILE_BYTES:
            raise CannotServe(f"import {path}: {size} bytes, at most {MAX_FILE_BYTES} are accepted")
        content = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise CannotServe(f"import {path}: cannot be read ({printable(error)})") from error
    return checked(content, str(path))


def checked(content: bytes, source: str) -> Foreign:
    """The same from bytes; `source` names them in messages."""
    try:
        wire = onnx_wire.parse(content)
        onnx_wire.drop_unused_domains(wire)
        problems = [_with_cure(problem) for problem in onnx_wire.unsafe(wire)]
        clean = b"" if problems else onnx_wire.serialise(wire)
    except ValueError as error:
        raise CannotServe(f"import {source}: {error}") from error
    if problems:
        shown = [f"import {source}: {problem}" for problem in problems[:10]]
        raise CannotServe(
            *shown, *([f"import {source}: and {len(problems) - 10} more problems"] if problems[10:] else [])
        )
    model = onnx.load_from_string(clean)
    opset = onnx_wire.opset(wire)
    if not _LOWEST_OPSET <= opset <= _HIGHEST_OPSET:
        raise CannotServe(
            f"import {source}: opset {opset}, {_LOWEST_OPSET} to {_HIGHEST_OPSET} are read; export it with opset 17"
        )
    renamed = _tidy(model.graph)
    prune(model.graph)
    _refuse_giants(model.graph, source)
    foreign = Foreign(source, hashlib.sha256(content).hexdigest(), model, opset, renamed)
    if not foreign.inputs or not foreign.outputs:
        raise foreign.refuse("the graph has no input that reaches an output: it is a constant")
    session(model, source)  # holds every node against its operator, so that we need not ask what a node lacks
    return foreign


def _refuse_giants(graph: onnx.GraphProto, source: str) -> None:
    """A few bytes can ask for terabytes; only what is written in the file as a number is seen here."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if math.prod(size if size > 0 else 16 for size in sizes) > MAX_FED:  # free axes get up to 13
            raise CannotServe(
                f"import {source}: the input {quote(value.name)} declares {sizes} (0: free): too large to be fed;"
                " export it with free axes of batch and time"
            )
    for index, node in enumerate(graph.node):
        place = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": 1, "Pad": 1, "Upsample": 1}.get(node.op_type)
        if place is not None and len(node.input) > place and node.input[place] in weights:
            sizes = np.abs(numpy_helper.to_array(weights[node.input[place]]).astype(np.float64))
            if np.prod(np.maximum(sizes, 1)) > MAX_TRACED:
                raise CannotServe(
                    f"import {source}: {title(node, index)} makes a tensor of {sizes.tolist()}: too large"
                )
        size = next((one.i for one in node.attribute if one.name == "hidden_size"), 0)
        if size > MAX_HIDDEN:
            raise CannotServe(f"import {source}: {title(node, index)} has {size} hidden units, at most {MAX_HIDDEN}")


def _with_cure(problem: str) -> str:
    if "external data" in problem:
        return f"{problem} (torch.onnx.export(..., external_data=False))"
    return problem


def _tidy(graph: onnx.GraphProto) -> dict[str, str]:
    """Constant nodes become weights, weights are no inputs, our own names are free; returns new name -> old name."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        value = _constant_node(node)
        if value is None:
            kept.append(node)
        else:
            value.name = node.output[0]
            graph.initializer.append(value)
    nodes = [copy_of(node) for node in kept]
    inputs = [copy_of(value) for value in graph.input if value.name not in weights]
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    names = set(RESERVED & set(_names(graph)))
    mapping = {name: f"{name} (original)" for name in names}
    rename(graph, mapping)
    return {new: old for old, new in mapping.items()}


def _constant_node(node: onnx.NodeProto) -> onnx.TensorProto | None:
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
    """A message of its own, not a view into another."""
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
    """Other names for tensors, in the graph and all below it."""
    for entry in [*graph.initializer, *graph.input, *graph.output, *graph.value_info]:
        entry.name = mapping.get(entry.name, entry.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = mapping.get(name, name)
        for below in subgraphs(node):
            rename(below, mapping)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Bodies of If and Loop."""
    for one in node.attribute:
        if one.HasField("g"):
            yield one.g
        yield from one.graphs


def reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those taken by its subgraphs among them."""
    names = {name for name in node.input if name}
    for below in subgraphs(node):
        names |= {value.name for value in below.output}
        for inner in below.node:
            names |= reads(inner)
    return names


def prune(graph: onnx.GraphProto) -> None:
    """Drops what reaches no output; inputs too."""
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
    """Every tensor that `name` is made of, itself included, but not what is only measured (Shape).

    `along_data` goes through a recurrent node by its sequence alone, not by its first state.
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
    """An attribute's value."""
    for one in node.attribute:
        if one.name == name:
            value = onnx.helper.get_attribute_value(one)
            return value.decode() if isinstance(value, bytes) else value
    return default


def title(node: onnx.NodeProto, index: int) -> str:
    """How messages name a node."""
    return f"node {quote(node.name or node.output[0] or str(index))} ({node.op_type})"


def session(model: onnx.ModelProto, source: str) -> ort.InferenceSession:
    """The model on one thread. Raises CannotServe with onnxruntime's reason."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        content = model.SerializeToString(deterministic=True)
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unrelated classes
        raise CannotServe(f"import {source}: ONNX Runtime cannot load it: {brief(error)}") from error


def run(opened: ort.InferenceSession, names: Sequence[str], feed: Mapping[str, Array], source: str) -> dict[str, Array]:
    """One run. Raises CannotServe with onnxruntime's reason, which names the node."""
    try:
        return dict(zip(names, opened.run(list(names), dict(feed)), strict=True))
    except Exception as error:
        raise CannotServe(f"import {source}: ONNX Runtime cannot run it: {brief(error)}") from error


def brief(error: Exception) -> str:
    """The runtime's message on one line, without its own file names and codes."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"Non-zero status code returned while running ", "", text)
    text = re.sub(r"Status Message: (/\S+:\d+ .*?\) )?", "", text)
    return printable(text)


def printable(text: object) -> str:
    """The words of others on one line, fit for a terminal: a file's own names may stand in them. Escaped and cut."""
    return " ".join(str(text).split()).encode("unicode_escape").decode()[:300]


def traced(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The same model, returning every tensor that its main graph computes; and their names, in order."""
    with_all = copy_of(model)
    have = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name]
    with_all.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return with_all, names
