"""Reads a `.keras` file without Keras: its layers and weights become a whole-sequence ONNX graph.

A `.keras` file is a zip of config.json and model.weights.h5. Chains of layers that look at one event at a time, and
recurrent layers, are read; any other is refused by its name. What comes out goes the same way as a foreign ONNX file.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.onnx_wire import quote
from lstmstream.train.foreign.graph import printable
from lstmstream.train.foreign.sequence_graph import ACTIVATIONS, RECURRENT_ACTIVATIONS, SequenceGraph

Array = NDArray[np.float32]
MAX_CONFIG_BYTES = 2**26
MAX_WEIGHTS_BYTES = 2**31 - 1
MAX_WEIGHTS_NODES = 20_000  # groups and arrays of all layers; Keras makes fewer than ten for a layer
_IDLE = {
    "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization",
    "Identity",
}  # fmt: skip
_WHOLE = {
    "Flatten": "joins all events", "RepeatVector": "repeats a whole sequence's answer (an encoder and a decoder)",
    "Bidirectional": "reads the sequence from its end too", "Masking": "skips events, and a stream has none to skip",
    "Embedding": "takes token numbers; codes of categories cannot be imported",
}  # fmt: skip
_OTHER_WAY = 'model.export("model.onnx", format="onnx") in Keras, then lstmstream import --mode window'


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as the file describes it."""

    kind: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Array]  # path below the layer -> value

    def __str__(self) -> str:
        return f"layer {quote(self.name)} ({quote(self.kind)[1:-1]})"


def read_keras(path: Path) -> tuple[bytes, str]:
    """The file as a whole-sequence ONNX model, and the version of Keras that wrote it. Raises CannotServe."""
    try:
        return _read(path)
    except _Refused as refused:
        raise CannotServe(f"import {path}: {refused}") from refused
    except Exception as error:  # zip, its compressions, HDF5, JSON and numpy raise many kinds
        raise CannotServe(
            f"import {path}: not a .keras file that can be read ({type(error).__name__}: {printable(error)}); save it"
            f" again with Keras 3, or {_OTHER_WAY}"
        ) from error


class _Refused(Exception):
    """A sentence that says why."""


def _read(path: Path) -> tuple[bytes, str]:
    with zipfile.ZipFile(path) as archive:
        config = orjson.loads(_member(archive, "config.json", MAX_CONFIG_BYTES))
        version = str(orjson.loads(_member(archive, "metadata.json", MAX_CONFIG_BYTES)).get("keras_version"))
        content = _member(archive, "model.weights.h5", MAX_WEIGHTS_BYTES)
    if not version.startswith("3."):
        raise _Refused(f"written by Keras {quote(version)}; files of Keras 3 are read: load and save it with that")
    layers = list(_layers(config, content))
    if not layers or layers[0].kind != "InputLayer":
        raise _Refused("the first layer is no InputLayer: build the model (call it once) before you save it")
    shape = layers[0].config["batch_shape"]
    if len(shape) != 3 or shape[2] is None or layers[0].config.get("dtype") != "float32":
        raise _Refused(
            f"{layers[0]}: takes {printable(shape)} of {printable(layers[0].config.get('dtype'))}, not"
            " [batch, time, features] float32"
        )
    graph = SequenceGraph(int(shape[2]), None if shape[1] is None else int(shape[1]))
    for layer in layers[1:]:
        _policy(layer)
        _add(graph, layer)
    return graph.finish(), version


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > most:
        raise _Refused(f"{name} has {info.file_size} bytes, at most {most} are accepted")
    with archive.open(info) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _Refused(f"{name} has more than {most} bytes")
    return content


def _layers(config: Mapping[str, Any], content: bytes) -> Iterator[Layer]:
    """The layers in the order in which data passes them, with their weights."""
    import h5py  # noqa: PLC0415 -- only for these files

    if config["class_name"] not in {"Sequential", "Functional"}:
        raise _Refused(f"a model of class {quote(config['class_name'])}; Sequential and Functional ones can be read")
    described = config["config"]["layers"]
    groups = _group_names(described)
    with h5py.File(io.BytesIO(content), "r") as file:
        budget = _Budget(MAX_WEIGHTS_NODES, len(content))
        found = {
            entry["config"]["name"]: Layer(
                entry["class_name"], entry["config"]["name"], entry["config"], _weights(file, f"layers/{group}", budget)
            )
            for entry, group in zip(described, groups, strict=True)
        }
    if config["class_name"] == "Sequential":
        yield from found.values()
        return
    for entry in described:
        if any(node["kwargs"].get("training") for node in entry["inbound_nodes"]):
            raise _Refused(f"{found[entry['config']['name']]}: called with training=True, which is random")
    before = {entry["config"]["name"]: list(_sources(entry["inbound_nodes"])) for entry in described}
    ends = config["config"]["output_layers"]
    ends = [ends] if ends and isinstance(ends[0], str) else ends
    if len(ends) != 1:
        raise _Refused(f"{len(ends)} outputs; a model with one can be read. Or: {_OTHER_WAY}")
    chain = [ends[0][0]]
    while sources := before[chain[-1]]:
        if len(sources) != 1 or len(chain) > len(described):
            raise _Refused(
                f"{found[chain[-1]]}: has {len(sources)} inputs; a chain of layers can be read. Or: {_OTHER_WAY}"
            )
        chain.append(sources[0])
    yield from (found[name] for name in reversed(chain))


