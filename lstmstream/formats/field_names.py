"""The message for a field that is asked for and is not in the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice

MAX_LISTED = 30  # names of fields in a message


def unknown_fields(where: object, names: Sequence[str], available: Iterable[str]) -> str:
    """One message for all fields that the data do not have; `names` is not empty."""
    if len(names) == 1:
        return unknown_field(where, names[0], available)
    there = list(available)
    similar = [
        f"{name!r}: did you mean {other!r}?" for name in names if (other := similar_name(name, there)) is not None
    ]
    hint = " ".join(similar[:MAX_LISTED]) or "use data with these fields"
    return f"{where}: no fields {listed(names)}; the fields are {listed(there)}; {hint}"


def unknown_field(where: object, name: str, available: Iterable[str]) -> str:
    """The message for a field that the data do not have; `available` are names that they have."""
    names = list(available)
    remedy = "use one of these, or data with this field"
    if (similar := similar_name(name, names)) is not None:
        remedy = f"did you mean {similar!r}? Use that name, or rename the field in the data"
    return f"{where}: no field {name!r}; the fields are {listed(names)}; {remedy}"


def similar_name(name: str, available: Iterable[str]) -> str | None:
    """A name that differs in case, spaces, separators or a few letters only; None if there is none."""
    names = list(available)
    if (same := same_name(name, names)) is not None:
        return same
    plain = {_plain(other): other for other in names}
    close = get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return plain[close[0]] if close else None


def same_name(name: str, available: Iterable[str]) -> str | None:
    """A name that differs in case, spaces and separators only; None if there is none."""
    plain = {_plain(other): other for other in available}
    return plain.get(_plain(name))


def names_of(documents: Iterable[Iterable[str]]) -> list[str]:
    """Names that the first documents have, each once."""
    return list(dict.fromkeys(islice((name for document in documents for name in document), 10 * MAX_LISTED)))


def listed(names: Iterable[str], *, none: str = "none") -> str:
    """The first names, for a message; `none` where there are none."""
    return ", ".join(map(repr, islice(names, MAX_LISTED))) or none


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum()) or name
