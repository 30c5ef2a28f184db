"""Reads a `.keras` file without Keras: its layers and weights become a whole-sequence ONNX graph.

A `.keras` file is a zip of config.json and model.weights.h5. Chains of recurrent layers and of layers that process one
event at a time can be read; any other layer is an error that names it. The result is imported as an ONNX file is.
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
from lstmstream.importer.graph import printable
from lstmstream.importer.sequence_graph import ACTIVATIONS, RECURRENT_ACTIVATIONS, SequenceGraph
from lstmstream.model.onnx_proto import quote_untrusted

Array = NDArray[np.float32]
MAX_CONFIG_BYTES = 2**26
MAX_WEIGHTS_BYTES = 2**31 - 1
MAX_WEIGHTS_NODES = 20_000  # groups and arrays of all layers; Keras writes fewer than ten for a layer
_NO_OPERATION = {
    "Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout", "AlphaDropout", "ActivityRegularization",
    "Identity",
}  # fmt: skip
_NEED_SEQUENCE = {
    "Flatten": "joins all events", "RepeatVector": "repeats the output of a whole sequence (an encoder and a decoder)",
    "Bidirectional": "also reads the sequence from its end", "Masking": "skips events, but a stream has no padding",
    "Embedding": "takes token ids; category codes cannot be imported",
}  # fmt: skip
_RECURRENT = {"LSTM", "GRU", "SimpleRNN"}
_ALTERNATIVE = 'model.export("model.onnx", format="onnx") in Keras, then lstmstream import --mode window'


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the file."""

    kind: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Array]  # path below the layer -> array

    def __str__(self) -> str:
        return f"layer {quote_untrusted(self.name)} ({quote_untrusted(self.kind)[1:-1]})"


def read_keras(path: Path) -> tuple[bytes, str]:
    """The file as the bytes of a whole-sequence ONNX model, and the version of Keras that wrote it.

    Raises CannotServe for a file that cannot be read or converted.
    """
    try:
        return _read(path)
    except _Unsupported as unsupported:
        raise CannotServe(f"import {path}: {unsupported}") from unsupported
    except Exception as error:  # zip, its compressions, HDF5, JSON and numpy raise many kinds
        raise CannotServe(
            f"import {path}: cannot be read as a .keras file ({type(error).__name__}: {printable(error)}); save it"
            f" again with Keras 3, or {_ALTERNATIVE}"
        ) from error


class _Unsupported(Exception):
    """Why the file cannot be converted, a sentence without the file's name."""


def _read(path: Path) -> tuple[bytes, str]:
    with zipfile.ZipFile(path) as archive:
        config = orjson.loads(_member(archive, "config.json", MAX_CONFIG_BYTES))
        version = str(orjson.loads(_member(archive, "metadata.json", MAX_CONFIG_BYTES)).get("keras_version"))
        content = _member(archive, "model.weights.h5", MAX_WEIGHTS_BYTES)
    if not version.startswith("3."):
        raise _Unsupported(
            f"written by Keras {quote_untrusted(version)}; only files of Keras 3 are supported: load it in Keras 3 and"
            " save it again"
        )
    layers = list(_layers(config, content))
    if not layers or layers[0].kind != "InputLayer":
        raise _Unsupported("the first layer is not an InputLayer: build the model (call it once) before saving it")
    shape = layers[0].config["batch_shape"]
    if len(shape) != 3 or shape[2] is None or layers[0].config.get("dtype") != "float32":
        raise _Unsupported(
            f"{layers[0]}: takes {printable(shape)} of {printable(layers[0].config.get('dtype'))}, not"
            " [batch, time, features] float32"
        )
    graph = SequenceGraph(int(shape[2]), _length(layers, shape[1]))
    for layer in layers[1:]:
        _check_dtype(layer)
        _add(graph, layer)
    return graph.to_bytes(), version


