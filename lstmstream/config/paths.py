"""Where an option is: its keys from the top; its path, the same joined by dots; its environment variable."""

from __future__ import annotations

import re
from typing import Any

PREFIX = "LSTMSTREAM"

Keys = tuple[str, ...]  # from the top of the file; the last one may contain dots: ("kafka", "properties", "client.id")


def variable_of(keys: Keys) -> str:
    """Return the name of the environment variable that sets the option at `keys`."""
    name = "__".join(keys) if len(keys) > 1 else f"_{keys[0]}"
    return f"{PREFIX}_{name}".replace(".", "_").upper()


def is_within(path: str, section: str) -> bool:
    """Whether `path` is `section` itself or an option below it."""
    return f"{path}.".startswith(f"{section}.")


def redacted_key(key: str) -> str:
    """Return a key in a form that is safe to show: without its space, YAML takes `password:secret` for one key."""
    name = re.split(r"[^\w.-]", key, maxsplit=1)[0][:80]
    return name if name == key else f"{name}…"


def set_in(tree: dict[str, Any], keys: Keys, value: object) -> None:
    """Set the value at `keys`, creating missing sections. Where a section is not a mapping, validation reports it."""
    *sections, last = keys
    branch = tree
    for section in sections:
        if branch.get(section) is None:
            branch[section] = {}
        branch = branch[section]
        if not isinstance(branch, dict):
            return
    branch[last] = value


def delete_in(tree: dict[str, Any], keys: Keys) -> None:
    """Delete the value at `keys`, if there is one. For an entry of a list, delete the whole list."""
    *sections, last = keys
    branch = tree
    for section in sections:
        if not isinstance(branch.get(section), dict):
            last = section
            break
        branch = branch[section]
    branch.pop(last, None)
