"""Brings weights that an exporter wrote beside an ONNX file into the model, so that later code sees one file.

torch.onnx.export writes MODEL.onnx.data by default. Only regular files in the folder of the model are read, never one
that a link or a path leads to, and no more bytes than their sizes state.
"""

from __future__ import annotations

import math
import os
import re
import stat
from pathlib import Path
from typing import Any

from lstmstream.errors import CannotServe
from lstmstream.model import onnx_proto
from lstmstream.model.onnx_proto import quote_untrusted

_EXTERNAL = 1
_KEYS = {"location", "offset", "length", "checksum"}


def embed_external_data(model: Any, folder: Path, file: str, max_bytes: int) -> dict[str, Path]:
    """Puts the external data of all tensors into `model`, a ModelProto of onnx_proto, in place.

    Returns the files that were read, by name. Raises CannotServe naming tensor and file.
    """
    used: dict[str, Path] = {}
    total = 0
    for located in onnx_proto.walk(model):
        tensor = located.message
        if located.kind != "TensorProto" or not (tensor.data_location == _EXTERNAL or tensor.external_data):
            continue
        where = f"import {file}: {located.where}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        size = _bytes_of(tensor, where)
        total += size
        if total > max_bytes:
            raise CannotServe(f"import {file}: with its external data it has more than {max_bytes} bytes")
        name = entries.get("location", "")
        if set(entries) - _KEYS or not name:
            raise CannotServe(f"{where}: its external data is not described as ONNX does; export the model again")
        path = _checked_path(folder, name, where)
        offset, length = (_number(entries, key, where) for key in ("offset", "length"))
        if length is not None and length != size:
            raise CannotServe(f"{where}: its shape needs {size} bytes, but its external data has {length}")
        tensor.raw_data = _read(path, offset or 0, size, where, max_bytes)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        used[path.name] = path
    return used


def _bytes_of(tensor: Any, where: str) -> int:
    width = onnx_proto.bytes_per_value(tensor.data_type)
    if width is None or any(size < 0 for size in tensor.dims):
        raise CannotServe(f"{where}: a tensor of this type or shape cannot be read from external data")
    return int(math.prod(tensor.dims)) * width


def _number(entries: dict[str, str], key: str, where: str) -> int | None:
    text = entries.get(key)
    if text is None or text == "":
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise CannotServe(f"{where}: {key} of its external data is {quote_untrusted(text)}, not a number of bytes")
    return int(text)


def _checked_path(folder: Path, name: str, where: str) -> Path:
    """The file `name` in the folder. Raises CannotServe for a path, a link and anything but a regular file."""
    plain = name.removeprefix("./")
    if plain in {"", ".", ".."} or any(char in plain for char in "/\\\0"):
        raise CannotServe(
            f"{where}: external data in {quote_untrusted(name)} is not accepted: only a file in the folder of the model"
            " is read; put it there, or save the weights in the file: torch.onnx.export(..., external_data=False)"
        )
    return folder / plain


def _read(path: Path, offset: int, size: int, where: str, max_bytes: int) -> bytes:
    shown = quote_untrusted(path.name)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise CannotServe(f"{where}: its external data {shown} is a link or not a regular file; copy the file")
            if found.st_size > max_bytes:
                raise CannotServe(f"{where}: its external data {shown} has more than {max_bytes} bytes")
            if offset + size > found.st_size:
                raise CannotServe(
                    f"{where}: its external data {shown} has {found.st_size} bytes, but it needs bytes {offset} to"
                    f" {offset + size}; the file is cut short or belongs to another model: export it again"
                )
            opened.seek(offset)
            content = opened.read(size)
    except FileNotFoundError as error:
        raise CannotServe(
            f"{where}: its external data {shown} is not beside the model; copy it into the same folder, or save the"
            " weights in the file: torch.onnx.export(..., external_data=False)"
        ) from error
    except OSError as error:
        reason = "it is a link; copy the file" if path.is_symlink() else error.strerror
        raise CannotServe(f"{where}: its external data {shown} cannot be read ({reason})") from error
    if len(content) != size:
        raise CannotServe(f"{where}: its external data {shown} changed while it was read; try again")
    return content
