"""The options of a configuration as data. Documentation, environment variables and messages come from this one list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from lstmstream.config.paths import Keys, variable_of
from lstmstream.config.types import VALUE_NAMES, Section, section_of

_TYPE_NAMES = {  # the first that the annotation has
    bool: "`true`, `false`",
    Path: "path",
    tuple: "[lowest, highest]",
    list: "list",
    Sequence: "list",
    float: "number",
    int: "integer",
}
_BOUNDED = {"duration", "number", "integer"}
_TYPE_LIMIT = 2**31 - 1  # a bound that is only what 32 bits hold says nothing to a reader


class Option(NamedTuple):
    """One option as the reference lists it."""

    path: str
    variable: str  # the environment variable that overrides it
    required: bool
    default: object  # None where the option is required or has no default
    description: str
    keys: Keys  # `path` in its parts
    values: tuple[str, ...] = ()  # the allowed values, where they can be enumerated
    kind: str = ""  # which values are allowed, in words and bounds


class KeysOf(NamedTuple):
    """Marks a field whose type is a plain mapping: its keys are the options of `section`."""

    section: type[Section]


@cache
def options_of(section: type[Section]) -> Mapping[str, Option]:
    """Return every option of a section and of the sections within it: path → option, in the order of the file.

    A list of sections is one option, followed by the options of its entries.
    """
    return {option.path: option for option in _walk(section, ())}


def _walk(section: type[Section], above: Keys) -> Iterator[Option]:
    for attribute, field in section.model_fields.items():
        keys = (*above, field.alias or attribute)
        marked = next((mark.section for mark in field.metadata if isinstance(mark, KeysOf)), None)
        inner = marked or section_of(field.annotation)
        if inner is None:
            default = None if field.is_required() else field.default
            path, values = ".".join(keys), _allowed_values(field.annotation)
            kind = _kind(field.annotation, field.metadata)
            yield Option(
                path, variable_of(keys), field.is_required(), default, field.description or "", keys, values, kind
            )
            inner = next(filter(None, map(section_of, get_args(field.annotation))), None)
        if inner is not None:
            yield from _walk(inner, keys)


def _allowed_values(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, possibly optional; nothing for any other type."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _allowed_values(get_args(annotation)[0])
    alternatives = [one for one in get_args(annotation) if one is not NoneType]
    return _allowed_values(alternatives[0]) if len(alternatives) == 1 and NoneType in get_args(annotation) else ()


def _kind(annotation: Any, metadata: Iterable[Any]) -> str:
    """What may be written: `duration`, `1 to 256`, `true or false`, or the enumerated values in code font."""
    if values := _allowed_values(annotation):
        return ", ".join(f"`{value}`" for value in values)
    types, marks = _flatten(annotation)
    marks += metadata
    words = next((VALUE_NAMES[mark.func] for mark in marks if getattr(mark, "func", None) in VALUE_NAMES), "")
    if not words:
        words = next((name for kind, name in _TYPE_NAMES.items() if kind in types), "text")
    bounded = words if words not in _BOUNDED else f"{words} {_bounds(marks)}".strip()
    named = [f"`{value}`" for part in get_args(_plain(annotation)) for value in _allowed_values(part)]
    return f"{bounded} or text" if int in types and str in types else ", ".join([*named, bounded])


def _plain(annotation: Any) -> Any:
    """The annotation without what is annotated on it."""
    return _plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _flatten(annotation: Any) -> tuple[set[Any], list[Any]]:
    """The plain types within an annotation, and everything that is annotated on them."""
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        types, within = _flatten(inner)
        return types, [*within, *marks]
    if get_origin(annotation) in {Union, UnionType}:
        parts = [_flatten(part) for part in get_args(annotation) if part is not NoneType]
        return set().union(*(types for types, _ in parts)), [mark for _, marks in parts for mark in marks]
    return {get_origin(annotation) or annotation}, []


def _bounds(marks: Iterable[Any]) -> str:
    """`1 to 256`, `above 0`, or nothing where a bound is only what the type can hold."""
    bounds: dict[str, float] = {}
    for mark in marks:
        for one in getattr(mark, "metadata", [mark]):
            for name in ("ge", "gt", "le", "lt"):
                bound = getattr(one, name, None)
                if bound is not None and abs(bound) < _TYPE_LIMIT:
                    bounds[name] = bound
    low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le"))
    if low is None:
        return "" if high is None else f"up to {high:,}"
    if high is not None:
        return f"{'above ' if 'gt' in bounds else ''}{low:,} to {'below ' if 'lt' in bounds else ''}{high:,}"
    return f"above {low:,}" if "gt" in bounds else "" if low == 0 else f"from {low:,}"
