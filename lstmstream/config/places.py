"""Where in its file each key of a configuration stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import yaml

from lstmstream.config.paths import redacted_key


class Place(NamedTuple):
    """Both count from 1."""

    line: int
    column: int


class Places:
    """The places of the keys and list entries of a file, by their path."""

    def __init__(self, by_path: Mapping[str, Place]) -> None:
        self._by_path = by_path

    def suffix(self, path: str) -> str:
        """` (line 3, column 5)`: of what is at `path`, else of the section around it; empty where that is not there."""
        while path:
            if place := self._by_path.get(path):
                return f" (line {place.line}, column {place.column})"
            path = path.rpartition(".")[0]
        return ""

    def of_stage(self, number: int) -> Places:
        """Those of one stage, as if its keys stood at the top of the file, among the keys that stages share."""
        above = f"stages.{number}."
        own = {path.removeprefix(above): place for path, place in self._by_path.items() if path.startswith(above)}
        return Places({**self._by_path, **own})


NOWHERE = Places({})


def places_of(root: yaml.Node | None) -> Places:
    """The places in a composed YAML file, which has no aliases."""
    return Places(dict(_walk(root, "")))


def _walk(node: yaml.Node | None, above: str) -> Iterator[tuple[str, Place]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield f"{above}{redacted_key(key.value)}", _place(key)
            yield from _walk(value, f"{above}{key.value}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield f"{above}{number}", _place(entry)
            yield from _walk(entry, f"{above}{number}.")


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
