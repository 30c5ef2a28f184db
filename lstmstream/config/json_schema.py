"""The JSON Schema of a configuration file, for editors: completion, descriptions, and errors while one types.

It accepts what the daemon accepts, in the spelling of the reference (`level: info`, not `INFO`). It knows no conflicts
between options, and nothing of what the environment sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, SecretStr

from lstmstream.config.document import Document
from lstmstream.config.options import KeysOf
from lstmstream.config.schema import Config
from lstmstream.config.stages import OF_STAGE, OWN
from lstmstream.config.types import Section, Written, section_of
from lstmstream.formats.durations import short_duration

Json = dict[str, Any]

DIALECT = "http://json-schema.org/draft-07/schema#"  # what the YAML extensions of editors know
_NULL = {"type": "null"}
_TYPES: dict[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"} | dict.fromkeys(
    (Path, SecretStr), "string"
)
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def document_schema(document: type[Document], title: str) -> Json:
    """The schema of a file that `document` describes; of the daemon's also with `stages`."""
    schema = _section(document)
    if document is Config:
        schema = {"if": {"required": ["stages"]}, "then": _with_stages(schema), "else": schema}
    return {"$schema": DIALECT, "title": title, **schema}


def _with_stages(daemon: Json) -> Json:
    """A file of several daemons: what they share at the top, the rest in each."""
    options = daemon["properties"]
    stage = {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: options[name] for name in OF_STAGE},
        "required": ["name", *(name for name in daemon["required"] if name in OWN)],
    }
    shared = {name: value for name, value in options.items() if name not in OWN}
    stages = {"type": "array", "minItems": 1, "items": stage, "description": "One daemon each, with a key of its own."}
    required = [name for name in daemon["required"] if name not in OWN]
    return {**daemon, "properties": {**shared, "stages": stages}, "required": [*required, "stages"]}


def _section(section: type[Section]) -> Json:
    properties: dict[str, Json] = {}
    required = []
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        marked = next((mark.section for mark in field.metadata if isinstance(mark, KeysOf)), None)
        inner = marked or section_of(field.annotation)
        found = _section(inner) if inner is not None else _value(field.annotation, field.metadata)
        about = (field.description or "") if inner is None else _capital((inner.__doc__ or "").partition(": ")[2])
        if field.is_required() if inner is None else found["required"]:
            required.append(name)
        else:
            found = _or_null(found)
            if inner is None and field.default not in (None, []):
                found["default"] = _written(field.default, field.metadata)
        properties[name] = {"description": about, **found}
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _value(annotation: Any, marks: Sequence[Any]) -> Json:
    """What may be written for one option; `marks` are what is annotated on it."""
    if get_origin(annotation) is Annotated:
        inner, *within = get_args(annotation)
        return _value(inner, (*within, *marks))
    if written := next((mark for mark in marks if isinstance(mark, Written)), None):
        return dict(written.schema)
    if section := section_of(annotation):
        return _section(section)
    if get_args(annotation):
        return _composed(get_origin(annotation), get_args(annotation), marks)
    return {"type": _TYPES[annotation], **_bounds(marks)}


def _composed(origin: Any, arguments: Sequence[Any], marks: Sequence[Any]) -> Json:
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return _list(arguments[0], marks)
    if origin is dict:
        return {"type": "object", "additionalProperties": _value(arguments[1], ())}
    parts = [_value(part, ()) for part in arguments if part is not NoneType]
    if origin is tuple:
        return {"type": "array", "items": parts, "minItems": len(parts), "maxItems": len(parts)}
    assert origin in {Union, UnionType}, origin
    return parts[0] if len(parts) == 1 else {"anyOf": parts}


def _list(entry: Any, marks: Sequence[Any]) -> Json:
    """A validator in front of a list expands its short forms: one text for all of it, or the names of its entries."""
    entries = _value(entry, ())
    if not any(isinstance(mark, BeforeValidator) for mark in marks):
        return {"type": "array", "items": entries}
    if entries.get("type") == "object":
        entries = {"anyOf": [{"type": "string"}, entries]}
    return {"anyOf": [{"type": "array", "items": entries}, {"type": "string"}]}


def _bounds(marks: Iterable[Any]) -> Json:
    found = {}
    for mark in marks:
        for one in getattr(mark, "metadata", [mark]):
            for name, keyword in _BOUNDS.items():
                if (bound := getattr(one, name, None)) is not None:
                    found[keyword] = bound
    return found


def _or_null(schema: Json) -> Json:
    """An empty value is as good as none."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], _NULL]}
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*types, "null"]}


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _written(default: object, marks: Iterable[Any]) -> object:
    """The default as it is written in the file."""
    if isinstance(default, float) and any(isinstance(mark, Written) and mark.is_duration for mark in marks):
        return short_duration(default)
    return default
