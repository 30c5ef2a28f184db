"""What a file is that was given for an ONNX file, by its first bytes, and what can be done with it. Loads nothing."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

_EXPORT = "export the model to ONNX, and import that"
_PICKLE_PROTOCOLS = {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}


class ForeignFile(NamedTuple):
    """A file of another kind."""

    what: str  # "it is ..."
    remedy: str  # for `lstmstream import`


SAVED_MODEL = ForeignFile(
    "a SavedModel of TensorFlow",
    "save the model as .keras, or convert the folder: python -m tf2onnx.convert --saved-model FOLDER --output m.onnx",
)
_STATE_DICT = ForeignFile(
    "a file of torch, as torch.save writes it",
    "give it the suffix .pt and describe its weights by --layout, or export the model: torch.onnx.export",
)
_EXPORTED = ForeignFile(
    "a program of torch.export",
    "export it to ONNX, and import that: torch.onnx.export(torch.export.load('model.pt2'), f='model.onnx')",
)
SCRIPT = ForeignFile("a program in TorchScript", "export the model that it was made of: torch.onnx.export")
_LITE = ForeignFile("a model of TensorFlow Lite", "import the model that it was converted from")
_PICKLED = ForeignFile(
    "a pickle of Python, which may run code when it is loaded",
    "export the model to ONNX; of a torch model save model.state_dict() as .pt, and describe it by --layout",
)
_SAFETENSORS = ForeignFile(
    "a safetensors file", "give it the suffix .safetensors, and describe its weights by --layout"
)
WEIGHTS = (_STATE_DICT, _PICKLED, _SAFETENSORS)  # the forms in which weights come; torch before 1.6 wrote pickles
HDF5 = b"\x89HDF\r\n\x1a\n"  # how such a file begins
_COMPRESSED = ("gzip", b"\x1f\x8b"), ("zstd", b"\x28\xb5\x2f\xfd"), ("bzip2", b"BZh"), ("xz", b"\xfd7zXZ")
_BY_START: tuple[tuple[bytes, ForeignFile], ...] = (
    (HDF5, ForeignFile("an HDF5 file, as of Keras 2", "load it in Keras 3, and save it as .keras")),
    (b"GGUF", ForeignFile("a GGUF file of a language model", "only recurrent models can be imported")),
    (b"\x93NUMPY", ForeignFile("an array of numpy", _EXPORT)),
    *((start, ForeignFile(f"compressed by {by}", "unpack it first")) for by, start in _COMPRESSED),
    (b"PAR1", ForeignFile("a Parquet file", "give the model, and not data")),
    (
        b"version https://git-lfs",
        ForeignFile("a pointer of Git LFS, and not the file itself", "fetch the file: git lfs pull"),
    ),
)


def recognise(content: bytes) -> ForeignFile | None:
    """What the bytes are, where they are known; never of an ONNX file."""
    if not content:
        return ForeignFile("empty", "write it again")
    if (known := next((found for start, found in _BY_START if content.startswith(start)), None)) is not None:
        return known
    if content[4:8] == b"TFL3":
        return _LITE
    if content[:2] in _PICKLE_PROTOCOLS:
        return _PICKLED
    if content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        return _SAFETENSORS
    return _archive(content) if zipfile.is_zipfile(io.BytesIO(content)) else _text(content)


def recognise_folder(path: Path) -> ForeignFile | None:
    """What the folder is, where that is known."""
    return SAVED_MODEL if (path / "saved_model.pb").is_file() else None


def _archive(content: bytes) -> ForeignFile:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        names = []
    if any("/code/" in name for name in names):
        return SCRIPT
    ends = {name.rpartition("/")[2] for name in names}
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        return _EXPORTED
    if "data.pkl" in ends:
        return _STATE_DICT
    if {"config.json", "model.weights.h5"} <= ends:
        return ForeignFile("a model of Keras", "give it the suffix .keras")
    if names and all(name.endswith(".npy") for name in names):
        return ForeignFile("arrays of numpy", _EXPORT)
    return ForeignFile("a zip archive", "unpack it first")


def _text(content: bytes) -> ForeignFile | None:
    try:
        start = content[:4096].decode()
    except UnicodeDecodeError as error:
        if error.start < min(len(content), 4096) - 3:
            return None
        start = content[: error.start].decode()
    if any(char < " " and char not in "\t\r\n\f" for char in start):
        return None
    if start.lstrip().lower().startswith(("<!doctype html", "<html")):
        return ForeignFile("a web page, perhaps of a download that failed", "fetch the file again")
    return ForeignFile("text", "give the model's file")
