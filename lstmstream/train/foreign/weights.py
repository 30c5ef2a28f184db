"""Weights without a graph (a state dict of torch, or safetensors) and a YAML that says what they are: a step model.

    cell: lstm                    # or gru
    layers: "encoder.lstm."       # prefix of torch.nn.LSTM's weights: encoder.lstm.weight_ih_l0, ...
    head: {linear: "head.", activation: sigmoid}      # prefix of torch.nn.Linear's; sigmoid, softmax or none
    features: [amount, {name: distance_km, log: true, centre: 1.2, scale: 0.8}]
    ignore: ["auxiliary."]        # prefixes of weights that are knowingly left out

Nothing is unpickled (torch's weights_only), and weights that nobody has described are refused: a model that has more
than its description says would be a different model. Proved against torch.nn itself.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError

from lstmstream.card import Card
from lstmstream.config.explain import faults
from lstmstream.config.load import read_yaml
from lstmstream.config.schema import options_of
from lstmstream.config.values import Section
from lstmstream.errors import CannotServe
from lstmstream.onnx_wire import quote
from lstmstream.train.export import OUTPUTS, Encoder, Gru, Head, Lstm, Network, Number, build, gru_layers, lstm_layers
from lstmstream.train.foreign.graph import printable
from lstmstream.train.foreign.proof import LENGTHS, TOLERANCE, Walker, difference, largest

Array = NDArray[np.float32]
MAX_FILE_BYTES = 2**31 - 1
_KEYS = 6
_NO_LIMIT = 1e29  # of scaled values: the original has none
_NESTED = ("state_dict", "model_state_dict", "model")  # where training loops put it


def _named(value: object) -> object:
    return [{"name": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


class NumberField(Section):
    """One of `features`: raw, or (v - centre) / scale."""

    name: str = Field(min_length=1, description="The event's field.")
    log: bool = Field(default=False, description="Take sign(v) log(1 + |v|) first.")
    centre: float = Field(0.0, description="Taken from the value.")
    scale: float = Field(1.0, gt=1e-30, lt=1e30, description="What the value is divided by.")


class HeadLayout(Section):
    """`head`: the linear layer behind the last recurrent one."""

    linear: str = Field(description="Prefix of its weights: with `head.` there are head.weight and head.bias.")
    activation: Literal["sigmoid", "softmax", "none"] = Field(description="What follows it.")


class WeightsLayout(Section):
    """What the weights of a file are."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="Kind of the recurrent layers.")
    layers: str = Field(description="Prefix of their weights: with `lstm.` there are lstm.weight_ih_l0 and so on.")
    head: HeadLayout = Field(description="The linear layer behind them.")
    features: Annotated[list[NumberField], BeforeValidator(_named)] = Field(
        min_length=1, description="The event's fields, in the order of the inputs."
    )
    ignore: list[str] = Field([], description="Prefixes of weights that are knowingly left out.")


_OPTIONS = {option.path: option for option in options_of(WeightsLayout)}


@dataclass(frozen=True, slots=True)
class Read:
    """A step model from weights, proved and not yet written."""

    network: Network
    content: bytes
    sha256: str  # of the weights' file
    facts: dict[str, Any]  # for the card
    report: list[str]

    def card(
        self, name: str, version: str, task: str | None, threshold: float | None, training: dict[str, Any]
    ) -> Card:
        """Its card; without `task` a head without activation makes it a forecast."""
        head = self.network.head
        kind = task or ("forecast" if isinstance(head, Head) and head.activation == "none" else "classify")
        return Card(
            name=name,
            version=version,
            task=kind,  # type: ignore[arg-type]  # write_model refuses any other
            features=self.network.features,
            state=self.network.state,
            outputs=OUTPUTS,
            threshold=threshold,
            training=training,
        )


