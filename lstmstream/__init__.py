"""Score a live Kafka stream with a recurrent model that remembers every key.

Public: `lstmstream.Scorer` and `lstmstream.testing.TestDriver` (docs/python.md). All other names may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstmstream.errors import CannotServe
    from lstmstream.scorer import KeyState, Scorer

__version__ = "0.1.0"
__all__ = ["CannotServe", "KeyState", "Scorer", "__version__"]

_HOMES = {"CannotServe": "lstmstream.errors", "KeyState": "lstmstream.scorer", "Scorer": "lstmstream.scorer"}


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: a command that does not need ONNX Runtime starts without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 -- seldom needed

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
