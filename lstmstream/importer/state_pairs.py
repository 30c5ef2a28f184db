"""Finds the inputs of a graph that are states, and the output that holds the next value of each.

Decided by the user (--state IN=OUT), else by shape and element type, and where several outputs fit, by name: frameworks
write state/stateN, h0/hn, h_in/h_out, hidden.1, past/present and the like. What stays ambiguous is an error that lists
the candidates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto, helper

from lstmstream.importer.constants import describe_input
from lstmstream.importer.graph import Array, SourceGraph, copy_of
from lstmstream.model.onnx_proto import quote_untrusted

Dims = tuple[int | None, ...]
NUMBERS = {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL}  # that a state can hold
_CLEAR = 3  # so alike, an optional input is a state
# Words that say which side of the step a tensor is on, and nothing of what it is.
_SIDES = {
    "in", "input", "inputs", "out", "output", "outputs", "new", "next", "nxt", "old", "prev", "previous", "pre", "past",
    "present", "last", "cur", "current", "curr", "init", "initial", "final", "updated", "update", "begin", "start",
    "end", "before", "after", "t", "n", "serving", "default", "statefulpartitionedcall", "args",
}  # fmt: skip
_DATA = {
    "x", "data", "input", "inputs", "event", "events", "feature", "features", "sample", "samples", "audio", "signal",
    "frame", "frames", "obs",
}  # fmt: skip
_NEXT = frozenset(["next", "nxt", "new", "present", "updated", "final", "n"])


@dataclass(frozen=True, slots=True)
class StatePair:
    """An input and the output that holds its next value."""

    input: str
    output: str
    initial: Array | None = None  # None: zeros


@dataclass(frozen=True, slots=True)
class StatePairing:
    """The input for the event, the states, and the output that is the prediction."""

    data: str
    states: tuple[StatePair, ...]
    output: str


def find_pairing(
    source: SourceGraph, wanted: str | None, given: Mapping[str, str] | None = None
) -> tuple[SourceGraph, StatePairing] | None:
    """The pairing of a graph with states as inputs and outputs, `wanted` its prediction; None for other graphs.

    `given` are pairs of the user, by input. An optional input that is a state is a required one in the graph that is
    returned. Raises CannotServe where a pairing is ambiguous or a pair of the user does not fit.
    """
    pairs = _pairs_of_user(source, given or {})
    outputs = [name for name in source.outputs if name not in pairs.values()]
    optional = [name for name in source.defaults if name not in pairs]
    pairs |= _optional_states(source, optional, outputs)
    outputs = [name for name in outputs if name not in pairs.values()]
    open_inputs = [name for name in source.inputs if name not in pairs]
    fitting = {name: [other for other in outputs if _fits(source, name, other)] for name in open_inputs}
    for name, alike in fitting.items():  # the wanted prediction is a state only where nothing else can be
        fitting[name] = [other for other in alike if other != wanted] or alike
    if not pairs and not any(fitting.values()):
        return None
    if not open_inputs:
        raise source.error("every input is a state (--state): none is left for the event")
    data = _data_input(source, open_inputs, fitting)
    rest = [name for name in open_inputs if name != data]
    if not rest and not pairs:
        return None
    unpaired = [name for name in rest if not fitting[name]]
    if unpaired:
        if not pairs and not any(fitting[name] for name in rest):
            return None
        raise source.error(
            "; ".join(
                f"the input {describe_input(source, name)} is neither the event nor a state: no output has its shape"
                f" and type. --constant {_plain(source, name)}=VALUE fixes it; --state {_plain(source, name)}=OUTPUT"
                " names the output that is its next value"
                for name in unpaired
            )
        )
    pairs |= _matched(source, {name: fitting[name] for name in rest})
    output = wanted or next((name for name in source.outputs if name not in pairs.values()), None)
    states = tuple(
        StatePair(name, pairs[name], source.defaults.get(name))
        for name in [*source.inputs, *source.defaults]
        if name in pairs
    )
    return _with_inputs(source, states), StatePairing(data, states, output or states[0].output)


def _plain(source: SourceGraph, name: str) -> str:
    return source.quoted(name)[1:-1]


def _pairs_of_user(source: SourceGraph, given: Mapping[str, str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for one, two in given.items():
        name, output = source.current_name(one), source.current_name(two)
        inputs = [*source.inputs, *source.defaults]
        for wanted, there, what in ((name, inputs, "input"), (output, source.outputs, "output")):
            if wanted not in there:
                listed = ", ".join(map(source.quoted, there[:20]))
                shown = quote_untrusted(one if what == "input" else two)
                raise source.error(f"--state {shown}: the file has no such {what}; it has {listed}")
        if output in pairs.values():
            raise source.error(f"--state: the output {source.quoted(output)} is the next value of two states")
        pairs[name] = output
    return pairs


def _optional_states(source: SourceGraph, names: Iterable[str], outputs: list[str]) -> dict[str, str]:
    """Optional inputs that are states: an output has their shape and their name. Others keep their default."""
    pairs: dict[str, str] = {}
    for name in names:
        dims = source.defaults[name].shape
        alike = [other for other in outputs if other not in pairs.values() and _same_shape(source.dims(other), dims)]
        alike = [other for other in alike if _likeness(source, name, other) >= _CLEAR]
        if len(alike) == 1:
            pairs[name] = alike[0]
    return pairs


def _fits(source: SourceGraph, name: str, other: str) -> bool:
    kind = source.element(name)
    return kind in NUMBERS and kind == source.element(other) and _same_shape(source.dims(name), source.dims(other))


def _same_shape(one: Dims, other: Dims) -> bool:
    """Whether two shapes can be the same state's; None, an undeclared size, matches any."""
    return len(one) == len(other) and all(a == b or a is None or b is None for a, b in zip(one, other, strict=True))