def read_weights(file: Path, layout: Path, names: tuple[str, ...] | None) -> Read:
    """Reads both files, builds the step and compares it with torch. `names`, if given, replace the layout's.

    Raises CannotServe.
    """
    described = _layout(layout)
    content = _content(file)
    tensors = _tensors(file, content)
    fields = described.features
    if names is not None and len(names) != len(fields):
        raise CannotServe(f"import {file}: --features names {len(names)}, the layout has {len(fields)} features")
    try:
        network = _network(tensors, described, names or tuple(field.name for field in fields))
        model = build(network)
    except (ValueError, KeyError) as error:
        raise CannotServe(f"import {file}: {str(error).strip(chr(39))}; mend {layout.name}") from error
    _refuse_undescribed(file, tensors, described, len(network.layers))
    gap = _against_torch(file, tensors, described, network, model)
    cells = [f"{described.cell.upper()}, {layer.hidden} hidden" for layer in network.layers]
    facts = {"cells": cells, "proof": {"lengths": list(LENGTHS), "largest_difference": gap, "tolerance": TOLERANCE}}
    lines = [f"  layer     {described.layers}: {cell}" for cell in cells]
    lines.append(f"  head      {described.head.linear}: {described.head.activation}")
    lines.append(
        f"  proof     against torch.nn.{described.cell.upper()} on {_KEYS} random sequences of"
        f" {' and '.join(map(str, LENGTHS))} events: largest difference {gap:.2g}; at most 1e-05 is accepted"
    )
    lines.append("  note      a missing number is fed as 0, after scaling")
    lines.append(
        "  warning   if this model was trained on windows of T events, it has never seen event T + 1 of a sequence"
    )
    return Read(network, model.SerializeToString(deterministic=True), hashlib.sha256(content).hexdigest(), facts, lines)


def _layout(path: Path) -> WeightsLayout:
    try:
        return WeightsLayout.model_validate(read_yaml(path))
    except ValidationError as error:
        raise CannotServe(*(f"{path}: {place}: {text}" for place, text in faults(error, _OPTIONS))) from None


