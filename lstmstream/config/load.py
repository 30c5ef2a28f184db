"""Reads the configuration file and the environment into one tree of keys and values, and has it judged."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lstmstream.config.explain import judge
from lstmstream.config.files import Unreadable, read
from lstmstream.config.paths import PREFIX, put, shown, starts
from lstmstream.config.schema import OPTIONS, Config
from lstmstream.errors import CannotServe
from lstmstream.logs import safe


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of the YAML file at `path` (None: no file) and of the variables in `environ`.

    Raises CannotServe with one line for each thing that is wrong, all of them at once.
    """
    tree = {} if path is None else read_yaml(path)
    sources, problems = override(tree, environ)
    config, faults = judge(tree, (Path() if path is None else path.parent).resolve())
    for place, text in faults:
        variable = next((name for option, name in sources.items() if starts(place, option)), None)
        problems.append(f"{place}: {text}" + (f" (from {variable})" if variable else ""))
    if problems:
        raise CannotServe(*problems)
    return config


# --- the file ------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Safe YAML without what a configuration has no use for: aliases, merges, keys given twice or that are no text."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _Fault("an alias (*name) is not supported; write the value out", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        if not isinstance(node, yaml.MappingNode):
            raise _Fault("a mapping of keys and values belongs here", node.start_mark)
        seen: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise _Fault("a key here is no text; put it in quotes", key_node.start_mark)
            if not key_node.value.isprintable():
                raise _Fault("a key here has unprintable characters; write the name of a key", key_node.start_mark)
            if key_node.value in seen:
                raise _Fault(f"the key {shown(key_node.value)} stands here twice; keep one", key_node.start_mark)
            seen[key_node.value] = self.construct_object(value_node, deep=True)
        return seen


class _Fault(yaml.MarkedYAMLError):
    """A fault of ours at a place in the file. Its text holds nothing of the file but names of keys."""

    def __init__(self, problem: str, mark: yaml.Mark | None) -> None:
        super().__init__(problem=problem, problem_mark=mark)


def read_yaml(path: Path) -> dict[str, Any]:
    """The file as a tree of text keys. Raises CannotServe, never with the file's text: it may hold a password."""
    try:
        tree = yaml.load(read(path).decode("utf-8-sig"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except Unreadable as error:
        problem = f"{error}; give the path of a YAML file"
    except UnicodeDecodeError:
        problem = "is not UTF-8; give a YAML file that can be read"
    except yaml.MarkedYAMLError as error:
        text = error.problem or ""
        mark = error.problem_mark
        problem = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem += safe(text if isinstance(error, _Fault) else re.sub(r"'..+'", "this", text))
    except (yaml.YAMLError, ValueError, ArithmeticError):
        problem = "is no YAML, or has a number, date or character that YAML cannot hold; put it in quotes"
    except RecursionError:
        problem = "is nested too deeply; a configuration has three levels"
    else:
        if isinstance(tree, dict):
            return tree
        problem = "must be a mapping of keys at the top; write `key: value` lines"
        if tree is None:
            problem = "is empty; the manual shows the least that runs"
    # Raised out here, since an exception that quotes the file would else go along as its context.
    raise CannotServe(f"{safe(str(path), 1000)}: {problem}")


# --- the environment -----------------------------------------------------------------------------------------------


def override(
    tree: dict[str, Any], environ: Mapping[str, str], section: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Put the variables' values into `tree`. Returns which variable gave which path, and what is wrong.

    With a `section` only its variables count, and others are left to who reads them.
    """
    known = {option.variable: option for option in OPTIONS.values() if section in (None, option.keys[0])}
    sources: dict[str, str] = {}
    problems: list[str] = []
    for variable in sorted(environ):
        if not variable.startswith(f"{PREFIX}_") or "__" not in variable:
            continue
        stem = variable if variable in known else variable.removesuffix("_FILE")
        if stem not in known:
            if section is not None:
                continue
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "take it away, or name a key of the configuration"
            problems.append(f"{safe(variable)}: names no key; {hint}")
            continue
        value = environ[variable]
        if stem != variable:
            if stem in environ:
                problems.append(f"{variable}: {stem} is set as well; keep one")
                continue
            try:
                value = read(Path(value)).decode().removesuffix("\n").removesuffix("\r")
            except (Unreadable, UnicodeDecodeError) as error:
                reason = error if isinstance(error, Unreadable) else "is not UTF-8"
                problems.append(f"{variable}: the file it names {reason}; give a readable file")
                continue
        put(tree, known[stem].keys, value or None)
        sources[known[stem].path] = variable
    return sources, problems
