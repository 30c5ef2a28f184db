"""Reads the small files that a configuration consists of or names: the YAML file itself, secrets, certificates."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 1_000_000  # far more than any such file needs, far less than what would hurt


class UnreadableFile(Exception):
    """Why a file cannot be read, without its path: some users put the secret itself there."""


def read_small_file(path: Path) -> bytes:
    """Return the file's content, at most MAX_BYTES.

    Raises UnreadableFile. A pipe or a device, which may never end, is not read.
    """
    try:
        if not path.is_file():
            raise UnreadableFile("is not a regular file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(f"cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise UnreadableFile(f"is larger than {MAX_BYTES} bytes")
    return content


def read_secret(path: Path) -> str:
    """Return the text of a file with a secret, without the line feed at its end.

    Raises UnreadableFile and UnicodeDecodeError.
    """
    return read_small_file(path).decode().removesuffix("\n").removesuffix("\r")


@dataclass(frozen=True, slots=True)
class RenewableSecret:
    """A secret whose file, where it has one, may be replaced while the daemon runs."""

    text: str = field(repr=False)  # as it was at the start
    file: Path | None = None

    def current(self) -> str:
        """What the file holds now; the text of the start where it cannot be read, or is empty."""
        if self.file is None:
            return self.text
        try:
            return read_secret(self.file) or self.text
        except (UnreadableFile, UnicodeDecodeError):
            return self.text
