"""Where an option stands: its keys, from the top; its path, the same with dots between; its environment variable."""

from __future__ import annotations

import re
from typing import Any

PREFIX = "LSTMSTREAM"


def variable_of(keys: tuple[str, ...]) -> str:
    """The environment variable of the option at `keys`."""
    name = "__".join(keys) if len(keys) > 1 else f"_{keys[0]}"
    return f"{PREFIX}_{name}".replace(".", "_").upper()


def starts(path: str, other: str) -> bool:
    """Whether `path` is `other` or stands within it."""
    return f"{path}.".startswith(f"{other}.")


def shown(key: str) -> str:
    """A key as it may be shown: `password:secret`, for want of a space, is one key to YAML."""
    name = re.split(r"[^\w.-]", key, maxsplit=1)[0][:80]
    return name if name == key else f"{name}…"


def put(tree: dict[str, Any], keys: tuple[str, ...], value: str | None) -> None:
    """Set it, making the sections on the way. A section that is none stays: that is told later."""
    *sections, last = keys
    branch = tree
    for section in sections:
        if branch.get(section) is None:
            branch[section] = {}
        branch = branch[section]
        if not isinstance(branch, dict):
            return
    branch[last] = value


def remove(tree: dict[str, Any], keys: tuple[str, ...]) -> None:
    """Take away what stands there, if anything does; with an entry of a list goes the whole list."""
    *sections, last = keys
    branch = tree
    for section in sections:
        if not isinstance(branch.get(section), dict):
            last = section
            break
        branch = branch[section]
    branch.pop(last, None)
