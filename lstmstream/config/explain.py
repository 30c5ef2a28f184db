"""Judges a tree of keys and values: all that is wrong with it, each as a path and a sentence for a person.

`judge` is for the daemon's configuration; `faults` puts into words what any tree of sections was refused for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lstmstream.config import clashes
from lstmstream.config.paths import put, remove, shown, starts, variable_of
from lstmstream.config.properties import REFUSED
from lstmstream.config.schema import OPTIONS, Config, Option
from lstmstream.logs import safe

Keys = tuple[str, ...]
Detail = dict[str, Any]  # as pydantic gives it

_HIDDEN = ("kafka.security", "kafka.properties", "kafka.bootstrap_servers", "http.token")  # values never shown
_WANTED = {
    "string_type": "must be text; put it in quotes",
    "string_unicode": "has characters that UTF-8 cannot hold; write it anew",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number of less size",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite; write an ordinary number",
    "list_type": "must be a list; write [one, other], or one, other",
    "model_type": "must be a section of keys; indent them below it",
    "path_type": "must be the path of a file",
}
# Stand in for what must be given and is missing or wrong, so that the rest can still be judged.
_STANDINS: dict[Keys, str] = {
    ("name",): "standin",
    ("model",): "standin",
    ("kafka", "bootstrap_servers"): "standin:1",
    ("input", "topic"): "standin-input",
    ("output", "topic"): "standin-output",
}


def judge(tree: dict[str, Any], folder: Path) -> tuple[Config, list[tuple[str, str]]]:
    """The configuration that `tree` describes, and every fault as (path, text).

    Where there are faults, what was wrong is taken out of `tree` and the configuration is good for nothing.
    """
    found: list[tuple[str, str]] = []
    wrong: list[str] = []
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        found = faults(error, OPTIONS)
        bad_keys = [keys for keys, _ in _details(error)]
        wrong = [".".join(keys) for keys in bad_keys]
        config = _without(tree, bad_keys)
    config._folder = folder
    for paths, text in clashes.find(config):
        if not any(starts(path, bad) for path in paths for bad in wrong):
            found.append((paths[0], text))
    return config, found


def faults(error: ValidationError, options: Mapping[str, Option]) -> list[tuple[str, str]]:
    """Each fault of a tree that should have been described by `options`, as (path, text)."""
    return [_explain(keys, detail, options) for keys, detail in _details(error)]


def _details(error: ValidationError) -> Iterator[tuple[Keys, Detail]]:
    """The error's parts by their keys; those of `kafka.properties`, which is judged by itself, among them."""
    for detail in error.errors(include_url=False):
        keys = tuple(str(key) for key in detail["loc"])
        inner = detail.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from (((*keys, *below), part) for below, part in _details(inner))
        else:
            yield keys, dict(detail)


def _without(tree: dict[str, Any], bad: list[Keys]) -> Config:
    """What `tree` describes without its bad parts, for judging what is between the others."""
    for keys in bad:
        remove(tree, keys)
    for keys, value in _STANDINS.items():
        if any(all(one == other for one, other in zip(keys, wrong, strict=False)) for wrong in bad):
            put(tree, keys, value)
    return Config.model_validate(tree)


def _explain(keys: Keys, detail: Detail, options: Mapping[str, Option]) -> tuple[str, str]:
    """A fault's path, and what is wrong and how to mend it."""
    path = ".".join([*keys[:-1], shown(keys[-1])])
    kind = detail["type"]
    if kind == "extra_forbidden":
        return path, _unknown(keys, options)
    if kind == "missing":
        what = options[".".join(_without_places(keys))].description
        return path, f"is missing; {what[:1].lower()}{what[1:].rstrip('.')}"
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
    elif kind == "literal_error":
        text = f"must be one of {detail['ctx']['expected']}".replace("'", "").replace(" or ", ", ")
    else:
        text = _WANTED.get(kind) or detail["msg"].replace("Input should be", "must be")
    value = detail["input"]
    if isinstance(value, str | int | float) and not any(starts(path, out) or starts(out, path) for out in _HIDDEN):
        text += f"; got {safe(repr(value) if isinstance(value, str) else value, 80)}"
    return path, text


def _without_places(keys: Keys) -> Keys:
    """The keys of an option in a list's entries, which all have the same options."""
    return tuple(key for key in keys if not key.isdigit())


def _unknown(keys: Keys, options: Mapping[str, Option]) -> str:
    above, key = [*_without_places(keys[:-1])], keys[-1]
    depth = len(above)
    if above == ["kafka", "properties"]:
        if key in REFUSED:
            return f"is not yours to set: {REFUSED[key]}"
        if key.startswith(("sasl.", "ssl.")):
            return "is set under `kafka.security`; see its keys"
    below = (option.keys for option in options.values())
    known = list(dict.fromkeys(there[depth] for there in below if [*there[:depth]] == above and len(there) > depth))
    if key.removesuffix("_file") in known:
        return f"unknown key; set the variable {variable_of(keys)}"
    if re.match(r"[\w.-]+:", key):
        return "unknown key; put a space after the colon"
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"