def _sources(value: Any) -> Iterator[str]:
    """Names of the layers whose answers are an argument of this one."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
            return
        value = list(value.values())
    if isinstance(value, list):
        for below in value:
            yield from _sources(below)


def _group_names(described: list[Any]) -> list[str]:
    """Keras names the weights' groups after the class, numbered in order: lstm, lstm_1."""
    names, seen = [], dict[str, int]()
    for entry in described:
        name = _snake_case(entry["class_name"])
        names.append(name if name not in seen else f"{name}_{seen[name]}")
        seen[name] = seen.get(name, 0) + 1
    return names


def _snake_case(name: str) -> str:
    """As Keras does it.

    >>> [_snake_case(name) for name in ("LSTM", "SimpleRNN", "BatchNormalization", "InputLayer", "ReLU")]
    ['lstm', 'simple_rnn', 'batch_normalization', 'input_layer', 're_lu']
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


@dataclass(slots=True)
class _Budget:
    """What may still be read of a file, all its layers together.

    An array that was never written takes no room in the file, and a group can be linked to any number of times: a
    file of a kilobyte can ask for gigabytes, or hours.
    """

    nodes: int
    values: int  # bytes

    def visit(self, path: str) -> None:
        """Counts a group or an array."""
        self.nodes -= 1
        if self.nodes < 0:
            raise _Refused(f"{quote(path)}: more than {MAX_WEIGHTS_NODES} groups and arrays of weights")

    def read(self, path: str, size: int) -> None:
        """Counts an array's bytes."""
        self.values -= size
        if self.values < 0:
            raise _Refused(
                f"{quote(path)}: the weights up to here are larger than the file they stand in, so some were never"
                " written, are compressed or stand there twice; save it again with Keras 3"
            )


def _weights(file: Any, group: str, budget: _Budget) -> dict[str, Array]:
    """Every array below a group. Links to other files, which HDF5 can hold, are refused."""
    import h5py  # noqa: PLC0415

    found: dict[str, Array] = {}

    def collect(node: Any, path: str, depth: int) -> None:
        if depth > 8:
            raise _Refused(f"{quote(path)}: groups within groups too deep")
        for name in node:
            budget.visit(f"{path}/{name}")
            if not isinstance(node.get(name, getlink=True), h5py.HardLink):
                raise _Refused(f"{quote(f'{path}/{name}')}: a link; weights have to be in the file")
            child, below = node[name], f"{path}/{name}"
            if isinstance(child, h5py.Group):
                collect(child, below, depth + 1)
            elif child.external or child.is_virtual:
                raise _Refused(f"{quote(below)}: its data is in another file; weights have to be in the file")
            elif child.dtype.kind in "fiu":
                budget.read(below, child.size * child.dtype.itemsize)
                found[below.removeprefix(f"{group}/")] = np.asarray(child[()], np.float32)

    if group in file:
        collect(file[group], group, 0)
    return found


def _policy(layer: Layer) -> None:
    policy = layer.config.get("dtype")
    name = policy["config"].get("name") if isinstance(policy, dict) else policy
    if name not in {None, "float32"}:
        raise _Refused(f"{layer}: computes in {quote(str(name))}; float32 is what is served")


def _add(graph: SequenceGraph, layer: Layer) -> None:
    """Appends the layer to the graph."""
    kind, config = layer.kind, layer.config
    if kind in {"LSTM", "GRU", "SimpleRNN"}:
        _add_recurrent(graph, layer)
    elif kind == "TimeDistributed":
        inner = config["layer"]
        below = {path.removeprefix("layer/"): value for path, value in layer.weights.items()}
        if inner["class_name"] in {"LSTM", "GRU", "SimpleRNN", "TimeDistributed"}:
            raise _Refused(f"{layer}: {quote(inner['class_name'])} inside cannot be read")
        _add(graph, Layer(inner["class_name"], layer.name, inner["config"], below))
    elif kind == "Dense":
        kernel, bias = _exactly(layer, "vars", 2)
        assert kernel is not None
        graph.dense(kernel, bias)
        _activate(graph, layer, config["activation"])
    elif kind in _IDLE:
        return  # at inference they pass everything on
    elif kind in _SIMPLE:
        _SIMPLE[kind](graph, layer)
    else:
        why = _WHOLE.get(kind, "is not one that can be read")
        if any(sign in kind for sign in ("Pooling", "Conv", "Attention")):
            why = "looks at several events"
        raise _Refused(f"{layer}: {why}; a step cannot be made of it. {_OTHER_WAY}")


