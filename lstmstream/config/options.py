"""The options of a configuration as data. Documentation, environment variables and messages come from this one list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from lstmstream.config.paths import Keys, variable_of
from lstmstream.config.types import Section, section_of


class Option(NamedTuple):
    """One option as the reference lists it."""

    path: str
    variable: str  # the environment variable that overrides it
    required: bool
    default: object  # None where the option is required or has no default
    description: str
    keys: Keys  # `path` in its parts
    values: tuple[str, ...] = ()  # the allowed values, where they can be enumerated


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
            yield Option(path, variable_of(keys), field.is_required(), default, field.description or "", keys, values)
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
