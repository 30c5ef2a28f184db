"""One training at a time writes a model file: two would write each other's checkpoint."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lstmstream.errors import CannotServe

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}  # of some network file systems


@contextmanager
def sole_training(out: Path) -> Iterator[None]:
    """Within the block no other process trains to the model file `out`. Raises CannotServe where one does.

    The lock ends with the process, also by kill -9; its file is then left behind, and taken by the next training.
    """
    path = out.with_name(f".{out.name}.lock")
    number = _locked(path)
    if number is None:
        raise CannotServe(f"{out}: another training writes it; wait for its end, or name another file with --out")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)


def _locked(path: Path) -> int | None:
    """The descriptor of the lock's file; None where another process holds it."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(number)
            return None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return number
            os.close(number)
            raise
        try:
            if os.path.samestat(os.fstat(number), path.stat()):
                return number
        except FileNotFoundError:
            pass  # the one that held it has just removed it
        os.close(number)