def _data_input(source: SourceGraph, names: list[str], fitting: Mapping[str, list[str]]) -> str:
    """The input for the event: the one that fits no output, or is named like data, or the first."""
    numbers = [name for name in names if source.element(name) in NUMBERS and source.dims(name)] or names
    without = [name for name in numbers if not fitting[name]]
    if len(without) == 1:
        return without[0]
    named = [name for name in (without or numbers) if _DATA & set(_words(source.quoted(name)[1:-1]))]
    if len(named) == 1:
        return named[0]
    return (named or without or numbers)[0]


def _matched(source: SourceGraph, fitting: Mapping[str, list[str]]) -> dict[str, str]:
    """One output for each of these states, the likest by name. Raises CannotServe where two are equally likely."""
    pairs: dict[str, str] = {}
    while left := [name for name in fitting if name not in pairs]:
        free = {name: [other for other in fitting[name] if other not in pairs.values()] for name in left}
        best = {name: _unique_best(source, name, free[name]) for name in left}
        wishes = {
            other: _unique_best(source, other, [name for name in left if other in free[name]])
            for other in set(best.values())
            if other is not None
        }
        agreed = {name: other for name, other in best.items() if other is not None and wishes[other] == name}
        if not agreed:
            name = next((name for name in left if len(free[name]) != 1), left[0])
            candidates = ", ".join(map(source.quoted, free[name][:8])) or "none is left"
            raise source.error(
                f"it is a step already, but which output is the next value of {source.quoted(name)} is ambiguous"
                f" ({candidates}); choose one: --state {_plain(source, name)}=OUTPUT"
            )
        pairs |= agreed
    return pairs


def _unique_best(source: SourceGraph, name: str, candidates: list[str]) -> str | None:
    """The candidate whose name is likest; None where there is none, or two are equally alike."""
    ranked = sorted(((_likeness(source, name, other), other) for other in candidates), reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def _likeness(source: SourceGraph, one: str, other: str) -> float:
    """How alike two names are, apart from words of the side: 4 equal, 3 equal without numbers, below that by words.

    0 where they have nothing in common: then only the shapes speak for the pair.
    """
    names = [source.quoted(name)[1:-1] for name in (one, other)]
    first, second = map(_words, names)
    if first == second:
        is_next = _NEXT & {word for name in names for word in re.findall("[a-z]+", name.lower())}
        return 4 if first else 3.5 + 0.1 * bool(is_next)
    plain = [[word for word in words if not word.isdigit()] for words in (first, second)]
    if plain[0] == plain[1] and plain[0] and not (_numbered(first) and _numbered(second)):
        return 3
    common, all_words = set(first) & set(second), set(first) | set(second)
    if common:
        conflict = _numbered(first) and _numbered(second) and not {w for w in common if w.isdigit()}
        return (0.5 if conflict else 1.5) + len(common) / len(all_words)
    return 0.4 if names[0][:1].lower() == names[1][:1].lower() else 0


def named_alike(source: SourceGraph, pair: StatePair) -> bool:
    """Whether the names of a pair have anything in common."""
    return _likeness(source, pair.input, pair.output) > 0


def _numbered(words: Iterable[str]) -> bool:
    return any(word.isdigit() for word in words)


def _words(name: str) -> list[str]:
    """The words of a name, without those of the side.

    >>> _words("stateN"), _words("h0"), _words("hn"), _words("lstm_1/hidden_in"), _words("past_key_values.0.key")
    (['state'], ['h'], ['h'], ['lstm', '1', 'hidden'], ['key', 'values', '0', 'key'])
    >>> _words("c_t_1"), _words("HiddenState_out"), _words("serving_default_cache_2:0"), _words("prev")
    (['c', '1'], ['hidden', 'state'], ['cache', '2'], [])
    """
    name = re.sub(r":\d+$", "", name)
    name = re.sub(r"([a-z])([A-Z])", r"\1_\2", name)
    found = re.findall(r"[a-z]+|\d+", name.lower())
    words: list[str] = []
    for position, word in enumerate(found):
        if word == "0" and position == len(found) - 1 and re.fullmatch(r"(.*[^0-9a-z])?[a-z]+_?0", name.lower()):
            continue  # h0, h_0: the state before the first event
        if re.fullmatch(r"[hcs](n|t|o|i|in|out|new|next|prev|p)", word):
            word = word[0]  # noqa: PLW2901 -- hn, ht, hout
        words.append(word)
    kept = [word for word in words if word not in _SIDES]
    return [re.sub(r"(state|cache|hidden|cell|memory|buf|buffer)s?(n|in|out|new|next)?$", r"\1", word) for word in kept]


def _with_inputs(source: SourceGraph, states: tuple[StatePair, ...]) -> SourceGraph:
    """The graph in which the optional inputs among these states are required ones."""
    optional = [pair for pair in states if pair.input not in source.inputs]
    if not optional:
        return source
    model = copy_of(source.model)
    names = {pair.input for pair in optional}
    weights = [copy_of(tensor) for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    for pair in optional:
        value = np.asarray(source.defaults[pair.input])
        kind = next(t.data_type for t in source.graph.initializer if t.name == pair.input)
        model.graph.input.append(helper.make_tensor_value_info(pair.input, kind, value.shape))
    return replace(source, model=model)
