"""Reads the small files that a configuration is made of or names: itself, secrets, certificates."""

from __future__ import annotations

from pathlib import Path

LIMIT = 1_000_000  # bytes: far more than any such file, far less than what hurts


class Unreadable(Exception):
    """Why a file cannot be read. Its path stays unsaid: some put the secret itself there."""


def read(path: Path) -> bytes:
    """All of it. Raises Unreadable; a pipe or a device, which may never end, is no file."""
    try:
        if not path.is_file():
            raise Unreadable("is no file" if path.exists() else "does not exist")
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None
    if len(content) > LIMIT:
        raise Unreadable(f"is larger than {LIMIT} bytes")
    return content
