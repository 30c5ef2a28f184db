"""The top level of a configuration file: what the daemon's and the training's have in common."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

from pydantic import PrivateAttr, SecretStr

from lstmstream.config.files import RenewableSecret
from lstmstream.config.paths import Keys
from lstmstream.config.types import Section


class Conflict(NamedTuple):
    """A fault between options. Reported at the first of `paths`, unless one of them is wrong by itself."""

    paths: tuple[str, ...]
    text: str


class Document(Section):
    """A whole configuration file. Subclasses declare its options, and find conflicts between them."""

    # Values for required options. They stand in for those that are missing or wrong, so that the rest can be checked.
    placeholders: ClassVar[Mapping[Keys, str]] = {}

    _folder: Path = PrivateAttr(default_factory=Path)
    _files: Mapping[str, Path] = PrivateAttr(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder that relative paths start from: the configuration file's, absolute."""
        return self._folder

    @property
    def files(self) -> Mapping[str, Path]:
        """The file that an option was read from, by the option's path: those set by a variable that ends in `_FILE`."""
        return self._files

    def secret(self, option: str) -> RenewableSecret | None:
        """The secret that the option of this path has; None where it is not set."""
        value = functools.reduce(getattr, option.split("."), self)
        assert value is None or isinstance(value, SecretStr), option
        return None if value is None else RenewableSecret(value.get_secret_value(), self._files.get(option))

    def conflicts(self) -> Iterable[Conflict]:
        """Find options that are valid by themselves and cannot be used together. May read files that options name."""
        return ()
