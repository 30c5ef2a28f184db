"""Loads the daemon's configuration from its YAML file and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lstmstream.config.diagnostics import validate
from lstmstream.config.environment import apply_environment
from lstmstream.config.options import Option, options_of
from lstmstream.config.schema import Config
from lstmstream.config.yaml_file import read_yaml


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration of the YAML file at `path` (None: no file), overridden by the variables in `environ`.

    Raises CannotServe with one line for each fault, all of them at once.
    """
    tree = {} if path is None else read_yaml(path)
    overrides = apply_environment(tree, options(), environ)
    return validate(Config, tree, Path() if path is None else path.parent, overrides)


def options() -> list[Option]:
    """Return every option of the daemon, in the order of the file."""
    return list(options_of(Config).values())