def _length(layers: list[Layer], declared: Any) -> int | None:
    """The fixed length of the sequences, None where any length gives what the model gives.

    Stateful layers go on from call to call, so that calls of one event each make a sequence of any length.
    """
    if declared != 1:
        return None if declared is None else int(declared)
    recurrent = [layer for layer in layers if layer.kind in _RECURRENT]
    stateful = [layer for layer in recurrent if layer.config.get("stateful")]
    if not stateful:
        return 1
    if len(stateful) < len(recurrent):
        forgetful = next(layer for layer in recurrent if layer not in stateful)
        raise _Unsupported(
            f"{forgetful}: stateful=False, though {stateful[0]} is stateful: with one event per call it has no state;"
            " save the model with stateful=True in every recurrent layer"
        )
    return None


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > most:
        raise _Unsupported(f"{name} has {info.file_size} bytes, at most {most} are accepted")
    with archive.open(info) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _Unsupported(f"{name} has more than {most} bytes")
    return content


def _layers(config: Mapping[str, Any], content: bytes) -> Iterator[Layer]:
    """The layers in the order of the data flow, with their weights."""
    import h5py  # noqa: PLC0415 -- only for these files

    if config["class_name"] not in {"Sequential", "Functional"}:
        raise _Unsupported(
            f"a model of class {quote_untrusted(config['class_name'])}; only Sequential and Functional ones can be read"
        )
    groups = _group_names(config["config"]["layers"])
    described = [_with_cell(entry) for entry in config["config"]["layers"]]
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
            raise _Unsupported(f"{found[entry['config']['name']]}: called with training=True, which is random")
    before = {entry["config"]["name"]: list(_sources(entry["inbound_nodes"])) for entry in described}
    ends = config["config"]["output_layers"]
    ends = [ends] if ends and isinstance(ends[0], str) else ends
    if len(ends) != 1:
        raise _Unsupported(f"{len(ends)} outputs; only a model with one can be read. Or: {_ALTERNATIVE}")
    chain = [ends[0][0]]
    while sources := before[chain[-1]]:
        if len(sources) != 1 or len(chain) > len(described):
            raise _Unsupported(
                f"{found[chain[-1]]}: has {len(sources)} inputs; only a chain of layers can be read. Or: {_ALTERNATIVE}"
            )
        chain.append(sources[0])
    yield from (found[name] for name in reversed(chain))


