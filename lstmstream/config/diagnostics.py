"""Validates a tree of keys and values against a schema and reports all faults at once, each with path and remedy."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lstmstream.config.document import Document
from lstmstream.config.environment import Overrides
from lstmstream.config.options import Option, options_of
from lstmstream.config.paths import Keys, delete_in, is_within, redacted_key, set_in, variable_of
from lstmstream.config.places import NOWHERE, Places
from lstmstream.config.properties import refusal
from lstmstream.errors import CannotServe
from lstmstream.logs import escape_untrusted

AnyDocument = TypeVar("AnyDocument", bound=Document)
Detail = dict[str, Any]  # one error as pydantic reports it

_HIDDEN = (  # values never shown
    "kafka.security",
    "kafka.schema_registry",
    "kafka.properties",
    "kafka.bootstrap_servers",
    "http.token",
)
_MESSAGES = {  # by pydantic's type of error
    "string_type": "must be text; put it in quotes",
    "string_unicode": "contains characters that UTF-8 cannot represent; rewrite it",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "list_type": "must be a list; write [one, other]",
    "model_type": "must be a section of keys; indent them below it",
    "path_type": "must be the path of a file",
}


def validate(
    schema: type[AnyDocument],
    tree: dict[str, Any],
    folder: Path,
    overrides: Overrides | None = None,
    places: Places = NOWHERE,
) -> AnyDocument:
    """Return the configuration that `tree` describes. Its relative paths start from `folder`.

    `places`: where the keys of `tree` stand in their file, for the messages.

    Raises CannotServe with one line for each fault: those of the environment (`overrides`), of single options and
    between options.
    """
    sources, earlier, files = overrides or Overrides({}, [])
    problems = list(earlier)
    faults: list[tuple[str, str]] = []
    invalid: list[str] = []
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        faults = describe_errors(error, options_of(schema))
        wrong = [keys for keys, _ in _details(error)]
        invalid = [".".join(keys) for keys in wrong]
        config = _without(schema, tree, wrong)
    config._folder = folder.resolve()
    config._files = dict(files)
    for paths, text in config.conflicts():
        if not any(is_within(path, bad) or is_within(bad, path) for path in paths for bad in invalid):
            faults.append((paths[0], text))
    for path, text in faults:
        variable = next((name for option, name in sources.items() if is_within(path, option)), None)
        problems.append(f"{path}: {text}" + (f" (from {variable})" if variable else places.suffix(path)))
    if problems:
        raise CannotServe(*problems)
    return config


def describe_errors(error: ValidationError, options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """Return each fault in a section that is described by `options`, as (path, what is wrong and how to fix it)."""
    return [_describe(keys, detail, options) for keys, detail in _details(error)]


def _details(error: ValidationError) -> Iterator[tuple[Keys, Detail]]:
    """The single errors with their keys, including those of `kafka.properties`, which is validated separately."""
    for detail in error.errors(include_url=False):
        keys = tuple(str(key) for key in detail["loc"])
        inner = detail.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from (((*keys, *below), part) for below, part in _details(inner))
        else:
            yield keys, dict(detail)


def _without(schema: type[AnyDocument], tree: dict[str, Any], wrong: list[Keys]) -> AnyDocument:
    """The configuration without its invalid parts, good enough to look for conflicts between the others."""
    tree = copy.deepcopy(tree)
    for keys in wrong:
        delete_in(tree, keys)
    for keys, value in schema.placeholders.items():
        if any(all(one == other for one, other in zip(keys, bad, strict=False)) for bad in wrong):
            set_in(tree, keys, value)
    return schema.model_validate(tree)


def _describe(keys: Keys, detail: Detail, options: Mapping[str, Option]) -> tuple[str, str]:
    """A fault's path, and what is wrong and how to fix it."""
    path = ".".join([*keys[:-1], redacted_key(keys[-1])])
    kind = detail["type"]
    if kind == "extra_forbidden":
        return path, _unknown_key(keys, options)
    if kind == "missing":
        what = options[".".join(_without_indices(keys))].description
        return path, f"is missing; set it ({what[:1].lower()}{what[1:].rstrip('.')})"
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
    elif kind == "literal_error":
        text = f"must be one of {detail['ctx']['expected']}".replace("'", "").replace(" or ", ", ")
    else:
        text = _MESSAGES.get(kind) or detail["msg"].replace("Input should be", "must be")
    value = detail["input"]
    may_be_shown = not any(is_within(path, hidden) or is_within(hidden, path) for hidden in _HIDDEN)
    if may_be_shown and isinstance(value, str | int | float):
        text += f"; got {escape_untrusted(repr(value) if isinstance(value, str) else value, 80)}"
    return path, text


def _unknown_key(keys: Keys, options: Mapping[str, Option]) -> str:
    above, key = _without_indices(keys[:-1]), keys[-1]
    if refused := refusal(above, key):
        return refused
    depth = len(above)
    siblings = (option.keys for option in options.values() if option.keys[:depth] == above)
    known = list(dict.fromkeys(sibling[depth] for sibling in siblings if len(sibling) > depth))
    if key.removesuffix("_file") in known:
        return f"unknown key; set the environment variable {variable_of(keys)} instead"
    if re.match(r"[\w.-]+:", key):
        return "unknown key; put a space after the colon"
    if ".".join([*above, key]) in options:
        section, _, inner = key.partition(".")
        return f"unknown key; write it as a section: {section}: {{{inner}: …}}"
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known keys here: {', '.join(known)}"


def _without_indices(keys: Keys) -> Keys:
    """The keys of an option in an entry of a list: all entries have the same options."""
    return tuple(key for key in keys if not key.isdigit())
