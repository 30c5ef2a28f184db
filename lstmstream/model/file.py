"""A model file: an ONNX step graph and the card that says how to feed it. The only bridge from training to serving.

Checks that a file holds what a model needs, and reports everything that is missing or wrong. It runs nothing, so it
needs neither onnxruntime nor the `onnx` package, and it does not know how a model is trained.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from lstmstream.errors import CannotServe
from lstmstream.model import onnx_proto
from lstmstream.model.card import FORMAT, Card, is_finite
from lstmstream.model.channels import has_channels, with_channels
from lstmstream.model.onnx_proto import FLOAT, INT64, quote_untrusted
from lstmstream.whole_file import write_whole

CARD_KEY = "lstmstream"  # of the file's metadata_props
MAX_BYTES = 2**31 - 1  # what protobuf can read; a caller may set less
BUILTIN = "builtin:"
_BUILTIN_DIR = Path(__file__).parent.parent / "models"
_INPUTS = ("x", "categories", "timestamp", "elapsed", "state")
_OUTPUTS = ("state_out", "score", "prediction")
_MAX_LISTED = 20  # problems listed for one file; a broken one can have thousands


@dataclass(frozen=True, slots=True)
class Model:
    """A model file that passed every check that does not run the model."""

    card: Card
    graph_inputs: frozenset[str]  # which of x, categories, timestamp, elapsed, state the graph has
    outputs: frozenset[str]
    content: bytes  # for onnxruntime: the parts of the file that were checked, and nothing else
    path: Path  # absolute
    sha256: str  # of the file


def load_model(
    reference: str | Path, *, base: Path | None = None, max_bytes: int = MAX_BYTES, sha256: str | None = None
) -> Model:
    """Read and check the model `builtin:NAME` or the file at a path, relative to `base` (default: working directory).

    `builtin:NAME:FIELD,FIELD` names the fields of a model that takes any (see channels.py). `sha256`: that of the only
    file that is accepted, in hexadecimal digits.

    Raises CannotServe, and nothing else, with one line for each fault of the file.
    """
    path, fields = _resolve(str(reference), base)
    raw = _read_file(path, max_bytes)
    digest = hashlib.sha256(raw).hexdigest()
    if sha256 is not None and digest != sha256:
        raise CannotServe(
            f"model {path}: its SHA-256 is {digest}, and model_sha256 is {sha256}; set it if you trust the file"
        )
    try:
        proto = onnx_proto.parse(raw)
        card = _read_card(proto)
        if fields is not None:
            card = with_channels(proto, card, fields)
            card = replace(card, fingerprint=fingerprint(proto, card))
            _check(proto, card)
        elif str(reference).startswith(BUILTIN) and has_channels(card):
            raise CannotServe(f"name the numbers that it is to watch: {reference}:FIELD or {reference}:FIELD,FIELD")
        content = _attach_card(proto, card)
    except ValueError as error:
        raise CannotServe(f"model {path}: {error}; give a file written by lstmstream train or import") from error
    except CannotServe as error:
        raise CannotServe(*_with_path(path, error.problems)) from error
    return Model(
        card=card,
        graph_inputs=frozenset(value.name for value in proto.graph.input),
        outputs=frozenset(value.name for value in proto.graph.output),
        content=content,
        path=path,
        sha256=digest,
    )


def write_model(path: str | Path, content: bytes, card: Card) -> Card:
    """Write the ONNX model `content` with its card to `path`, atomically; equal input gives equal bytes.

    Doc strings, producer names and other metadata are dropped. Returns the card with its fingerprint. Raises
    CannotServe for whatever `load_model` would refuse, and OSError, which names the path, if the file cannot be
    written.
    """
    path = Path(path)
    try:
        proto = onnx_proto.parse(content)
        onnx_proto.drop_unused_domains(proto)
        if card.threshold is not None and not is_finite(card.threshold):
            raise ValueError("card.threshold: must be a finite number or null")
        card = Card.from_json(card.to_json())  # as load_model will see it
        _check(proto, card)
        card = replace(card, fingerprint=fingerprint(proto, card))
        content = _attach_card(proto, card)
    except (ValueError, TypeError) as error:  # not an ONNX model, or a card that JSON cannot hold
        raise CannotServe(f"model {path}: {error}") from error
    except CannotServe as error:
        raise CannotServe(*_with_path(path, error.problems)) from error
    write_whole(path, content)
    return card


def fingerprint(proto: onnx_proto.Proto, card: Card) -> str:
    """Return what identifies the model that a state belongs to: 32 hexadecimal digits.

    It covers operators, graph, weights, features and state, and nothing else.
    """
    values = card.to_dict()
    meaning = {"features": values["features"], "size": card.state.size, "parts": values["state"]["parts"]}
    pieces = [
        b"lstmstream %d opset %d" % (FORMAT, onnx_proto.opset(proto)),
        proto.graph.SerializeToString(deterministic=True),
        orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS),  # no floats: their text may change with the library
        np.array(card.state.initial, "<f4").tobytes(),
    ]
    digest = hashlib.sha256()
    for piece in pieces:  # each by its own digest, so that no piece can run into the next
        digest.update(hashlib.sha256(piece).digest())
    return digest.hexdigest()[:32]


def inspect_json(model: Model) -> dict[str, Any]:
    """Return the card with the file's absolute `path` and `sha256`, as JSON values."""
    return {**model.card.to_dict(), "path": str(model.path), "sha256": model.sha256}


