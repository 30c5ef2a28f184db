"""Reads a YAML file into a tree of text keys, and says what is wrong with it without ever quoting its values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from lstmstream.config.files import UnreadableFile, read_small_file
from lstmstream.config.paths import redacted_key
from lstmstream.config.places import Places, places_of
from lstmstream.errors import CannotServe
from lstmstream.logs import escape_untrusted

_QUOTES_NOTHING = re.compile(r"""(?:[^'"]|'(?:\\?.|<[a-z ]+>)')*""")
_HINTS = {  # by what pyyaml says; the first counts
    "but got '<stream end>'": "; close the bracket",
    r"found character '\t'": "; indent with spaces, not with tabs",
    "while parsing a flow ": "; a name or text with one of ?,:#[]{} in it needs quotes",
    "mapping values are not allowed": "; text with a colon needs quotes, and keys of a section the same indentation",
    "while parsing a block mapping": "; keys of a section need the same indentation",
}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the file as a tree of text keys. Raises CannotServe as `read_placed` does."""
    return read_placed(path)[0]


def read_placed(path: Path) -> tuple[dict[str, Any], Places]:
    """Return the file as a tree of text keys, and where they stand.

    Raises CannotServe with one line that never contains the file's text: it may hold a password.
    """
    try:
        tree, places = _parse(read_small_file(path).decode("utf-8-sig"))
    except UnreadableFile as error:
        problem = f"{error}; give the path of a YAML file"
    except UnicodeDecodeError:
        problem = "is not UTF-8; save it as UTF-8"
        if path.suffix == ".onnx":
            problem = "is a model file; give the configuration (YAML) that names it"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = (f"line {mark.line + 1}, column {mark.column + 1}: " if mark else "") + _text(error)
    except (yaml.YAMLError, ValueError, ArithmeticError):
        problem = "contains a number, date or character that is not valid in YAML; put the value in quotes"
    except RecursionError:
        problem = "is nested too deeply; remove the extra levels"
    else:
        if isinstance(tree, dict):
            return tree, places
        problem = "must be a mapping of keys at the top level; write `key: value` lines"
        if tree is None:
            problem = "is empty; write at least the required options"
    # Raised outside of the handlers: an exception that quotes the file would otherwise be attached as its context.
    raise CannotServe(f"{escape_untrusted(str(path), 1000)}: {problem}")


def _parse(text: str) -> tuple[Any, Places]:
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        tree = None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()
    return tree, places_of(root)


def _text(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, without what pyyaml quotes from the file, unless that is a single character or a kind of token."""
    text = ", ".join(part for part in (error.context, error.problem) if part)
    if not isinstance(error, _Fault) and not _QUOTES_NOTHING.fullmatch(text):
        text = re.sub(r"""['"].*['"]""", "(hidden)", text, flags=re.DOTALL)
    return escape_untrusted(text) + next((hint for sign, hint in _HINTS.items() if sign in text), "")


class _Loader(yaml.SafeLoader):
    """Safe YAML without what a configuration does not need: aliases, merges, duplicate keys, keys that are not text."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _Fault("aliases (*name) are not supported; write the value out", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        if not isinstance(node, yaml.MappingNode):
            raise _Fault("must be a mapping of keys and values; write `key: value` lines", node.start_mark)
        seen: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise _Fault("a key is not text; put it in quotes", key_node.start_mark)
            if not key_node.value.isprintable():
                raise _Fault("a key contains unprintable characters; remove them", key_node.start_mark)
            if key_node.value in seen:
                raise _Fault(f"the key {redacted_key(key_node.value)} is given twice; keep one", key_node.start_mark)
            seen[key_node.value] = self.construct_object(value_node, deep=True)
        return seen


class _Fault(yaml.MarkedYAMLError):
    """A fault that the loader above found, with its place in the file. Its text may name keys, and holds no values."""

    def __init__(self, problem: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=problem, problem_mark=mark)
