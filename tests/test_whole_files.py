"""A file is there whole or not at all, and takes the place of no device and no pipe."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from lstmstream.whole_files import check_replaceable, whole_file, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    write_whole(file, b"first")
    with whole_file(file) as opened:
        opened.write(b"second")
        opened.flush()
        assert file.read_bytes() == b"first"
    assert file.read_bytes() == b"second"
    assert names(tmp_path) == ["m.onnx"]


def test_an_error_leaves_what_was_there_and_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    write_whole(file, b"first")

    def write_half() -> None:
        with whole_file(file) as opened:
            opened.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a full disk: the error of a write has no name

    with pytest.raises(OSError, match="No space left on device") as failed:
        write_half()
    assert failed.value.filename == str(file)
    assert file.read_bytes() == b"first"
    assert names(tmp_path) == ["m.onnx"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match=r"device or a pipe, not a regular file.*pipe"):
        write_whole(pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


def test_what_is_in_dev_is_not_replaced(tmp_path: Path) -> None:
    """Asked only: a write that went wrong would take the device from every program on the machine."""
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (Path("/dev/null"), Path("/dev/stdout"), Path("/dev/not-there"), Path("/proc/self/fd/1"), link):
        with pytest.raises(FileExistsError, match="device or a pipe"):
            check_replaceable(path)


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        write_whole(tmp_path, b"x")
