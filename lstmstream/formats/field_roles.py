"""What the fields of an event are read as: decides which columns of a table are read, and which types they may have."""

from __future__ import annotations

from typing import NamedTuple


class FieldRoles(NamedTuple):
    """Names of fields by what they are read as; a field may have several roles."""

    keys: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()  # numbers of a size above 1
    categories: tuple[str, ...] = ()
    passthrough: tuple[str, ...] = ()  # any value, written to predictions

    def all(self) -> tuple[str, ...]:
        """Every field once, in the order above."""
        return tuple(dict.fromkeys(name for names in self for name in names))
