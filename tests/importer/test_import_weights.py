"""Weights without a graph, and a YAML that describes them: the model of torch, or an error."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lstmstream.errors import CannotServe
from lstmstream.importer import weights
from lstmstream.importer.command import import_model
from lstmstream.importer.weight_files import read_tensors
from lstmstream.model import load_model
from tests.importer import source_files
from tests.importer.source_files import F, H, draw, refusal

pytestmark = pytest.mark.torch

LAYOUT = "cell: {cell}\nlayers: {layers}\nhead: {{linear: fc., activation: {activation}}}\nfeatures: {features}\n"


class Net(nn.Module):
    def __init__(self, cell: Any, out: int, **options: Any) -> None:
        super().__init__()
        self.rnn = cell(F, H, batch_first=True, **options)
        self.fc = nn.Linear(options.get("proj_size") or H, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.rnn(x)[0])


def layout_file(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "layout.yaml"
    given = {"cell": "lstm", "layers": "rnn.", "activation": "none", "features": "[a, b, c]", **values}
    path.write_text(LAYOUT.format(**given) + given.get("more", ""))
    return path


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("cell", "options", "activation", "out"),
    [
        ("lstm", {"num_layers": 2}, "sigmoid", 1),
        ("lstm", {"proj_size": 2}, "none", 2),
        ("lstm", {"bias": False}, "softmax", 3),
        ("gru", {"num_layers": 3}, "none", 1),
    ],
)
def test_weights_and_a_layout_are_the_model_of_torch(
    tmp_path: Path, suffix: str, cell: str, options: dict[str, Any], activation: str, out: int
) -> None:
    torch.manual_seed(0)
    net = Net({"lstm": nn.LSTM, "gru": nn.GRU}[cell], out, **options)
    file = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": net.state_dict()}, file)
    else:
        save_file(net.state_dict(), file)
    layout = layout_file(tmp_path, cell=cell, activation=activation)
    import_model(file, out=tmp_path / "m.onnx", layout=layout)
    x = 3 * draw(4, 9, F)
    with torch.no_grad():
        expected = net(torch.from_numpy(x))
        expected = {"sigmoid": torch.sigmoid, "softmax": lambda v: v.softmax(-1), "none": lambda v: v}[activation](
            expected
        )
    predictions, _ = source_files.serve(tmp_path / "m.onnx", x)
    np.testing.assert_allclose(predictions, expected.numpy(), atol=1e-5)
    assert load_model(tmp_path / "m.onnx").card.task == ("forecast" if activation == "none" else "classify")


def test_scaling_stands_in_the_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net(nn.LSTM, 1)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    fields = "[a, {name: b, centre: 5, scale: 2}, {name: c, log: true, centre: 1, scale: 0.5}]"
    import_model(tmp_path / "w.pt", out=tmp_path / "m.onnx", layout=layout_file(tmp_path, features=fields))
    raw = np.abs(draw(2, 6, F)) * 20
    scaled = np.stack([raw[..., 0], (raw[..., 1] - 5) / 2, (np.log1p(raw[..., 2]) - 1) / 0.5], axis=-1)
    with torch.no_grad():
        expected = net(torch.from_numpy(scaled)).numpy()
    np.testing.assert_allclose(source_files.serve(tmp_path / "m.onnx", raw)[0], expected, atol=1e-5)


def test_weights_that_do_not_fit_their_layout_are_refused(tmp_path: Path) -> None:
    net = Net(nn.LSTM, 1)
    file = tmp_path / "w.pt"
    torch.save(net.state_dict(), file)
    assert "describe it with --layout" in refusal(file)
    assert "there is no encoder.weight_ih_l0" in refusal(file, layout=layout_file(tmp_path, layers="encoder."))
    assert "there are 2, but the first layer takes 3" in refusal(file, layout=layout_file(tmp_path, features="[a, b]"))
    assert "activation" in refusal(file, layout=layout_file(tmp_path, activation="softmax"))
    assert "head.activation: must be one of" in refusal(file, layout=layout_file(tmp_path, activation="gelu"))
    message = "layer 0 weight_ih: shape (16, 3), should be (15, 3); fix layout.yaml"
    assert message in refusal(file, layout=layout_file(tmp_path, cell="gru"))
    assert "export the model to ONNX" in refusal(file, layout=layout_file(tmp_path), mode="window")
    extra = {**net.state_dict(), "norm.weight": torch.ones(3)}
    torch.save(extra, file)
    assert "does not describe 'norm.weight'" in refusal(file, layout=layout_file(tmp_path))
    import_model(file, out=tmp_path / "m.onnx", layout=layout_file(tmp_path, more="ignore: [norm.]\n"))
    torch.save({**net.state_dict(), "fc.bias": torch.tensor([float("nan")])}, file)
    assert "'fc.bias' is not finite" in refusal(file, layout=layout_file(tmp_path))
    torch.save(Net(nn.LSTM, 1, bidirectional=True).state_dict(), file)
    assert "bidirectional" in refusal(file, layout=layout_file(tmp_path))


def test_safetensors_need_no_torch_and_pt_files_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Net(nn.LSTM, 1)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save(net.state_dict(), tmp_path / "w.pt")
    layout = layout_file(tmp_path)
    import_model(tmp_path / "w.pt", out=tmp_path / "with.onnx", layout=layout)
    monkeypatch.setitem(sys.modules, "torch", None)
    import_model(tmp_path / "w.safetensors", out=tmp_path / "without.onnx", layout=layout)
    graphs = [load_model(tmp_path / name).card.fingerprint for name in ("with.onnx", "without.onnx")]
    assert graphs[0] == graphs[1]
    assert refusal(tmp_path / "w.pt", layout=layout) == (
        f"import {tmp_path / 'w.pt'}: reading .pt files needs torch; in a clone of lstmstream, run: pip install"
        " '.[train]', or save it"
        " as .safetensors"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_safetensors_of_other_precision_are_what_torch_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state_dict = {name: value.to(dtype) for name, value in Net(nn.GRU, 1).state_dict().items()}
    save_file({**state_dict, "steps": torch.tensor([3])}, tmp_path / "w.safetensors")
    tensors = read_tensors(tmp_path / "w.safetensors", (tmp_path / "w.safetensors").read_bytes())
    assert tensors.keys() == {*state_dict, "steps"}
    for name, value in state_dict.items():
        np.testing.assert_array_equal(tensors[name], value.to(torch.float32).numpy())
        assert tensors[name].dtype == np.float32


def test_safetensors_of_an_unknown_type_or_with_nan_are_refused(tmp_path: Path) -> None:
    layout, file = layout_file(tmp_path), tmp_path / "w.safetensors"
    save_file({"odd": torch.zeros(3, dtype=torch.float8_e4m3fn)}, file)
    assert "'odd' has dtype F8_E4M3; save the float32 model" in refusal(file, layout=layout)
    save_file({"odd": torch.tensor([1e300], dtype=torch.float64)}, file)
    assert "'odd' is not finite" in refusal(file, layout=layout)
    file.write_bytes(file.read_bytes()[:-1])
    assert "holds more than weights, or is damaged" in refusal(file, layout=layout)


@pytest.mark.parametrize("part", ["weight_ih", "weight_hh", "bias"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_conversion_that_confuses_the_gates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, part: str
) -> None:
    """The equations that the step is compared with share nothing with the conversion."""
    honest = getattr(weights, f"{cell}_layers")

    def confused(*args: Any) -> Any:
        first, *others = honest(*args)
        swapped = getattr(first, part).copy()
        swapped[[*range(2 * H)]] = swapped[[*range(H, 2 * H), *range(H)]]
        return (replace(first, **{part: swapped}), *others)

    torch.manual_seed(0)
    torch.save(Net({"lstm": nn.LSTM, "gru": nn.GRU}[cell], 1, num_layers=2).state_dict(), tmp_path / "w.pt")
    layout = layout_file(tmp_path, cell=cell)
    import_model(tmp_path / "w.pt", out=tmp_path / "m.onnx", layout=layout)
    monkeypatch.setattr(weights, f"{cell}_layers", confused)
    assert "the step differs from torch's equations by up to" in refusal(tmp_path / "w.pt", layout=layout)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"a": Evil()}, tmp_path / "w.pt")
    assert "holds more than weights" in refusal(tmp_path / "w.pt", layout=layout_file(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_torchscript_is_named(tmp_path: Path) -> None:
    layout = tmp_path / "layout.yaml"
    layout.write_text("cell: lstm\nlayers: ''\nhead: {linear: head., activation: none}\nfeatures: [a, b]\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch gives it up
        torch.jit.script(torch.nn.LSTM(2, 4)).save(tmp_path / "m.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CannotServe, match=r"m.pt: is TorchScript, a program with its weights; save the weights"):
            import_model(tmp_path / "m.pt", out=tmp_path / "m.onnx", layout=layout)