def _with_cell(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry of a layer RNN around a cell as that of the cell's own layer, whose weights lie in the same place."""
    cell = entry["config"].get("cell")
    kind = cell["class_name"].removesuffix("Cell") if isinstance(cell, dict) else ""
    if entry["class_name"] != "RNN" or kind not in _RECURRENT:
        return entry
    config = {**cell["config"], **{name: value for name, value in entry["config"].items() if name != "cell"}}
    return {**entry, "class_name": kind, "config": config}


def _sources(value: Any) -> Iterator[str]:
    """Names of the layers whose outputs are arguments in this value of inbound_nodes."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            yield value["config"]["keras_history"][0]
            return
        value = list(value.values())
    if isinstance(value, list):
        for below in value:
            yield from _sources(below)


def _group_names(described: list[Any]) -> list[str]:
    """The layers' groups of weights, which Keras names after the class and numbers in order: lstm, lstm_1."""
    names, seen = [], dict[str, int]()
    for entry in described:
        name = _snake_case(entry["class_name"])
        names.append(name if name not in seen else f"{name}_{seen[name]}")
        seen[name] = seen.get(name, 0) + 1
    return names


def _snake_case(name: str) -> str:
    """A class name as Keras converts it.

    >>> [_snake_case(name) for name in ("LSTM", "SimpleRNN", "BatchNormalization", "InputLayer", "ReLU")]
    ['lstm', 'simple_rnn', 'batch_normalization', 'input_layer', 're_lu']
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


@dataclass(slots=True)
class _Budget:
    """What may still be read of a file, over all its layers.

    An array that was never written takes no room in the file, and a group can be linked any number of times: a file
    of a kilobyte could take gigabytes of memory, or hours.
    """

    nodes: int  # groups and arrays
    size: int  # bytes of arrays

    def visit(self, path: str) -> None:
        """Counts a group or an array. Raises _Unsupported over the limit."""
        self.nodes -= 1
        if self.nodes < 0:
            raise _Unsupported(f"{quote_untrusted(path)}: more than {MAX_WEIGHTS_NODES} groups and arrays of weights")

    def read(self, path: str, size: int) -> None:
        """Counts the bytes of an array. Raises _Unsupported over the limit."""
        self.size -= size
        if self.size < 0:
            raise _Unsupported(
                f"{quote_untrusted(path)}: the weights up to here are larger than the file, so some were never written,"
                " are compressed or are stored twice; save it again with Keras 3"
            )


def _weights(file: Any, group: str, budget: _Budget) -> dict[str, Array]:
    """Every array below a group, by its path. Raises _Unsupported for links, which HDF5 can hold to other files."""
    import h5py  # noqa: PLC0415

    found: dict[str, Array] = {}

    def collect(node: Any, path: str, depth: int) -> None:
        if depth > 8:
            raise _Unsupported(f"{quote_untrusted(path)}: groups are nested too deeply")
        for name in node:
            budget.visit(f"{path}/{name}")
            if not isinstance(node.get(name, getlink=True), h5py.HardLink):
                raise _Unsupported(f"{quote_untrusted(f'{path}/{name}')}: a link; the weights must be in the file")
            child, below = node[name], f"{path}/{name}"
            if isinstance(child, h5py.Group):
                collect(child, below, depth + 1)
            elif child.external or child.is_virtual:
                raise _Unsupported(
                    f"{quote_untrusted(below)}: its data is in another file; the weights must be in the file"
                )
            elif child.dtype.kind in "fiu":
                budget.read(below, child.size * child.dtype.itemsize)
                found[below.removeprefix(f"{group}/")] = np.asarray(child[()], np.float32)

    if group in file:
        collect(file[group], group, 0)
    return found


def _check_dtype(layer: Layer) -> None:
    """Raises _Unsupported for a layer that does not compute in float32."""
    policy = layer.config.get("dtype")
    name = policy["config"].get("name") if isinstance(policy, dict) else policy
    if name not in {None, "float32"}:
        raise _Unsupported(f"{layer}: computes in {quote_untrusted(str(name))}; only float32 is supported")


def _add(graph: SequenceGraph, layer: Layer) -> None:
    """Appends the layer to the graph. Raises _Unsupported."""
    kind, config = layer.kind, layer.config
    if kind in _RECURRENT:
        _add_recurrent(graph, layer)
    elif kind == "TimeDistributed":
        inner = config["layer"]
        below = {path.removeprefix("layer/"): value for path, value in layer.weights.items()}
        if inner["class_name"] in {*_RECURRENT, "TimeDistributed"}:
            raise _Unsupported(f"{layer}: {quote_untrusted(inner['class_name'])} inside is not supported")
        _add(graph, Layer(inner["class_name"], layer.name, inner["config"], below))
    elif kind == "Dense":
        kernel, bias = _exactly(layer, "vars", 2)
        assert kernel is not None
        graph.dense(kernel, bias)
        _activate(graph, layer, config["activation"])
    elif kind in _NO_OPERATION:
        return  # at inference these layers do nothing
    elif kind in _SIMPLE:
        _SIMPLE[kind](graph, layer)
    else:
        why = _NEED_SEQUENCE.get(kind, "is not supported")
        if any(sign in kind for sign in ("Pooling", "Conv", "Attention")):
            why = "combines several events"
        raise _Unsupported(f"{layer}: {why}; it cannot become a step. {_ALTERNATIVE}")


def _add_recurrent(graph: SequenceGraph, layer: Layer) -> None:
    config, kind = layer.config, layer.kind
    if config.get("go_backwards"):
        raise _Unsupported(f"{layer}: go_backwards; a stream cannot be read from its end")
    if config.get("return_state"):
        raise _Unsupported(f"{layer}: return_state; only a chain of layers can be read. Or: {_ALTERNATIVE}")
    if not graph.sequence:
        raise _Unsupported(f"{layer}: the layers before it have removed the time axis")
    kernel, recurrent, bias = _exactly(layer, "cell/vars", 3)
    assert kernel is not None
    assert recurrent is not None
    names = ["activation"] if kind == "SimpleRNN" else ["recurrent_activation", "activation"]
    chosen = [config[name] for name in names]
    for name in chosen:
        if name not in RECURRENT_ACTIVATIONS:
            raise _Unsupported(f"{layer}: activation {quote_untrusted(str(name))} is not supported")
    hidden = recurrent.shape[0]
    gates = {"LSTM": [0, 3, 1, 2], "GRU": [0, 1, 2], "SimpleRNN": [0]}[kind]  # i, f, c, o -> i, o, f, c

    def ordered(values: Array) -> Array:
        """[..., gates * H] as [gates * H, ...] in ONNX's order of gates."""
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
    """The layer's weights in order; the last one, the bias, is None where the layer has none.

    Raises _Unsupported for another number of weights (LoRA, quantisation): the layer then computes something else.
    """
    names = [f"{group}/{index}" for index in range(count - (not layer.config["use_bias"]))]
    found = {name for name in layer.weights if name.startswith(f"{group}/")}
    if found != set(names):
        raise _Unsupported(f"{layer}: has {len(found)} weights, should have {len(names)}")
    return [layer.weights.get(f"{group}/{index}") for index in range(count)]


def _activate(graph: SequenceGraph, layer: Layer, name: Any) -> None:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        shown = name.get("class_name") if isinstance(name, dict) else name
        raise _Unsupported(f"{layer}: activation {quote_untrusted(str(shown))} is not supported")
    graph.activate(name)


def _batch_norm(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config["axis"] not in {-1, 2} and config["axis"] != [2]:
        raise _Unsupported(f"{layer}: over axis {printable(config['axis'])}, not over features")
    values = [layer.weights[f"vars/{index}"] for index in range(2 + config["scale"] + config["center"])]
    gamma = values.pop(0) if config["scale"] else np.ones_like(values[-1])
    beta = values.pop(0) if config["center"] else np.zeros_like(gamma)
    mean, variance = values
    factor = gamma / np.sqrt(variance + np.float32(config["epsilon"]))
    graph.affine(factor, beta - mean * factor)


def _layer_norm(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config["axis"] not in (-1, [-1], [2], 2) or config.get("rms_scaling"):
        raise _Unsupported(f"{layer}: over axis {printable(config['axis'])}, not over features")
    values = [layer.weights[f"vars/{index}"] for index in range(config["scale"] + config["center"])]
    gamma = values.pop(0) if config["scale"] else np.ones(graph.width, np.float32)
    graph.layer_norm(gamma, values.pop(0) if config["center"] else np.zeros_like(gamma), float(config["epsilon"]))


def _normalization(graph: SequenceGraph, layer: Layer) -> None:
    config = layer.config
    if config.get("axis") not in (-1, [-1], [2], 2) or config.get("invert"):
        raise _Unsupported(f"{layer}: over axis {printable(config.get('axis'))}, not over features")
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
        raise _Unsupported(f"{layer}: max_value, threshold and negative_slope are not supported")
    graph.activate("relu")


def _softmax(graph: SequenceGraph, layer: Layer) -> None:
    if layer.config.get("axis", -1) not in (-1, [-1]):
        raise _Unsupported(f"{layer}: over axis {printable(layer.config['axis'])}, not over the classes")
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
