"""A model file: an ONNX step graph and the card that says how to feed it. The only bridge from training to serving.

Knows what a file must hold and refuses, by name, whatever does not. It runs nothing, so it needs neither onnxruntime
nor the `onnx` package, and it does not know how a model is trained.
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

from lstmstream import onnx_wire
from lstmstream.card import FORMAT, Card, Feature, StatePart, StateSpec, is_finite
from lstmstream.errors import CannotServe
from lstmstream.onnx_wire import FLOAT, INT64, quote, with_all_outputs

__all__ = [
    "CARD_KEY", "FORMAT", "MAX_BYTES", "Card", "Feature", "Model", "StatePart", "StateSpec",
    "describe", "fingerprint", "inspect_json", "load_model", "with_all_outputs", "write_model",
]  # fmt: skip

CARD_KEY = "lstmstream"  # of the file's metadata_props
MAX_BYTES = 2**31 - 1  # what protobuf can read; a caller may set less
BUILTIN = "builtin:"
_BUILTIN_DIR = Path(__file__).parent / "models"
_INPUTS = ("x", "categories", "timestamp", "elapsed", "state")
_OUTPUTS = ("state_out", "score", "prediction")
_SHOWN = 20  # problems of one file; a broken one can have thousands


@dataclass(frozen=True, slots=True)
class Model:
    """A model file that passed every check that needs no run."""

    card: Card
    graph_inputs: frozenset[str]  # those of x, categories, timestamp, elapsed, state that the graph has
    outputs: frozenset[str]
    content: bytes  # for onnxruntime: the parts of the file that were checked, and nothing else
    path: Path  # absolute
    sha256: str  # of the file


def load_model(reference: str | Path, *, base: Path | None = None, max_bytes: int = MAX_BYTES) -> Model:
    """Reads `builtin:NAME` or a path (relative ones from `base`, else the working directory) and checks it.

    Raises CannotServe, and nothing else, naming everything found wrong with the file.
    """
    path = _resolve(str(reference), base)
    raw = _read_file(path, max_bytes)
    try:
        proto = onnx_wire.parse(raw)
        card = _own_card(proto)
        content = _with_card(proto, card)
    except ValueError as error:
        raise CannotServe(f"model {path}: {error}; give a model file that lstmstream train or import wrote") from error
    except CannotServe as error:
        raise CannotServe(*_named(path, error.problems)) from error
    return Model(
        card=card,
        graph_inputs=frozenset(value.name for value in proto.graph.input),
        outputs=frozenset(value.name for value in proto.graph.output),
        content=content,
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def write_model(path: str | Path, content: bytes, card: Card) -> Card:
    """Writes the ONNX model `content` with its card to `path`, whole or not at all; the same input, the same bytes.

    Doc strings, producer names and other metadata stay behind. Returns the card with its fingerprint. Raises
    CannotServe for whatever `load_model` would refuse, and OSError where the file cannot be written.
    """
    path = Path(path)
    try:
        proto = onnx_wire.parse(content)
        onnx_wire.drop_unused_domains(proto)
        if card.threshold is not None and not is_finite(card.threshold):
            raise ValueError("card.threshold: should be a finite number or null")
        card = Card.from_json(card.to_json())  # as load_model will see it
        _check(proto, card)
        card = replace(card, fingerprint=fingerprint(proto, card))
        content = _with_card(proto, card)
    except (ValueError, TypeError) as error:  # no ONNX model; a card that is no JSON
        raise CannotServe(f"model {path}: {error}") from error
    except CannotServe as error:
        raise CannotServe(*_named(path, error.problems)) from error
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return card


def fingerprint(proto: onnx_wire.Proto, card: Card) -> str:
    """Who owns a state: 32 hexadecimal digits over operators, graph, weights, features and state, and nothing else."""
    values = card.to_dict()
    meaning = {"features": values["features"], "size": card.state.size, "parts": values["state"]["parts"]}
    pieces = [
        b"lstmstream %d opset %d" % (FORMAT, onnx_wire.opset(proto)),
        proto.graph.SerializeToString(deterministic=True),
        orjson.dumps(meaning, option=orjson.OPT_SORT_KEYS),  # no floats: their text may change with the library
        np.array(card.state.initial, "<f4").tobytes(),
    ]
    digest = hashlib.sha256()
    for piece in pieces:  # each by its own digest, so that no piece can pass for a part of the next
        digest.update(hashlib.sha256(piece).digest())
    return digest.hexdigest()[:32]


def inspect_json(model: Model) -> dict[str, Any]:
    """The card with the file's absolute `path` and `sha256`."""
    return {**model.card.to_dict(), "path": str(model.path), "sha256": model.sha256}


