"""Files that are there once they are whole: a part of one would look like all of it.

The content goes to a file beside the path, which then takes the path's name. That would also put a file in the place
of a device or of a pipe, such as /dev/null, for every program on the machine: such a path is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def check_replaceable(path: Path) -> None:
    """Raise OSError, which names the path, where it is something that a file must not replace."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    folder = path.parent.resolve()
    in_system = folder == Path("/dev") or folder.is_relative_to("/proc")  # /dev/stdout may be a link to a file
    if in_system or (path.exists() and not path.is_file()):
        raise FileExistsError(errno.EEXIST, "Is a device or a pipe, not a regular file", str(path))


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which has the name `path` only after the block, complete and on the disk.

    After an error the path is as it was. Raises OSError, which names the path.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        check_replaceable(path)
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in {None, str(unfinished)}:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def write_whole(path: str | Path, content: bytes) -> None:
    """Write the file at once. Raises OSError, which names the path."""
    with whole_file(path) as file:
        file.write(content)
