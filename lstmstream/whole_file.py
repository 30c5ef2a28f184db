"""Files that commands write: one has its name once it is whole, since some of its rows would look like all of them."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import IO, Any

_BUFFER_BYTES = 131_072
_REMEDIES = {
    errno.ENOSPC: "free space on its disk, or write to another one",
    errno.EDQUOT: "this user's quota is used up there: free space, or write to another disk",
    errno.EFBIG: "a limit (ulimit -f) or the file system allows no larger one: raise the limit, or write elsewhere",
    errno.EROFS: "the disk is read-only: write to another one",
    errno.EIO: "the disk or the network fails: write to another one",
}


@contextmanager
def whole_file(path: Path, *, keep: bool = False) -> Iterator[IO[bytes]]:
    """A file to write; it takes the place of the one of before at the end, and after an error that one is as it was.

    `keep`: after an error what was written stays beside it, as NAME.part. Terminals, pipes and devices are written as
    they are, since a file in their place would be there for every program on the machine; and so is a file in a folder
    that nothing can be created in. Raises OSError with the file's name.
    """
    target = path.resolve()
    if _is_device(path) or (path.is_file() and not os.access(target.parent, os.W_OK)):
        with growing_file(path) as file:
            yield file
        return
    part = part_of(target) if keep else target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with growing_file(part) as file:
            yield file
            with named(part):
                file.flush()
                os.fsync(file.fileno())
        part.replace(target)
    except BaseException as error:
        if not keep:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and str(error.filename) == str(part):
                raise type(error)(error.errno, error.strerror, str(path)) from None
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is no use in a device or a pipe, which are refused. Raises OSError with the file's name."""
    check_replaceable(path)
    with whole_file(path) as file:
        file.write(content)


def check_replaceable(path: Path) -> None:
    """Raises OSError with the file's name where something is there that is not a file."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_device(path):
        raise FileExistsError(errno.EEXIST, "Is a device or a pipe, not a regular file", str(path))


def check_writable(path: Path) -> None:
    """Raises OSError where the file could not be written now, before there is anything to write."""
    check_replaceable(path)
    tempfile.TemporaryFile(dir=path.parent).close()


def _is_device(path: Path) -> bool:
    folder = path.parent.resolve()
    in_system = folder == Path("/dev") or folder.is_relative_to("/proc")  # /dev/stdout may be a link to a file
    return in_system or (path.exists() and not path.is_file())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """What fails within names the file: an error of a write does not, and would be taken for one of standard output."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None


def part_of(path: Path) -> Path:
    """Where `keep` leaves what was written."""
    return path.with_name(f"{path.name}.part")


def remedy_of(error: OSError) -> str:
    """What to do, for the end of a message that names file and reason; may be empty."""
    remedy = _REMEDIES.get(error.errno or 0)
    return "" if remedy is None else f"; {remedy}"


def growing_file(path: Path) -> IO[bytes]:
    """A file under its name from the start, for those who read it meanwhile. Raises OSError with the file's name."""
    return BufferedWriter(_NamedFile(path, "w"), _BUFFER_BYTES)


class _NamedFile(FileIO):
    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._path = path

    def write(self, data: Any) -> int:
        with named(self._path):
            return super().write(data)