def _content(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise CannotServe(f"import {file}: no such file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CannotServe(f"import {file}: more than {MAX_FILE_BYTES} bytes")
        return file.read_bytes()
    except OSError as error:
        raise CannotServe(f"import {file}: cannot be read ({error.strerror})") from error


def _tensors(file: Path, content: bytes) -> dict[str, Array]:
    """Every weight by its name, as float32. Raises CannotServe for whatever else is in the file."""
    import torch  # noqa: PLC0415 -- takes a second; other formats do not need it

    found = _loaded(file, content)
    for name, value in found.items():
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.is_quantized or value.is_complex():
            raise CannotServe(
                f"import {file}: {quote(name)} is no plain tensor (sparse, quantised, nested, complex or without"
                " data); save model.state_dict() of the float32 model"
            )
    _refuse_large(file, 4 * sum(value.numel() for value in found.values()))  # strides of 0 make much of a few bytes
    tensors = {}
    for name, value in found.items():
        try:
            tensors[name] = value.detach().to(torch.float32).contiguous().numpy()
        except Exception as error:  # torch raises many kinds
            raise CannotServe(
                f"import {file}: {quote(name)} cannot be read as float32 ({printable(error)}); save it as that"
            ) from error
        if not np.isfinite(tensors[name]).all():
            raise CannotServe(f"import {file}: {quote(name)} is not finite (NaN or infinity)")
    return tensors


def _loaded(file: Path, content: bytes) -> dict[str, Any]:
    """The state dict, its tensors as they are."""
    import torch  # noqa: PLC0415

    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load  # noqa: PLC0415

            found: Any = load(content)
        else:
            if zipfile.is_zipfile(io.BytesIO(content)):  # torch unpacks members without a limit
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    _refuse_large(file, sum(member.file_size for member in archive.infolist()))
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except CannotServe:
        raise
    except Exception as error:  # torch raises many kinds
        first = printable(str(error).strip().split("\n")[0].split(". ")[0])
        raise CannotServe(
            f"import {file}: holds more than weights, or is damaged ({first}); save model.state_dict() with torch.save"
        ) from error
    for key in _NESTED:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CannotServe(f"import {file}: is no state dict (names and tensors); save model.state_dict()")
    return {str(name): value for name, value in found.items()}


def _refuse_large(file: Path, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise CannotServe(
            f"import {file}: unpacked, its weights take {size} bytes, at most {MAX_FILE_BYTES} are accepted; save"
            " model.state_dict() alone"
        )


def _network(tensors: dict[str, Array], described: WeightsLayout, names: tuple[str, ...]) -> Network:
    """Raises ValueError and KeyError for weights that are not there or do not fit."""
    layers: tuple[Lstm | Gru, ...] = (lstm_layers if described.cell == "lstm" else gru_layers)(
        tensors, described.layers
    )
    prefix = described.head.linear
    if f"{prefix}weight" not in tensors:
        raise ValueError(f"head.linear {quote(prefix)}: there is no {quote(prefix + 'weight')}")
    weight = tensors[f"{prefix}weight"]
    bias = tensors.get(f"{prefix}bias", np.zeros(len(weight), np.float32))
    numbers = tuple(
        Number(name, field.centre, field.scale, field.log)
        for name, field in zip(names, described.features, strict=True)
    )
    inputs = layers[0].weight_ih.shape[1]
    if len(numbers) != inputs:
        raise ValueError(f"features: there are {len(numbers)}, the first layer takes {inputs}")
    return Network(Encoder(numbers, limit=_NO_LIMIT), layers, Head(weight, bias, described.head.activation))


def _refuse_undescribed(file: Path, tensors: dict[str, Array], described: WeightsLayout, layers: int) -> None:
    """Raises CannotServe for weights that no line of the layout speaks of."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    used = {f"{described.layers}{kind}_l{index}" for kind in kinds for index in range(layers)}
    used |= {f"{described.head.linear}{kind}" for kind in ("weight", "bias")}
    left = [name for name in tensors if name not in used and not name.startswith(tuple(described.ignore))]
    if left:
        raise CannotServe(
            f"import {file}: the layout does not speak of {', '.join(map(quote, left[:8]))}"
            f"{' and others' if left[8:] else ''}: a model with more in it than layers and head has to come as ONNX;"
            " or list their prefix under ignore, if they play no part"
        )


def _against_torch(
    file: Path, tensors: dict[str, Array], described: WeightsLayout, network: Network, model: Any
) -> float:
    """Largest difference between torch.nn on whole sequences and the step. Raises CannotServe where it is too large."""
    import torch  # noqa: PLC0415

    first = network.layers[0]
    has_bias = f"{described.layers}bias_ih_l0" in tensors
    sizes: dict[str, Any] = {"num_layers": len(network.layers), "batch_first": True, "bias": has_bias}
    if described.cell == "lstm" and first.width != first.hidden:
        sizes["proj_size"] = first.width
    kind = torch.nn.LSTM if described.cell == "lstm" else torch.nn.GRU
    layers = kind(first.weight_ih.shape[1], first.hidden, **sizes)
    mine = {name: torch.from_numpy(tensors[described.layers + name]) for name in layers.state_dict()}
    try:
        layers.load_state_dict(mine)
    except RuntimeError as error:
        raise CannotServe(f"import {file}: torch does not take these weights: {printable(error)}") from error
    head = network.head
    assert isinstance(head, Head)
    walker = Walker(model, np.array(network.state.initial, np.float32), str(file))
    generator = np.random.default_rng(20260105)
    widest = 0.0
    for length in LENGTHS:
        scaled = generator.standard_normal((_KEYS, length, len(described.features)))
        raw = np.stack([_unscaled(scaled[..., i], field) for i, field in enumerate(described.features)], axis=-1)
        inputs = np.stack([_scaled(raw[..., i], field) for i, field in enumerate(described.features)], axis=-1)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
            hidden, _ = layers(torch.from_numpy(inputs))
            logits = hidden @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
            last = {"sigmoid": torch.sigmoid, "softmax": lambda v: torch.softmax(v, -1), "none": lambda v: v}
            expected = last[head.activation](logits).numpy()
        given, _ = walker.walk(raw)
        widest = largest(widest, difference(given, expected))
    if not widest <= TOLERANCE:  # NaN too
        raise CannotServe(f"import {file}: the step differs from torch by up to {widest:.3g}")
    return widest


def _scaled(raw: Array, field: NumberField) -> Array:
    value = np.sign(raw) * np.log1p(np.abs(raw)) if field.log else raw
    return np.asarray((value - np.float32(field.centre)) / np.float32(field.scale), np.float32)


def _unscaled(scaled: NDArray[Any], field: NumberField) -> Array:
    value = scaled * field.scale + field.centre
    return np.asarray(np.sign(value) * np.expm1(np.minimum(np.abs(value), 20)) if field.log else value, np.float32)