def describe(model: Model) -> list[str]:
    """The card for a person, one line each."""
    card = model.card
    lines = [
        f"{card.name} version {card.version}: {card.task}",
        f"file         {model.path}",
        f"sha256       {model.sha256}",
        f"fingerprint  {card.fingerprint}",
        f"inputs       {', '.join(name for name in _INPUTS if name in model.graph_inputs)}",
        f"outputs      {', '.join(card.outputs)}",
        f"threshold    {'none' if card.threshold is None else card.threshold}",
        f"features     {len(card.features)}",
    ]
    for feature in card.features:
        size = ""
        if feature.vocabulary is not None:
            size = f", {len(feature.vocabulary)} known values"
        elif feature.buckets is not None:
            size = f", {feature.buckets} buckets"
        lines.append(f"  {feature.name}: {feature.kind}{size}")
    lines.append(f"state        {card.state.size} values, {card.state.size * 4} bytes a key")
    lines += [f"  {part.name}: {list(part.shape)} at {part.offset}" for part in card.state.parts]
    for title, values in (("training", card.training), ("reference", card.reference)):
        if values:
            lines.append(title)
            lines += [f"  {key}: {_brief(value)}" for key, value in values.items()]
    return ["".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in lines]


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= 100 else text[:97] + "..."


def _resolve(reference: str, base: Path | None) -> Path:
    if not reference.startswith(BUILTIN):
        return Path(os.path.abspath((base or Path()) / reference))  # noqa: PTH100 -- resolve() would follow links
    name = reference.removeprefix(BUILTIN)
    path = _BUILTIN_DIR / f"{name}.onnx"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or not path.is_file():
        shipped = ", ".join(sorted(BUILTIN + file.stem for file in _BUILTIN_DIR.glob("*.onnx"))) or "none"
        raise CannotServe(f"model {quote(reference)}: no such model in the package; there are: {shipped}")
    return path


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.exists():
            raise CannotServe(f"model {path}: no such file; give the path of a model file, or builtin:NAME")
        if not path.is_file():  # a pipe would block, a device would never end
            raise CannotServe(f"model {path}: not a regular file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise CannotServe(f"model {path}: {size} bytes, at most {max_bytes} are accepted")
            content = file.read(size + 1)  # not max_bytes: read() sets aside at once what it is asked for
    except (OSError, ValueError, MemoryError) as error:
        raise CannotServe(f"model {path}: cannot be read ({str(error) or type(error).__name__})") from error
    if len(content) != size:
        raise CannotServe(f"model {path}: changed while it was read; start again")
    return content


def _own_card(proto: onnx_wire.Proto) -> Card:
    """The card inside the file, compared with graph and fingerprint. Raises CannotServe naming what is wrong."""
    texts = [entry.value for entry in proto.metadata_props if entry.key == CARD_KEY]
    if len(texts) != 1:
        what = "more than one lstmstream card" if texts else "an ONNX file without an lstmstream card"
        raise CannotServe(f"{what}; write it with lstmstream train or lstmstream import")
    card = Card.from_json(texts[0])
    _check(proto, card)
    found = fingerprint(proto, card)
    if card.fingerprint != found:
        raise CannotServe(
            f"card.fingerprint: the card says {quote(card.fingerprint)}, graph and weights give '{found}'; "
            "the file was changed or damaged after it was written: restore it or write it again"
        )
    return card


def _with_card(proto: onnx_wire.Proto, card: Card) -> bytes:
    """The bytes of the model with this card as its only metadata."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=CARD_KEY, value=card.to_json())
    return onnx_wire.serialise(proto)


def _named(path: Path, problems: Iterable[str]) -> list[str]:
    lines = [f"model {path}: {problem}" for problem in problems]
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"model {path}: and {more} more problems"]


def _check(proto: onnx_wire.Proto, card: Card) -> None:
    """Raises CannotServe with everything that makes this graph unsafe, or wrong for this card."""
    problems = onnx_wire.unsafe(proto) + list(_graph_problems(proto.graph, card))
    if problems:
        raise CannotServe(*problems)


def _graph_problems(graph: onnx_wire.Proto, card: Card) -> Iterator[str]:
    numbers, categories, size = len(card.numbers), len(card.categories), card.state.size
    expected: dict[str, tuple[int, int | None, str]] = {  # element type, columns (None: a vector), said by
        "x": (FLOAT, numbers, f"{numbers} number features"),
        "categories": (INT64, categories, f"{categories} category features"),
        "timestamp": (INT64, None, ""),
        "elapsed": (FLOAT, None, ""),
        "state": (FLOAT, size, f"state.size {size}"),
        "state_out": (FLOAT, size, f"state.size {size}"),
        "score": (FLOAT, None, ""),
        "prediction": (FLOAT, -1, ""),  # any number of columns
    }
    for place, values, known in (("input", graph.input, _INPUTS), ("output", graph.output, _OUTPUTS)):
        seen = set()
        for value in values:
            if value.name in seen:
                yield f"graph {place} {quote(value.name)}: declared twice"
            elif value.name not in known:
                yield f"graph {place} {quote(value.name)}: not one of {', '.join(known)}"
            else:
                yield from _shape_problems(f"graph {place} {value.name}", value, *expected[value.name])
            seen.add(value.name)
    inputs, outputs = {value.name for value in graph.input}, {value.name for value in graph.output}
    initialised = {tensor.name for tensor in graph.initializer}
    yield from (f"graph input {name}: also a weight; an input may have no default" for name in inputs & initialised)
    required = {"state", *(["x"] if numbers else []), *(["categories"] if categories else [])}
    for name in sorted(required - inputs):
        said = f", but the card has {expected[name][2]}"
        yield f"graph input {name}: missing{said}"
    yield from (f"graph output {name}: missing" for name in sorted({"state_out", "score"} - outputs))
    if sorted(card.outputs) != sorted(outputs):
        theirs = ", ".join(map(quote, sorted(outputs)))
        yield f"card.outputs: {', '.join(map(quote, card.outputs))}, but the graph has {theirs}"


def _shape_problems(where: str, value: onnx_wire.Proto, element: int, columns: int | None, said: str) -> Iterator[str]:
    wanted = f"{onnx_wire.TYPE_NAMES[element]} [N]" if columns is None else (
        f"{onnx_wire.TYPE_NAMES[element]} [N, {columns if columns >= 0 else 'P'}]"
    )  # fmt: skip
    declared = onnx_wire.tensor_type(value)
    if declared is None:
        yield f"{where}: declares no tensor shape, should be {wanted}"
        return
    found_element, dims = declared
    fits = found_element == element and len(dims) == (1 if columns is None else 2) and isinstance(dims[0], str)
    if fits and columns is not None:
        fits = isinstance(dims[1], int) and (dims[1] == columns if columns >= 0 else dims[1] > 0)
    if not fits:
        name = onnx_wire.TYPE_NAMES.get(found_element, f"type {found_element}")
        shape = ", ".join(str(dim) if isinstance(dim, int) else quote(dim)[1:-1] or "?" for dim in dims)
        because = f" (the card has {said})" if said else ""
        yield f"{where}: is {name} [{shape}], should be {wanted}{because}"
