"""The optional compiled codec, `native/codec.c`: whether it is there, and whether it is used.

`make` compiles it into this package where there is a C compiler. Without it everything works, with the same bytes.
LSTMSTREAM_CODEC=pure switches it off, LSTMSTREAM_CODEC=compiled refuses to start without it.
"""

from __future__ import annotations

import os
from types import ModuleType

from lstmstream.errors import CannotServe

VARIABLE = "LSTMSTREAM_CODEC"
INTERFACE = 6  # as native/codec.c has it: a file that was compiled for another version of this package is not used

_module: ModuleType | None
try:
    from lstmstream import _codec as _module  # type: ignore[attr-defined, no-redef, unused-ignore]
except ImportError:
    _module = None


def load() -> ModuleType | None:
    """The compiled module; None where the pure Python code is to be used. Raises CannotServe."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "pure", "compiled"):
        raise CannotServe(f"{VARIABLE} must be pure or compiled, not {wanted!r}; without it the faster one is taken")
    found = None if _module is None or _module.INTERFACE != INTERFACE else _module
    if found is None and wanted == "compiled":
        missing = "there is none" if _module is None else "it is of another version"
        raise CannotServe(f"{VARIABLE} is compiled, but {missing}; run: python native/build.py")
    return None if wanted == "pure" else found


def describe() -> str:
    """Which one is used, for a person."""
    return "pure Python" if load() is None else "compiled"