def _add_recurrent(graph: SequenceGraph, layer: Layer) -> None:
    config, kind = layer.config, layer.kind
    if config.get("go_backwards"):
        raise _Refused(f"{layer}: go_backwards; a stream has no events from the end")
    if config.get("return_state"):
        raise _Refused(f"{layer}: return_state; a chain of layers can be read. Or: {_OTHER_WAY}")
    if not graph.sequence:
        raise _Refused(f"{layer}: the layers before it have no axis of time left")
    kernel, recurrent, bias = _exactly(layer, "cell/vars", 3)
    assert kernel is not None
    assert recurrent is not None
    names = ["activation"] if kind == "SimpleRNN" else ["recurrent_activation", "activation"]
    chosen = [config[name] for name in names]
    for name in chosen:
        if name not in RECURRENT_ACTIVATIONS:
            raise _Refused(f"{layer}: activation {quote(str(name))} cannot be read")
    hidden = recurrent.shape[0]
    gates = {"LSTM": [0, 3, 1, 2], "GRU": [0, 1, 2], "SimpleRNN": [0]}[kind]  # i, f, c, o -> i, o, f, c

    def ordered(values: Array) -> Array:
        """[..., gates * H] to [gates * H, ...] in ONNX's order."""
        blocks = np.split(values, len(gates), axis=-1)
        return np.concatenate([blocks[gate] for gate in gates], axis=-1).T

    if bias is None:
        bias = np.zeros(len(gates) * hidden, np.float32)
    halves = [bias, np.zeros_like(bias)] if bias.ndim == 1 else list(bias)
    whole_bias = np.concatenate([ordered(half) for half in halves])
    graph.recurrent(
        {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}[kind],
        ordered(kernel),
        ordered(recurrent),
        whole_bias,
        chosen,
        linear_before_reset=int(bool(config.get("reset_after"))) if kind == "GRU" else None,
        whole=bool(config["return_sequences"]),
    )


def _exactly(layer: Layer, group: str, count: int) -> list[Array | None]:
    """The layer's weights in order, the last one (the bias) None where the layer has none.

    One too few or too many (LoRA, quantisation) means that the layer computes something else.
    """
    names = [f"{group}/{index}" for index in range(count - (not layer.config["use_bias"]))]
    found = {name for name in layer.weights if name.startswith(f"{group}/")}
    if found != set(names):
        raise _Refused(f"{layer}: has {len(found)} weights, should have {len(names)}")
    return [layer.weights.get(f"{group}/{index}") for index in range(count)]


def _activate(graph: SequenceGraph, layer: Layer, name: Any) -> None:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        shown = name.get("class_name") if isinstance(name, dict) else name
        raise _Refused(f"{layer}: activation {quote(str(shown))} cannot be read")
    graph.activate(name)


def _batch_norm(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config["axis"] not in {-1, 2} and config["axis"] != [2]:
        raise _Refused(f"{layer}: over axis {printable(config['axis'])}, not over features")
    values = [layer.weights[f"vars/{index}"] for index in range(2 + config["scale"] + config["center"])]
    gamma = values.pop(0) if config["scale"] else np.ones_like(values[-1])
    beta = values.pop(0) if config["center"] else np.zeros_like(gamma)
    mean, variance = values
    factor = gamma / np.sqrt(variance + np.float32(config["epsilon"]))
    graph.affine(factor, beta - mean * factor)


def _layer_norm(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config["axis"] not in (-1, [-1], [2], 2) or config.get("rms_scaling"):
        raise _Refused(f"{layer}: over axis {printable(config['axis'])}, not over features")
    values = [layer.weights[f"vars/{index}"] for index in range(config["scale"] + config["center"])]
    gamma = values.pop(0) if config["scale"] else np.ones(graph.width, np.float32)
    graph.layer_norm(gamma, values.pop(0) if config["center"] else np.zeros_like(gamma), float(config["epsilon"]))


def _normalization(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config.get("axis") not in (-1, [-1], [2], 2) or config.get("invert"):
        raise _Refused(f"{layer}: over axis {printable(config.get('axis'))}, not over features")
    given = [config.get("mean"), config.get("variance")]
    mean, variance = (
        np.asarray(layer.weights[f"vars/{index}"] if one is None else one, np.float32).reshape(-1)
        for index, one in enumerate(given)
    )
    scale = np.maximum(np.sqrt(variance), np.float32(1e-7)).astype(np.float32)
    graph.affine(np.float32(1) / scale, np.zeros_like(scale), less=mean)


def _rescale(graph: SequenceGraph, layer: Layer) -> None:
    graph.affine(np.float32(layer.config["scale"]), np.float32(layer.config["offset"]))


def _relu(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config.get("max_value") is not None or config.get("threshold") or config.get("negative_slope"):
        raise _Refused(f"{layer}: with max_value, threshold or negative_slope cannot be read")
    graph.activate("relu")


def _softmax(graph: SequenceGraph, layer: Layer) -> None:
    if layer.config.get("axis", -1) not in (-1, [-1]):
        raise _Refused(f"{layer}: over axis {printable(layer.config['axis'])}, not over the classes")
    graph.activate("softmax")


_SIMPLE: dict[str, Callable[[SequenceGraph, Layer], None]] = {
    "Activation": lambda graph, layer: _activate(graph, layer, layer.config["activation"]),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Normalization": _normalization,
    "ReLU": _relu,
    "Rescaling": _rescale,
    "Softmax": _softmax,
}
