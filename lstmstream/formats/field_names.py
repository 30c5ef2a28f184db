"""The message for a field that is asked for and is not in the data."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

MAX_LISTED = 30  # names of fields in a message


def unknown_field(where: object, name: str, available: Iterable[str]) -> str:
    """The message for a field that the data do not have; `available` are names that they have."""
    names = list(available)
    known = ", ".join(map(repr, islice(names, MAX_LISTED))) or "none"
    remedy = "use one of these, or data that have the field"
    if (similar := similar_name(name, names)) is not None:
        remedy = f"did you mean {similar!r}? Rename it in the data, or use data that have the field"
    return f"{where}: there is no field {name!r}; it has {known}; {remedy}"


def similar_name(name: str, available: Iterable[str]) -> str | None:
    """A name that differs in case, spaces, separators or a few letters only; None if there is none."""
    plain = {_plain(other): other for other in available}
    if _plain(name) in plain:
        return plain[_plain(name)]
    close = get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum()) or name