def describe(model: Model) -> list[str]:
    """Return the card as lines of text."""
    card = model.card
    lines = [
        f"{card.name} version {card.version}: {card.task}",
        f"file         {model.path}",
        f"sha256       {model.sha256}",
        f"fingerprint  {card.fingerprint}",
        f"inputs       {', '.join(name for name in _INPUTS if name in model.graph_inputs)}",
        f"outputs      {', '.join(card.outputs)}",
        *([f"prediction   {', '.join(card.prediction_names)}"] if card.prediction_names else []),
        f"threshold    {'none' if card.threshold is None else card.threshold}",
        f"features     {len(card.features)}",
    ]
    for feature in card.features:
        size = ""
        if feature.vocabulary is not None:
            size = f", {len(feature.vocabulary)} known values"
        elif feature.buckets is not None:
            size = f", {feature.buckets} buckets"
        elif feature.size != 1:
            size = f", array of {feature.size}"
        lines.append(f"  {feature.name}: {feature.kind}{size}")
    lines.append(f"state        {card.state.size} values, {card.state.size * 4} bytes per key")
    lines += [f"  {part.name}: {list(part.shape)} at {part.offset}" for part in card.state.parts]
    for title, values in (("training", card.training), ("reference", card.reference)):
        if values:
            lines.append(title)
            lines += [f"  {key}: {_brief(value)}" for key, value in values.items()]
    return ["".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in lines]


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= 100 else text[:97] + "..."


def _resolve(reference: str, base: Path | None) -> tuple[Path, list[str] | None]:
    """The file, and the names of fields that were given with it."""
    if not reference.startswith(BUILTIN):
        return Path(os.path.abspath((base or Path()) / reference)), None  # noqa: PTH100 -- resolve() follows links
    name, named, fields = reference.removeprefix(BUILTIN).partition(":")
    path = _BUILTIN_DIR / f"{name}.onnx"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or not path.is_file():
        shipped = ", ".join(sorted(BUILTIN + file.stem for file in _BUILTIN_DIR.glob("*.onnx"))) or "none"
        raise CannotServe(
            f"model {quote_untrusted(reference)}: there is no such model in the package; use one of: {shipped}"
        )
    return path, [field.strip() for field in fields.split(",")] if named else None


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.exists():
            raise CannotServe(f"model {path}: does not exist; give the path of a model file, or builtin:NAME")
        if not path.is_file():  # a pipe would block, a device would never end
            raise CannotServe(f"model {path}: is not a regular file; give the path of a model file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise CannotServe(
                    f"model {path}: has {size} bytes, and at most {max_bytes} are accepted; use a smaller model"
                )
            content = file.read(size + 1)  # not max_bytes: read() allocates at once what it is asked for
    except (OSError, ValueError, MemoryError) as error:
        raise CannotServe(f"model {path}: cannot be read ({str(error) or type(error).__name__})") from error
    if len(content) != size:
        raise CannotServe(f"model {path}: changed while it was read; try again")
    return content


def _read_card(proto: onnx_proto.Proto) -> Card:
    """Return the card of the file, checked against graph and fingerprint. Raises CannotServe with each fault."""
    texts = [entry.value for entry in proto.metadata_props if entry.key == CARD_KEY]
    if len(texts) != 1:
        what = "has more than one lstmstream card" if texts else "is an ONNX file without an lstmstream card"
        raise CannotServe(f"{what}; write it with lstmstream train or lstmstream import")
    card = Card.from_json(texts[0])
    _check(proto, card)
    found = fingerprint(proto, card)
    if card.fingerprint != found:
        raise CannotServe(
            f"card.fingerprint: is {quote_untrusted(card.fingerprint)}, but graph and weights give '{found}': "
            "the file was changed after it was written; restore it or write it again"
        )
    return card


