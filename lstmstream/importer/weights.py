"""Imports weights without a graph: a state dict of torch or a .safetensors file, and a YAML that describes the model.

    cell: lstm                    # or gru
    layers: "encoder.lstm."       # prefix of torch.nn.LSTM's weights: encoder.lstm.weight_ih_l0, ...
    head: {linear: "head.", activation: sigmoid}      # prefix of torch.nn.Linear's; sigmoid, softmax or none
    features: [amount, {name: distance_km, log: true, centre: 1.2, scale: 0.8}]
    ignore: ["auxiliary."]        # prefixes of weights that are left out on purpose

Weights that the YAML does not describe are an error: with more weights it would be another model. The step is compared
with the equations of torch.nn for what the YAML describes. Whether that is the original cannot be seen in weights: a
layer without any (ReLU) leaves no trace. Examples of the original show it (examples.py). Only .pt files need torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationError

from lstmstream.config.diagnostics import describe_errors
from lstmstream.config.options import options_of
from lstmstream.config.types import Section
from lstmstream.config.yaml_file import read_yaml
from lstmstream.errors import CannotServe
from lstmstream.importer.equivalence import LENGTHS, TOLERANCE, StepRunner, difference, largest
from lstmstream.importer.torch_reference import activate, recurrent_layers
from lstmstream.importer.weight_files import Array, read_content, read_tensors
from lstmstream.model.card import Card
from lstmstream.model.onnx_proto import quote_untrusted
from lstmstream.train.export import (
    OUTPUTS,
    DenseHead,
    FeatureEncoder,
    Gru,
    Lstm,
    NetworkSpec,
    Number,
    build,
    gru_layers,
    lstm_layers,
)

UNSEEN_IN_WEIGHTS = [
    "  warning   weights do not show layers that have none (ReLU, pooling), activations or the scaling of inputs: this",
    "            check is of the layout, not of the original. --examples FILE compares with outputs of the original",
]
_KEYS = 6
_NO_LIMIT = 1e29  # of scaled values: torch clips nothing


def named_fields(value: object) -> object:
    """`amount` is short for `{name: amount}`."""
    return [{"name": one} if isinstance(one, str) else one for one in value] if isinstance(value, list) else value


class NumberField(Section):
    """One of `features`: raw, or (v - centre) / scale."""

    name: str = Field(min_length=1, description="The event's field.")
    log: bool = Field(default=False, description="Take sign(v) log(1 + |v|) first.")
    centre: float = Field(0.0, description="Subtracted from the value.")
    scale: float = Field(1.0, gt=1e-30, lt=1e30, description="What the value is divided by.")


class HeadLayout(Section):
    """`head`: the linear layer after the last recurrent one."""

    linear: str = Field(description="Prefix of its weights: with `head.` there are head.weight and head.bias.")
    activation: Literal["sigmoid", "softmax", "none"] = Field(description="The activation after it.")


class WeightsLayout(Section):
    """Describes the weights of a file."""

    cell: Literal["lstm", "gru"] = Field("lstm", description="Kind of the recurrent layers.")
    layers: str = Field(description="Prefix of their weights: with `lstm.` there are lstm.weight_ih_l0 and so on.")
    head: HeadLayout = Field(description="The linear layer after them.")
    features: Annotated[list[NumberField], BeforeValidator(named_fields)] = Field(
        min_length=1, description="The event's fields, in the order of the inputs."
    )
    ignore: list[str] = Field([], description="Prefixes of weights that are left out on purpose.")


_OPTIONS = options_of(WeightsLayout)


@dataclass(frozen=True, slots=True)
class ImportedWeights:
    """A step model made of weights, checked and not yet written."""

    network: NetworkSpec
    content: bytes
    sha256: str  # of the weights' file
    facts: dict[str, Any]  # for the card, JSON values
    report: list[str]

    def card(
        self, name: str, version: str, task: str | None, threshold: float | None, training: dict[str, Any]
    ) -> Card:
        """The model's card; without `task` it is a forecast if the head has no activation, else a classification."""
        head = self.network.head
        kind = task or ("forecast" if isinstance(head, DenseHead) and head.activation == "none" else "classify")
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


def read_weights(file: Path, layout: Path, names: tuple[str, ...] | None) -> ImportedWeights:
    """Reads both files, builds the step and compares it with torch's equations. `names` replace the layout's.

    Raises CannotServe.
    """
    described = _layout(layout)
    content = read_content(file)
    tensors = read_tensors(file, content)
    fields = described.features
    if names is not None and len(names) != len(fields):
        raise CannotServe(
            f"import {file}: --features has {len(names)} names, but the layout has {len(fields)} features"
        )
    try:
        network = _network(tensors, described, names or tuple(field.name for field in fields))
        model = build(network)
    except (ValueError, KeyError) as error:
        hint = _prefixes(tensors, described)
        raise CannotServe(f"import {file}: {str(error).strip(chr(39))}; {hint}fix {layout.name}") from error
    _check_all_described(file, tensors, described, len(network.layers))
    gap = _check_against_torch(file, tensors, described, network, model)
    cells = [f"{described.cell.upper()}, {layer.hidden} hidden" for layer in network.layers]
    equivalence = {"lengths": list(LENGTHS), "largest_difference": gap, "tolerance": TOLERANCE}
    facts = {"cells": cells, "equivalence": equivalence}
    lines = [f"  layer     {described.layers}: {cell}" for cell in cells]
    lines.append(f"  head      {described.head.linear}: {described.head.activation}")
    lines.append(
        f"  check     against the equations of torch.nn.{described.cell.upper()} on {_KEYS} random sequences of"
        f" {' and '.join(map(str, LENGTHS))} events: largest difference {gap:.2g}; at most {TOLERANCE:.0e} is accepted"
    )
    lines.append("  note      a missing number is fed as 0, after scaling")
    lines.append(
        "  warning   if this model was trained on windows of T events, it has never seen event T + 1 of a sequence"
    )
    digest = hashlib.sha256(content).hexdigest()
    return ImportedWeights(network, model.SerializeToString(deterministic=True), digest, facts, lines)


