"""Optional dependencies: what an extra adds, and the message for a user who lacks it.

A module that needs an optional package imports it at its top; code that imports such a module calls `require` first.
This module loads none of the packages.
"""

from __future__ import annotations

from importlib.util import find_spec

from lstmstream.errors import CannotServe

PACKAGES = {
    "avro": ("fastavro",),
    "tables": ("polars",),
    "import": ("onnx", "h5py", "safetensors"),
    "train": ("torch", "onnx", "optuna", "polars"),
}


def require(extra: str, what: str, *packages: str, otherwise: str = "") -> None:
    """Raises CannotServe naming the extra to install, unless its packages are installed.

    `what` is the command or the file that needs them and begins the message; `packages` limits the check to some of
    the extra's packages; `otherwise` is a way to do without them, a clause that ends the message.
    """
    missing = [name for name in packages or PACKAGES[extra] if find_spec(name) is None]
    if missing:
        alternative = f", or {otherwise}" if otherwise else ""
        raise CannotServe(f"{what} needs {_list(missing)}; {install_hint(extra)}{alternative}")


def install_hint(extra: str) -> str:
    """How to install an extra. lstmstream is on no package index, so it is installed from its repository."""
    return f"in a clone of lstmstream, run: pip install '.[{extra}]'"


def require_for_table(path: object) -> None:
    """Raises CannotServe where polars, which reads the CSV or Parquet file at `path`, is not installed."""
    require("tables", f"{path}: reading CSV or Parquet", otherwise="convert the file to JSONL")


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
