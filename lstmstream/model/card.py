"""The model card: what serving needs to know about a model besides its graph, as JSON inside the model file.

Reads and writes the card, and reports every field that is wrong. It does not know the graph: `file` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import orjson

from lstmstream.errors import CannotServe
from lstmstream.model.onnx_proto import quote_untrusted

FORMAT = 1
WARM = "warm"  # the column of `prediction` that says whether the state has seen enough: 1 and more
MAX_ARRAY_SIZE = 65_536  # numbers of one field; each event has as many in memory
_TASKS = ("anomaly", "classify", "forecast")


@dataclass(frozen=True, slots=True)
class Feature:
    """One field of the event. A category has either a vocabulary or buckets, a number has neither."""

    name: str  # the event's field, dots for nested ones
    kind: Literal["number", "category"]
    vocabulary: tuple[str, ...] | None = None  # entry i is fed as i + 1
    buckets: int | None = None  # 1 + CRC-32 of the UTF-8 text modulo buckets
    size: int = 1  # columns of `x`; above 1 the field of a number is an array of so many

    def to_dict(self) -> dict[str, Any]:
        """Return the feature as JSON values, without the fields that do not apply."""
        values: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.vocabulary is not None:
            values["vocabulary"] = list(self.vocabulary)
        if self.buckets is not None:
            values["buckets"] = self.buckets
        if self.size != 1:
            values["size"] = self.size
        return values


@dataclass(frozen=True, slots=True)
class StatePart:
    """A named slice of the state row: `prod(shape)` values, starting at `offset`."""

    name: str
    offset: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """The state row of one key: its size S, its initial values and its parts."""

    size: int
    initial: tuple[float, ...]  # [S]
    parts: tuple[StatePart, ...]  # ordered, covering the row without gap or overlap


@dataclass(frozen=True, slots=True)
class Card:
    """What serving needs to know about a model besides its graph. `fingerprint` is set when the file is written."""

    name: str
    version: str
    task: Literal["anomaly", "classify", "forecast"]
    features: tuple[Feature, ...]
    state: StateSpec
    outputs: tuple[str, ...]
    threshold: float | None = None
    fingerprint: str = ""
    training: dict[str, Any] = field(default_factory=dict)  # data digest, metrics, versions, seed, date
    reference: dict[str, Any] = field(default_factory=dict)  # histograms of score and features, for drift
    prediction_names: tuple[str, ...] = ()  # of the columns of `prediction`, where the model names them
    format: ClassVar[int] = FORMAT

    @property
    def numbers(self) -> tuple[Feature, ...]:
        """The features in `x`, in order; each has `size` columns."""
        return tuple(feature for feature in self.features if feature.kind == "number")

    @property
    def number_columns(self) -> int:
        """The width F of `x`."""
        return sum(feature.size for feature in self.numbers)

    @property
    def categories(self) -> tuple[Feature, ...]:
        """The columns of `categories`, in order."""
        return tuple(feature for feature in self.features if feature.kind == "category")

    @property
    def warm_column(self) -> int | None:
        """The column of `prediction` that becomes `warm` of a record; None where the model has none."""
        return self.prediction_names.index(WARM) if WARM in self.prediction_names else None

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON values, in the order that people read it in."""
        parts = [{"name": part.name, "offset": part.offset, "shape": list(part.shape)} for part in self.state.parts]
        return {
            "format": FORMAT,
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "features": [feature.to_dict() for feature in self.features],
            "state": {"size": self.state.size, "initial": list(self.state.initial), "parts": parts},
            "outputs": list(self.outputs),
            **({"prediction_names": list(self.prediction_names)} if self.prediction_names else {}),
            "threshold": self.threshold,
            "fingerprint": self.fingerprint,
            "training": self.training,
            "reference": self.reference,
        }

    def to_json(self) -> str:
        """Return the card as JSON text, for `from_json`. Raises TypeError if `training` holds other values."""
        return orjson.dumps(self.to_dict()).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Card:
        """Parse a card. Raises CannotServe with one line for each field that is wrong."""
        try:
            value = orjson.loads(text)
        except (orjson.JSONDecodeError, RecursionError) as error:
            raise CannotServe(f"card: not JSON ({error})") from error
        problems: list[str] = []
        card = _parse_card(value, problems)
        if card is None or problems:
            raise CannotServe(*problems)
        return card


class _FieldReader:
    """Takes typed fields out of a JSON object. Reports each that is missing, wrong or unknown, with its path."""

    def __init__(self, value: object, where: str, problems: list[str]) -> None:
        self.where, self.problems = where, problems
        self.left: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            problems.append(f"{where}: must be an object")

    def wrong(self, key: str, problem: str) -> None:
        self.problems.append(f"{self.where}.{key}: {problem}")

    def string(self, key: str, *, empty: bool = False) -> str:
        value = self.left.pop(key, None)
        if not isinstance(value, str) or (not empty and not (value and value.isprintable())):
            self.wrong(key, "must be text, not empty and without control characters")
            return ""
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.left.pop(key, None)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.wrong(key, f"must be a whole number from {low} to {high}")
            return low
        return value

    def items(self, key: str) -> list[Any]:
        value = self.left.pop(key, None)
        if not isinstance(value, list):
            self.wrong(key, "must be a list")
            return []
        return value

    def object(self, key: str) -> dict[str, Any]:
        value = self.left.pop(key, None)
        if value is not None and not isinstance(value, dict):
            self.wrong(key, "must be an object")
        return value if isinstance(value, dict) else {}

    def reject_rest(self) -> None:
        for key in self.left:
            self.wrong(quote_untrusted(key)[1:-1], "unknown field")


