"""The `--features` of `lstmstream import`: names, arrays, and the scaling that the model expects to be done.

--features amount,distance                      names
--features "samples[576]"                       one field, a JSON array of 576 numbers
--features features.yaml                        features: [{name: amount, centre: 12.5, scale: 40}, ...]
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from pydantic import BeforeValidator, Field, ValidationError

from lstmstream.config.diagnostics import describe_errors
from lstmstream.config.options import options_of
from lstmstream.config.types import Section
from lstmstream.config.yaml_file import read_yaml
from lstmstream.errors import CannotServe
from lstmstream.importer.weights import NumberField, named_fields
from lstmstream.model.card import MAX_ARRAY_SIZE, Feature
from lstmstream.model.onnx_proto import quote_untrusted

_ARRAY = re.compile(r"(.+?)\s*(?:\[\s*([0-9]{1,9})\s*\]|:\s*([0-9]{1,9}))")


class FieldOptions(NumberField):
    """One of `features`."""

    size: int = Field(1, ge=1, le=MAX_ARRAY_SIZE, description="Above 1: a JSON array of that many numbers.")


class FeatureList(Section):
    """The features of a model, in the order of its input."""

    features: Annotated[list[FieldOptions], BeforeValidator(named_fields)] = Field(
        min_length=1, description="The event's fields, in the order of the inputs."
    )


_OPTIONS = options_of(FeatureList)


@dataclass(frozen=True, slots=True)
class FeatureNames:
    """The fields of the event that make an input, in its order."""

    fields: tuple[FieldOptions, ...]

    @property
    def columns(self) -> int:
        """F, the width of the input."""
        return sum(field.size for field in self.fields)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of the card."""
        return tuple(Feature(field.name, "number", size=field.size) for field in self.fields)

    @property
    def arrays(self) -> list[str]:
        """Names of the fields that are arrays."""
        return [field.name for field in self.fields if field.size != 1]

    def scaling(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Centre and scale of every column, [F] each."""
        repeated = [field for field in self.fields for _ in range(field.size)]
        return (
            np.array([field.centre for field in repeated], np.float32),
            np.array([field.scale for field in repeated], np.float32),
        )

    @property
    def scaled(self) -> bool:
        """Whether the raw values are scaled before the model sees them."""
        return any(field.log or field.centre != 0 or field.scale != 1 for field in self.fields)


def parse_features(text: str | None) -> FeatureNames | None:
    """The value of `--features`; None where it is not given. Raises CannotServe."""
    if text is None:
        return None
    stripped = text.strip()
    if stripped.startswith(("[{", "{")) or re.match(r"\[\s*[{A-Za-z_\"']", stripped):
        fields = _inline(stripped)
    elif stripped.endswith((".yaml", ".yml")) and "," not in stripped:
        fields = _from_file(Path(stripped))
    else:
        fields = tuple(_field(text, part.strip()) for part in text.split(","))
    if len({field.name for field in fields}) != len(fields):
        raise _wrong(text)
    return FeatureNames(fields)


def _wrong(text: str) -> CannotServe:
    return CannotServe(
        f"import: --features {text}: should be distinct names separated by commas; NAME[SIZE] is an array, and"
        " FILE.yaml a list with the scaling of each"
    )


def _field(text: str, part: str) -> FieldOptions:
    found = _ARRAY.fullmatch(part)
    name, size = (found[1].strip(), int(found[2] or found[3])) if found else (part, 1)
    if not name or (found is None and set("[]") & set(part)) or not 1 <= size <= MAX_ARRAY_SIZE:
        raise _wrong(text)
    return FieldOptions(name=name, size=size)


def _inline(text: str) -> tuple[FieldOptions, ...]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _wrong(text) from error
    return _validated({"features": value if isinstance(value, list) else [value]}, "import: --features")


def _from_file(path: Path) -> tuple[FieldOptions, ...]:
    return _validated(read_yaml(path), f"import: --features {path}")


def _validated(value: object, where: str) -> tuple[FieldOptions, ...]:
    try:
        return tuple(FeatureList.model_validate(value).features)
    except ValidationError as error:
        raise CannotServe(*(f"{where}: {place}: {text}" for place, text in describe_errors(error, _OPTIONS))) from None


def add_scaling(model: onnx.ModelProto, names: FeatureNames) -> None:
    """Makes a step graph take raw values: (v - centre) / scale of sign(v) log(1 + |v|) where `log`, in place."""
    if not names.scaled:
        return
    graph = model.graph
    centre, scale = names.scaling()
    last, nodes = "x", []

    def node(operator: str, inputs: list[str], name: str) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name=name))
        return name

    def weight(name: str, values: NDArray[np.float32]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    if any(field.log for field in names.fields):
        raise CannotServe("import: --features: log is supported for files of weights only (--layout)")
    last = node("Sub", [last, weight("feature centre", centre)], "x centred")
    last = node("Div", [last, weight("feature scale", scale)], "x scaled")
    rest = []
    for one in graph.node:
        copy = type(one)()
        copy.CopyFrom(one)
        for place, name in enumerate(copy.input):
            copy.input[place] = last if name == "x" else name
        rest.append(copy)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def default_features(columns: int) -> FeatureNames:
    """Names for a model without `--features`: x0, x1, ..."""
    return FeatureNames(tuple(FieldOptions(name=f"x{index}") for index in range(columns)))


def describe(names: FeatureNames) -> str:
    """The fields on one line, for the report."""
    shown = [quote_untrusted(one.name)[1:-1] + (f"[{one.size}]" if one.size != 1 else "") for one in names.fields]
    return ", ".join(shown if len(shown) <= 40 else [*shown[:40], f"and {len(shown) - 40} more"])
