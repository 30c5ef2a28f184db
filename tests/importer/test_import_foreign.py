"""What is not an ONNX file is named, with what to do; and what weights are called in the file."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lstmstream.errors import CannotServe
from lstmstream.importer.command import import_model
from lstmstream.model import load_model

LAYOUT = 'layers: "{0}lstm."\nhead: {{linear: "{0}head.", activation: sigmoid}}\nfeatures: [amount, distance]\n'


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(2, 3, batch_first=True)
        self.head = torch.nn.Linear(3, 1)

    def forward(self, x: Any) -> Any:
        return torch.sigmoid(self.head(self.lstm(x)[0]))


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, "x")
    return file.getvalue()


def refusal(file: Path, **options: Any) -> str:
    with pytest.raises(CannotServe) as refused:
        import_model(file, out=file.parent / "out.onnx", **options)
    assert not (file.parent / "out.onnx").exists()
    return str(refused.value)


FOREIGN = [
    ("m.pkl", pickle.dumps({"a": np.ones(3)}), "a pickle of Python, which may run code when it is loaded; export the"),
    ("m.joblib", pickle.dumps([1], protocol=3), "a pickle of Python"),
    ("m.pt2", archive("m/archive_format", "m/models/model.json"), "a program of torch.export; export it to ONNX"),
    ("m.ts", archive("m/code/a.py", "m/data.pkl"), "a program in TorchScript; export the model that it was made of"),
    ("m.weights", saved({"a": torch.ones(2)}), "a file of torch, as torch.save writes it; give it the suffix .pt"),
    (
        "m.h5x",
        b"\x89HDF\r\n\x1a\n" + bytes(50),
        'in Keras 3 and save it as .keras: keras.models.load_model("model.h5")',
    ),
    ("m.tflite", b"\x1c\0\0\0TFL3" + bytes(50), "a model of TensorFlow Lite; import the model that it was converted"),
    ("m.npz", archive("a.npy", "b.npy"), "arrays of numpy; export the model to ONNX"),
    ("m.zip", archive("a.txt"), "a zip archive; unpack it first"),
    ("m.onnx.gz", gzip.compress(b"x"), "compressed by gzip; unpack it first"),
    ("m", struct.pack("<Q", 2) + b"{}    ", "a safetensors file; give it the suffix .safetensors"),
    ("m.onnx", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, and not the file itself; fetch"),
    ("m.onnx", b"<!DOCTYPE html>\n<html>", "a web page, perhaps of a download that failed; fetch the file again"),
    ("m.json", b'{"class_name": "Sequential"}', "text; give the model's file"),
    ("m.csv", "größe,b\n1,2\n".encode(), "text; give the model's file"),
    ("m.onnx", b"", "it is empty; write it again"),
]


@pytest.mark.parametrize(("name", "content", "message"), FOREIGN)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert message in refusal(file)
    with pytest.raises(CannotServe, match=r"is not an ONNX file: it is .*; give a file written by lstmstream train or"):
        load_model(file)


def test_a_saved_model_is_named_by_its_folder_and_by_its_graph(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    assert "saved: a folder; give the model's file" in refusal(folder)
    (folder / "saved_model.pb").write_bytes(b"\x08\x01\x12\x05hello")
    for path in (folder, folder / "saved_model.pb"):
        assert "a SavedModel of TensorFlow; save the model as .keras, or convert the folder" in refusal(path)
        assert f"--saved-model {folder} --output m.onnx" in refusal(path)


@pytest.mark.parametrize(("name", "content", "message"), [FOREIGN[2], FOREIGN[3], *FOREIGN[-4:-2]])
def test_what_is_called_weights_is_looked_at_before_a_layout_is_asked_for(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / f"{name}.pt"
    file.write_bytes(content)
    said = refusal(file)
    assert "--layout YAML" not in said
    assert message.partition(";")[0].removeprefix("a program in ") in said


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net."])
def test_the_prefixes_in_the_file_are_named(tmp_path: Path, prefix: str) -> None:
    """Of DataParallel, of torch.compile and of Lightning, whose suffix is .ckpt."""
    weights = {prefix + name: value for name, value in Net().state_dict().items()}
    file, layout = tmp_path / "m.ckpt", tmp_path / "layout.yaml"
    file.write_bytes(saved({"state_dict": weights, "epoch": 3}))
    layout.write_text(LAYOUT.format(""))
    assert f"the file has layers: '{prefix}lstm.', head.linear: '{prefix}head.'; fix layout.yaml" in refusal(
        file, layout=layout
    )
    layout.write_text(LAYOUT.format(prefix))
    assert import_model(file, out=tmp_path / "m.onnx", layout=layout) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": float("nan")}, "import: --threshold nan: must be a finite number"),
        ({"threshold": float("-inf")}, "import: --threshold -inf: must be a finite number"),
        ({"name": " "}, "--name and --version: must not be empty"),
        ({"version": ""}, "--name and --version: must not be empty"),
    ],
)
def test_options_are_looked_at_before_the_model(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert message in refusal(tmp_path / "not-there.onnx", **options)


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for out, reason in (("folder", "Is a directory"), ("/dev/null", "Is a device or a pipe, not a regular file")):
        with pytest.raises(CannotServe, match=rf"{out}: cannot be written \({reason}\)"):
            import_model(tmp_path / "not-there.onnx", out=tmp_path / out)
    with pytest.raises(CannotServe, match=r"the folder .*nowhere does not exist"):
        import_model(tmp_path / "not-there.onnx", out=tmp_path / "nowhere" / "m.onnx")