def _attach_card(proto: onnx_proto.Proto, card: Card) -> bytes:
    """Return the bytes of the model with this card as its only metadata."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=CARD_KEY, value=card.to_json())
    return onnx_proto.serialise(proto)


def _with_path(path: Path, problems: Iterable[str]) -> list[str]:
    lines = [f"model {path}: {problem}" for problem in problems]
    more = len(lines) - _MAX_LISTED
    return lines if more <= 0 else [*lines[:_MAX_LISTED], f"model {path}: and {more} more problems"]


def _check(proto: onnx_proto.Proto, card: Card) -> None:
    """Raise CannotServe with everything that makes this graph unsafe, or wrong for this card."""
    problems = onnx_proto.safety_problems(proto) + list(_graph_problems(proto.graph, card))
    if problems:
        raise CannotServe(*problems)


def _graph_problems(graph: onnx_proto.Proto, card: Card) -> Iterator[str]:
    numbers, categories, size = card.number_columns, len(card.categories), card.state.size
    expected: dict[str, tuple[int, int | None, str]] = {  # element type, columns (None: a vector), why
        "x": (FLOAT, numbers, f"{numbers} number features"),
        "categories": (INT64, categories, f"{categories} category features"),
        "timestamp": (INT64, None, ""),
        "elapsed": (FLOAT, None, ""),
        "state": (FLOAT, size, f"state.size {size}"),
        "state_out": (FLOAT, size, f"state.size {size}"),
        "score": (FLOAT, None, ""),
        "prediction": (FLOAT, -1, ""),  # any number of columns
    }
    for side, values, known in (("input", graph.input, _INPUTS), ("output", graph.output, _OUTPUTS)):
        seen = set()
        for value in values:
            if value.name in seen:
                yield f"graph {side} {quote_untrusted(value.name)}: is declared twice"
            elif value.name not in known:
                yield f"graph {side} {quote_untrusted(value.name)}: must be one of {', '.join(known)}"
            else:
                yield from _shape_problems(f"graph {side} {value.name}", value, *expected[value.name])
            seen.add(value.name)
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    initialised = {tensor.name for tensor in graph.initializer}
    yield from (
        f"graph input {name}: is also a weight; an input must not have a default" for name in inputs & initialised
    )
    required = {"state", *(["x"] if numbers else []), *(["categories"] if categories else [])}
    for name in sorted(required - inputs):
        yield f"graph input {name}: is missing, but the card has {expected[name][2]}"
    yield from (f"graph output {name}: is missing" for name in sorted({"state_out", "score"} - outputs))
    if sorted(card.outputs) != sorted(outputs):
        in_graph = ", ".join(map(quote_untrusted, sorted(outputs)))
        yield f"card.outputs: are {', '.join(map(quote_untrusted, card.outputs))}, but the graph has {in_graph}"
    yield from _names_problems(graph, card)


def _names_problems(graph: onnx_proto.Proto, card: Card) -> Iterator[str]:
    if not card.prediction_names:
        return
    declared = [onnx_proto.tensor_type(value) for value in graph.output if value.name == "prediction"]
    columns = declared[0][1][-1] if declared and declared[0] else 0
    names = len(card.prediction_names)
    if columns != names:
        yield f"card.prediction_names: are {names}, but the graph's prediction has {columns} columns"


def _shape_problems(where: str, value: onnx_proto.Proto, element: int, columns: int | None, why: str) -> Iterator[str]:
    expected = f"{onnx_proto.TYPE_NAMES[element]} [N]" if columns is None else (
        f"{onnx_proto.TYPE_NAMES[element]} [N, {columns if columns >= 0 else 'P'}]"
    )  # fmt: skip
    declared = onnx_proto.tensor_type(value)
    if declared is None:
        yield f"{where}: declares no tensor shape; it must be {expected}"
        return
    found_element, dims = declared
    fits = found_element == element and len(dims) == (1 if columns is None else 2) and isinstance(dims[0], str)
    if fits and columns is not None:
        fits = isinstance(dims[1], int) and (dims[1] == columns if columns >= 0 else dims[1] > 0)
    if not fits:
        name = onnx_proto.TYPE_NAMES.get(found_element, f"type {found_element}")
        shape = ", ".join(str(dim) if isinstance(dim, int) else quote_untrusted(dim)[1:-1] or "?" for dim in dims)
        because = f" (the card has {why})" if why else ""
        yield f"{where}: is {name} [{shape}], but must be {expected}{because}"