def is_finite(value: object) -> bool:
    """Whether `value` is a number that float32 can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= float(np.finfo(np.float32).max)


def _parse_card(value: object, problems: list[str]) -> Card | None:
    if isinstance(value, dict) and "format" in value and value["format"] != FORMAT:
        found = value["format"] if isinstance(value["format"], int | float) else quote_untrusted(str(value["format"]))
        problems.append(
            f"card.format: format {found}, but this lstmstream reads {FORMAT}; use the one that wrote the file"
        )
        return None
    fields = _FieldReader(value, "card", problems)
    fields.integer("format", FORMAT, FORMAT)
    name, version, task = fields.string("name"), fields.string("version"), fields.string("task")
    if task and task not in _TASKS:
        fields.wrong("task", f"{quote_untrusted(task)} must be one of {', '.join(_TASKS)}")
    features = tuple(
        _parse_feature(item, f"card.features[{index}]", problems) for index, item in enumerate(fields.items("features"))
    )
    twice = {(feature.name, feature.kind) for feature in features}
    if len(twice) != len(features):
        fields.wrong("features", "a field is listed twice with the same kind")
    state = _parse_state(fields.left.pop("state", None), problems)
    outputs = tuple(fields.items("outputs"))
    if not all(isinstance(output, str) for output in outputs):
        fields.wrong("outputs", "must be a list of text values")
        outputs = ()
    names = tuple(fields.items("prediction_names")) if "prediction_names" in fields.left else ()
    if not all(isinstance(name, str) and name and name.isprintable() for name in names) or len(set(names)) < len(names):
        fields.wrong("prediction_names", "must be a list of different text values")
        names = ()
    threshold = fields.left.pop("threshold", None)
    if threshold is not None and not is_finite(threshold):
        fields.wrong("threshold", "must be a finite number or null")
        threshold = None
    card = Card(
        name=name,
        version=version,
        task=task,  # type: ignore[arg-type] # compared with _TASKS above
        features=features,
        state=state,
        outputs=outputs,
        threshold=None if threshold is None else float(threshold),
        fingerprint=fields.string("fingerprint", empty=True),
        training=fields.object("training"),
        reference=fields.object("reference"),
        prediction_names=names,
    )
    fields.reject_rest()
    return card


def _parse_feature(value: object, where: str, problems: list[str]) -> Feature:
    fields = _FieldReader(value, where, problems)
    name, kind = fields.string("name"), fields.string("kind")
    vocabulary: tuple[str, ...] | None = None
    buckets = None
    if fields.left.get("vocabulary") is not None:
        vocabulary = tuple(fields.items("vocabulary"))
        if not all(isinstance(entry, str) for entry in vocabulary):
            fields.wrong("vocabulary", "must be a list of text values")
            vocabulary = ()
        elif len(set(vocabulary)) != len(vocabulary):
            fields.wrong("vocabulary", "an entry is listed twice")
    if fields.left.get("buckets") is not None:
        buckets = fields.integer("buckets", 1, 2**31 - 1)
    size = 1 if fields.left.get("size") is None else fields.integer("size", 1, MAX_ARRAY_SIZE)
    fields.left = {key: entry for key, entry in fields.left.items() if entry is not None}
    if kind == "category":
        if (vocabulary is None) == (buckets is None):
            fields.wrong("kind", "a category needs either a vocabulary or buckets")
        if size != 1:
            fields.wrong("size", "only a number can be an array")
    elif kind == "number":
        if vocabulary is not None or buckets is not None:
            fields.wrong("kind", "a number has neither vocabulary nor buckets")
    elif kind:
        fields.wrong("kind", f"{quote_untrusted(kind)} must be number or category")
    fields.reject_rest()
    return Feature(name, kind, vocabulary, buckets, size)  # type: ignore[arg-type] # compared above


def _parse_state(value: object, problems: list[str]) -> StateSpec:
    fields = _FieldReader(value, "card.state", problems)
    size = fields.integer("size", 1, 2**31 - 1)
    initial = fields.items("initial")
    if not all(map(is_finite, initial)):
        fields.wrong("initial", "must contain finite numbers only")
        initial = []
    elif len(initial) != size:
        fields.wrong("initial", f"has {len(initial)} values, but state.size is {size}")
    parts = []
    for index, item in enumerate(fields.items("parts")):
        part = _FieldReader(item, f"card.state.parts[{index}]", problems)
        name, offset, shape = part.string("name"), part.integer("offset", 0, 2**31 - 1), part.items("shape")
        if not all(isinstance(dim, int) and not isinstance(dim, bool) and dim > 0 for dim in shape):
            part.wrong("shape", "must be a list of whole numbers above 0")
            shape = []
        part.reject_rest()
        parts.append(StatePart(name, offset, tuple(shape)))
    fields.reject_rest()
    if len({part.name for part in parts}) != len(parts):
        fields.wrong("parts", "a name is used twice")
    reached = 0
    for part_read in sorted(parts, key=lambda one: one.offset):
        if part_read.offset != reached:
            how = "overlaps" if part_read.offset < reached else "leaves a gap after"
            at = f"{quote_untrusted(part_read.name)} at {part_read.offset}"
            fields.wrong("parts", f"{at} {how} the previous part, which ends at {reached}")
        length = 1
        for dim in part_read.shape:
            length *= dim
        reached = max(reached, part_read.offset + length)
    if reached != size:
        fields.wrong("parts", f"the parts end at {reached}, but state.size is {size}")
    return StateSpec(size, tuple(map(float, initial)), tuple(parts))