def _layout(path: Path) -> WeightsLayout:
    """The description in the YAML file. Raises CannotServe with all that is wrong in it."""
    try:
        return WeightsLayout.model_validate(read_yaml(path))
    except ValidationError as error:
        raise CannotServe(*(f"{path}: {place}: {text}" for place, text in describe_errors(error, _OPTIONS))) from None


def _network(tensors: dict[str, Array], described: WeightsLayout, names: tuple[str, ...]) -> NetworkSpec:
    """The network of these weights. Raises ValueError and KeyError for weights that are missing or do not fit."""
    layers: tuple[Lstm | Gru, ...] = (lstm_layers if described.cell == "lstm" else gru_layers)(
        tensors, described.layers
    )
    prefix = described.head.linear
    if f"{prefix}weight" not in tensors:
        raise ValueError(f"head.linear {quote_untrusted(prefix)}: there is no {quote_untrusted(prefix + 'weight')}")
    weight = tensors[f"{prefix}weight"]
    bias = tensors.get(f"{prefix}bias", np.zeros(len(weight), np.float32))
    numbers = tuple(
        Number(name, field.centre, field.scale, field.log)
        for name, field in zip(names, described.features, strict=True)
    )
    inputs = layers[0].weight_ih.shape[1]
    if len(numbers) != inputs:
        raise ValueError(f"features: there are {len(numbers)}, but the first layer takes {inputs}")
    return NetworkSpec(
        FeatureEncoder(numbers, limit=_NO_LIMIT), layers, DenseHead(weight, bias, described.head.activation)
    )


def _prefixes(tensors: dict[str, Array], described: WeightsLayout) -> str:
    """What the file has where the layout names a prefix that it does not have, such as `module.lstm.` for `lstm.`."""
    first, texts = "weight_ih_l0", []
    recurrent = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    if described.layers not in recurrent and recurrent:
        texts.append(f"layers: {' or '.join(map(quote_untrusted, recurrent[:4]))}")
    linear = [
        name.removesuffix("weight") for name, value in tensors.items() if name.endswith("weight") and value.ndim == 2
    ]
    if described.head.linear not in linear and linear:
        texts.append(f"head.linear: {' or '.join(map(quote_untrusted, linear[:4]))}")
    return f"the file has {', '.join(texts)}; " if texts else ""


def _check_all_described(file: Path, tensors: dict[str, Array], described: WeightsLayout, layers: int) -> None:
    """Raises CannotServe for weights that the layout does not describe."""
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    used = {f"{described.layers}{kind}_l{index}" for kind in kinds for index in range(layers)}
    used |= {f"{described.head.linear}{kind}" for kind in ("weight", "bias")}
    left = [name for name in tensors if name not in used and not name.startswith(tuple(described.ignore))]
    if left:
        raise CannotServe(
            f"import {file}: the layout does not describe {', '.join(map(quote_untrusted, left[:8]))}"
            f"{' and others' if left[8:] else ''}: import a model with more than layers and a head as ONNX, or list"
            " their prefix under ignore if the output does not depend on them"
        )


def _check_against_torch(
    file: Path, tensors: dict[str, Array], described: WeightsLayout, network: NetworkSpec, model: Any
) -> float:
    """The largest difference between torch's equations and the step on random sequences.

    Raises CannotServe where it is too large.
    """
    head = network.head
    assert isinstance(head, DenseHead)
    runner = StepRunner(model, np.array(network.state.initial, np.float32), str(file))
    generator = np.random.default_rng(20260105)
    widest = 0.0
    for length in LENGTHS:
        scaled = generator.standard_normal((_KEYS, length, len(described.features)))
        raw = np.stack([_unscaled(scaled[..., i], field) for i, field in enumerate(described.features)], axis=-1)
        inputs = np.stack([_scaled(raw[..., i], field) for i, field in enumerate(described.features)], axis=-1)
        layers = len(network.layers)
        hidden = recurrent_layers(described.cell, tensors, described.layers, layers, inputs.astype(np.float64))
        logits = hidden @ head.weight.T.astype(np.float64) + head.bias
        predictions, _ = runner.run(raw)
        widest = largest(widest, difference(predictions, activate(head.activation, logits)))
    if not widest <= TOLERANCE:  # also true for NaN
        raise CannotServe(f"import {file}: the step differs from torch's equations by up to {widest:.3g}")
    return widest


def _scaled(raw: Array, field: NumberField) -> Array:
    """The layer's input for a raw feature, in float32."""
    value = np.sign(raw) * np.log1p(np.abs(raw)) if field.log else raw
    return np.asarray((value - np.float32(field.centre)) / np.float32(field.scale), np.float32)


def _unscaled(scaled: NDArray[Any], field: NumberField) -> Array:
    """The raw feature for a scaled value, as float32."""
    value = scaled * field.scale + field.centre
    return np.asarray(np.sign(value) * np.expm1(np.minimum(np.abs(value), 20)) if field.log else value, np.float32)
