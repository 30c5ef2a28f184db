"""Files that commands write are whole, or have another name; what cannot be written is named."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from lstmstream.whole_file import check_replaceable, named, remedy_of, whole_file, write_whole
from tests.file_limit import limited_files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("keep", [False, True])
def test_a_file_is_replaced_once_the_new_one_is_whole(tmp_path: Path, keep: bool) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"before")
    with whole_file(file, keep=keep) as out:
        out.write(b"new")
        out.flush()
        assert file.read_bytes() == b"before"
    assert (file.read_bytes(), names(tmp_path)) == (b"new", {"f"})


@pytest.mark.parametrize("keep", [False, True])
def test_after_an_error_the_file_of_before_is_as_it_was(tmp_path: Path, keep: bool) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"before")

    def interrupted() -> None:
        with whole_file(file, keep=keep) as out:
            out.write(b"some")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_bytes() == b"before"
    assert names(tmp_path) == ({"f", "f.part"} if keep else {"f"})
    if keep:
        assert (tmp_path / "f.part").read_bytes() == b"some"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_write_that_fails_names_the_file(tmp_path: Path, keep: bool, size: int) -> None:
    """At once, or when the rest of it is written."""
    file = tmp_path / "f"
    with pytest.raises(OSError, match="File too large") as failed, limited_files(5), whole_file(file, keep=keep) as out:
        out.write(b"x" * size)
    assert failed.value.filename == f"{file}.part" if keep else str(file)
    assert failed.value.errno == errno.EFBIG
    assert not file.exists()
    assert remedy_of(failed.value).startswith("; a limit (ulimit -f)")


def test_an_error_of_a_write_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    with pytest.raises(OSError, match="File too large") as failed, limited_files(5), named(file):
        file.write_bytes(b"x" * 10)
    assert failed.value.filename == str(file)
    with pytest.raises(FileNotFoundError) as failed, named(file):
        (tmp_path / "other").read_bytes()
    assert failed.value.filename == str(tmp_path / "other")


@pytest.mark.parametrize("keep", [False, True])
def test_a_disk_that_says_only_at_the_end_that_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    file = tmp_path / "f"
    with pytest.raises(OSError, match="No space left") as failed, whole_file(file, keep=keep) as out:
        out.write(b"x")
    assert failed.value.filename == (f"{file}.part" if keep else str(file))
    assert not file.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "no" / "f"
    with pytest.raises(FileNotFoundError) as failed, whole_file(file):
        """Not reached."""
    assert failed.value.filename == str(file)
    assert remedy_of(failed.value) == ""


def test_a_link_stays_one(tmp_path: Path) -> None:
    file, link = tmp_path / "f", tmp_path / "link"
    link.symlink_to(file)
    with whole_file(link) as out:
        out.write(b"new")
    assert (file.read_bytes(), link.is_symlink()) == (b"new", True)


def test_devices_and_pipes_are_written_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failed, whole_file(Path("/dev/full")) as out:
        out.write(b"x")
    assert failed.value.filename == "/dev/full"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(pipe) as out:
        out.write(b"x")
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    assert names(tmp_path) == {"pipe"}


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match=r"device or a pipe, not a regular file.*pipe"):
        write_whole(pipe, b"x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(tmp_path) == {"pipe"}


def test_what_is_in_dev_is_refused(tmp_path: Path) -> None:
    """Asked only: a write that went wrong would take the device from every program on the machine."""
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    for path in (Path("/dev/null"), Path("/dev/stdout"), Path("/dev/not-there"), Path("/proc/self/fd/1"), link):
        with pytest.raises(FileExistsError, match="device or a pipe"):
            check_replaceable(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        write_whole(tmp_path, b"x")
