"""Reads the tensors of a state dict from .safetensors files, and with torch from .pt files, as float32 arrays."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmstream.errors import CannotServe
from lstmstream.extras import require
from lstmstream.importer.graph import printable
from lstmstream.model.foreign_files import SCRIPT, WEIGHTS, recognise
from lstmstream.model.onnx_proto import quote_untrusted

Array = NDArray[np.float32]
MAX_FILE_BYTES = 2**31 - 1
_NESTED = ("state_dict", "model_state_dict", "model")  # keys under which training loops save the state dict
_DTYPES: dict[str, Any] = {  # of safetensors; BF16, which numpy does not have, is read as its bits
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "BOOL": np.bool_,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip


def read_content(file: Path) -> bytes:
    """The bytes of a file of weights. Raises CannotServe where it cannot be read or is too large."""
    try:
        if not file.is_file():
            raise CannotServe(f"import {file}: no such file")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CannotServe(f"import {file}: more than {MAX_FILE_BYTES} bytes")
        return file.read_bytes()
    except OSError as error:
        raise CannotServe(f"import {file}: cannot be read ({error.strerror})") from error


def read_tensors(file: Path, content: bytes) -> dict[str, Array]:
    """Every tensor by its name, as float32. Raises CannotServe for anything else in the file, and for NaN or infinity.

    `content` are the bytes of `file`, whose suffix tells the format. Nothing is unpickled (torch's weights_only).
    """
    tensors = _safetensors(file, content) if file.suffix == ".safetensors" else _torch_tensors(file, content)
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise CannotServe(f"import {file}: {quote_untrusted(name)} is not finite (NaN or infinity)")
    return tensors


def _safetensors(file: Path, content: bytes) -> dict[str, Array]:
    from safetensors import deserialize  # noqa: PLC0415 -- only for these files

    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
    except Exception as error:  # safetensors raises its own class
        raise _damaged(file, error) from error
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise CannotServe(
                f"import {file}: {quote_untrusted(name)} has dtype {entry['dtype']}; save the float32 model"
            )
    _check_size(file, 4 * sum(math.prod(entry["shape"]) for _, entry in entries))
    tensors = {}
    for name, entry in entries:
        values = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            tensors[str(name)] = values.astype(np.float32)
    return tensors


def _torch_tensors(file: Path, content: bytes) -> dict[str, Array]:
    require("train", f"import {file}: reading {file.suffix} files", "torch", otherwise="save it as .safetensors")
    import torch  # noqa: PLC0415 -- an optional dependency, which takes a second to import

    state_dict = _torch_state_dict(file, content)
    for name, value in state_dict.items():
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_nested or value.is_quantized or value.is_complex():
            raise CannotServe(
                f"import {file}: {quote_untrusted(name)} is not a dense tensor (it is sparse, quantised, nested,"
                " complex or without data); save model.state_dict() of the float32 model"
            )
    _check_size(file, 4 * sum(value.numel() for value in state_dict.values()))  # a stride of 0 repeats a few bytes
    tensors = {}
    for name, value in state_dict.items():
        try:
            tensors[name] = value.detach().to(torch.float32).contiguous().numpy()
        except Exception as error:  # torch raises many kinds
            raise CannotServe(
                f"import {file}: {quote_untrusted(name)} cannot be read as float32 ({printable(error)}); save it in"
                " that type"
            ) from error
    return tensors


def check_is_weights(file: Path, content: bytes) -> None:
    """Raises CannotServe where a file with the suffix of weights holds a program, or another kind of file."""
    found = recognise(content)
    if found == SCRIPT:
        raise CannotServe(
            f"import {file}: is TorchScript, a program with its weights; save the weights alone:"
            ' torch.save(torch.jit.load("model.pt").state_dict(), "weights.pt")'
        )
    if found is not None and found not in WEIGHTS:
        raise CannotServe(f"import {file}: is {found.what}; {found.remedy}")


def _torch_state_dict(file: Path, content: bytes) -> dict[str, Any]:
    """The tensors of the file as torch has loaded them."""
    import torch  # noqa: PLC0415

    try:
        if zipfile.is_zipfile(io.BytesIO(content)):  # torch unpacks members without a limit
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                _check_size(file, sum(member.file_size for member in archive.infolist()))
            check_is_weights(file, content)
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except CannotServe:
        raise
    except Exception as error:  # torch raises many kinds
        raise _damaged(file, error) from error
    for key in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CannotServe(f"import {file}: not a state dict (names and tensors); save model.state_dict()")
    return {str(name): value for name, value in loaded.items()}


def _damaged(file: Path, error: Exception) -> CannotServe:
    reason = printable(str(error).strip().split("\n")[0].split(". ")[0])
    return CannotServe(
        f"import {file}: holds more than weights, or is damaged ({reason}); save model.state_dict() with torch.save"
    )


def _check_size(file: Path, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise CannotServe(
            f"import {file}: unpacked, its weights take {size} bytes, at most {MAX_FILE_BYTES} are accepted; save"
            " only model.state_dict()"
        )
