"""Loads the daemon's configuration from its YAML file and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lstmstream.config.diagnostics import validate
from lstmstream.config.environment import apply_environment
from lstmstream.config.options import Option, options_of
from lstmstream.config.places import NOWHERE
from lstmstream.config.schema import Config
from lstmstream.config.stages import stages_of
from lstmstream.config.yaml_file import read_placed
from lstmstream.errors import CannotServe


def load_config(path: Path | None, environ: Mapping[str, str] = os.environ, *, stage: str | None = None) -> Config:
    """Return the configuration of the YAML file at `path` (None: no file), overridden by the variables in `environ`.

    `stage`: the one to take of a file with `stages`. Raises CannotServe with one line for each fault, all at once.
    """
    tree, places = ({}, NOWHERE) if path is None else read_placed(path)
    folder = Path() if path is None else path.parent
    if "task" in tree and "features" in tree:
        raise CannotServe(f"{path}: is a configuration for training, which `lstmstream train` reads; give the daemon's")
    if "stages" in tree:
        found = {one.name: one.config for one in stages_of(tree, folder, environ, places)}
        if stage not in found:
            names = ", ".join(found)
            raise CannotServe(
                f"{path}: has the stages {names}; choose one of them with --stage NAME (dead-letter: --stage-name)"
            )
        return found[stage]
    if stage is not None:
        raise CannotServe(f"--stage {stage}: {path} has no stages; leave the option out")
    overrides = apply_environment(tree, options(), environ)
    return validate(Config, tree, folder, overrides, places)


def options() -> list[Option]:
    """Return every option of the daemon, in the order of the file."""
    return list(options_of(Config).values())
