"""Weights beside the file, the features option, states that grow without end, and what a long import shows."""

from __future__ import annotations

import io
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch import nn

from lstmstream.errors import CannotServe
from lstmstream.importer import progress as importer_progress
from lstmstream.importer.command import import_model
from lstmstream.importer.features import parse_features
from lstmstream.importer.progress import ImportProgress
from lstmstream.importer.sequence_graph import SequenceGraph
from lstmstream.model import load_model
from lstmstream.serve.growth import find_growth
from lstmstream.serve.step import OnnxStep
from tests.importer import source_files
from tests.importer.source_files import F, H, draw, edited, keras_file, lstm_file, refusal
from tests.importer.step_graphs import cell, save, value

pytestmark = pytest.mark.torch


# --- weights beside the file -----------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(F, 64, batch_first=True), nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Path, Model]:
    """What torch.onnx.export writes with its defaults: the weights in model.onnx.data."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.manual_seed(0)
    model = Model().eval()
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(2, 5, F),), str(path), dynamo=True, dynamic_shapes=(free,), verbose=False)
    logging.disable(logging.NOTSET)
    assert path.with_name("model.onnx.data").is_file()
    return path, model


def test_a_default_export_of_torch_is_read(tmp_path: Path, exported: tuple[Path, Model]) -> None:
    path, model = exported
    assert import_model(path, out=tmp_path / "m.onnx") == 0
    x = draw(3, 9, F)
    ours, _ = source_files.serve(tmp_path / "m.onnx", x)
    with torch.no_grad():
        np.testing.assert_allclose(ours, model(torch.from_numpy(x)).numpy(), atol=1e-5)
    facts = load_model(tmp_path / "m.onnx").card.training["import"]
    assert list(facts["external_data"]) == ["model.onnx.data"]


def test_weights_beside_the_file_that_are_missing_or_short_are_refused(exported: tuple[Path, Model]) -> None:
    path, _ = exported
    data = path.with_name("model.onnx.data")
    content = data.read_bytes()
    data.write_bytes(content[:-8])
    assert "the file is cut short or belongs to another model" in refusal(path)
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(content)
    for link in (os.symlink, os.link):
        data.unlink()
        link(elsewhere, data)
        assert "is a link" in refusal(path)
    data.unlink()
    assert "is not beside the model; copy it into the same folder" in refusal(path)
    data.mkdir()
    assert "cannot be read (Is a directory)" in refusal(path)
    data.rmdir()
    os.mkfifo(data)
    assert "a link or not a regular file" in refusal(path)


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"location": "../secret"}, "only a file in the folder of the model is read"),
        ({"location": "/etc/passwd"}, "only a file in the folder of the model is read"),
        ({"location": "sub\\secret"}, "only a file in the folder of the model is read"),
        ({"location": ".."}, "only a file in the folder of the model is read"),
        ({"location": "data", "offset": "-1"}, "not a number of bytes"),
        ({"location": "data", "offset": "9" * 15}, "cut short"),
        ({"location": "data", "length": "3"}, "its shape needs"),
        ({"offset": "0"}, "not described as ONNX does"),
        ({"location": "data", "odd": "1"}, "not described as ONNX does"),
    ],
)
def test_external_data_leads_nowhere_else(tmp_path: Path, entries: dict[str, str], problem: str) -> None:
    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        (tmp_path / "data").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=text)

    assert problem in refusal(edited(lstm_file(tmp_path / "a.onnx"), outside))


def test_external_data_of_terabytes_is_refused(tmp_path: Path) -> None:
    def outside(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        del tensor.dims[:]
        tensor.dims.extend([2**40])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data")

    (tmp_path / "data").write_bytes(b"")
    os.truncate(tmp_path / "data", 2**43)
    assert "more than 2147483647 bytes" in refusal(edited(lstm_file(tmp_path / "a.onnx"), outside))


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a, b", [("a", 1), ("b", 1)]), ("samples[576]", [("samples", 576)]), ("samples:576", [("samples", 576)]),
        ("a,v[2],b", [("a", 1), ("v", 2), ("b", 1)]), ("[{name: v, size: 3}, a]", [("v", 3), ("a", 1)]),
        ("{name: v, size: 3}", [("v", 3)]), ("window.values[4]", [("window.values", 4)]),
    ],
)  # fmt: skip
def test_features_are_names_and_arrays(text: str, expected: list[tuple[str, int]]) -> None:
    names = parse_features(text)
    assert names is not None
    assert [(one.name, one.size) for one in names.features] == expected


@pytest.mark.parametrize(
    "text", ["a,,b", "a,a", "a[0]", "[3]", "a[9", "a[99999999]", "[{size: 3}]", "[{name: a, sise: 3}]", "{"]
)
def test_features_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(CannotServe, match="--features"):
        parse_features(text)


@pytest.mark.parametrize("mode", ["step", "window"])
def test_scaling_is_part_of_the_model(tmp_path: Path, mode: Any) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    listed = tmp_path / "features.yaml"
    listed.write_text("features:\n- {name: a, centre: 100, scale: 20}\n- {name: v, size: 2, scale: 0.5}\n")
    import_model(
        file, out=tmp_path / "raw.onnx", mode=mode, window=4 if mode == "window" else None, features=str(listed)
    )
    import_model(file, out=tmp_path / "scaled.onnx", mode=mode, window=4 if mode == "window" else None)
    x = draw(3, 9, F)
    raw = x * np.array([20, 0.5, 0.5], np.float32) + np.array([100, 0, 0], np.float32)
    ours, _ = source_files.serve(tmp_path / "raw.onnx", raw)
    theirs, _ = source_files.serve(tmp_path / "scaled.onnx", x)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    missing = raw.copy()
    missing[:, 2, 0] = np.nan  # fed as 0 after scaling: the centre
    raw[:, 2, 0] = 100
    np.testing.assert_array_equal(
        source_files.serve(tmp_path / "raw.onnx", missing)[0], source_files.serve(tmp_path / "raw.onnx", raw)[0]
    )


def test_arrays_are_refused_where_they_cannot_be_read(tmp_path: Path) -> None:
    file = lstm_file(tmp_path / "a.onnx")
    assert "but the input 'input' takes 3" in refusal(file, features="v[2]")
    data = tmp_path / "d.jsonl"
    data.write_text("{}\n")
    assert "--compare cannot read arrays (v)" in refusal(file, features="v[3]", compare=data, window=3)


# --- states that grow without end ------------------------------------------------------------------------------------


def recurrent(path: Path, operator: str, activations: list[str], *, gain: float, length: int | None = None) -> Path:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    graph = SequenceGraph(1, length)
    graph.recurrent(
        operator, np.abs(draw(gates * H, 1)), gain * np.abs(draw(gates * H, H, seed=1)), np.abs(draw(2 * gates * H)),
        activations, linear_before_reset=0 if operator == "GRU" else None, whole=False,
    )  # fmt: skip
    graph.dense(draw(H, 1, seed=3), draw(1, seed=4))
    path.write_bytes(graph.to_bytes())
    return path


@pytest.mark.parametrize(
    ("operator", "activations"),
    [("LSTM", ["sigmoid", "relu"]), ("LSTM", ["sigmoid", "linear"])],
)
def test_a_state_that_grows_without_end_is_refused(tmp_path: Path, operator: str, activations: list[str]) -> None:
    file = recurrent(tmp_path / "a.onnx", operator, activations, gain=2)
    text = refusal(file)
    assert "grows without bound" in text
    assert "the state part '" in text
    assert "--mode window --window T" in text
    assert "event" in text
    assert import_model(file, out=tmp_path / "m.onnx", allow_growth=True) == 0
    assert import_model(file, out=tmp_path / "m.onnx", mode="window", window=3) == 0


def test_the_length_of_the_windows_is_in_the_remedy(tmp_path: Path) -> None:
    file = recurrent(tmp_path / "a.onnx", "LSTM", ["sigmoid", "relu"], gain=2, length=3)
    assert "--mode window --window 3" in refusal(file)


@pytest.mark.parametrize(
    ("operator", "activations"), [("LSTM", ["sigmoid", "tanh"]), ("RNN", ["tanh"]), ("GRU", ["sigmoid", "tanh"])]
)
def test_a_state_that_saturates_is_taken(tmp_path: Path, operator: str, activations: list[str]) -> None:
    for gain in (0.5, 3, 30):
        assert (
            import_model(recurrent(tmp_path / "a.onnx", operator, activations, gain=gain), out=tmp_path / "m.onnx") == 0
        )


def accumulator(path: Path, *, factor: float, order: int = 1) -> Path:
    """`order` sums, each over the one before, with a factor."""
    states = [f"s{number}_in" for number in range(order)]
    nodes, last = [], "x"
    for number, name in enumerate(states):
        nodes.append(helper.make_node("Mul", [name, "factor"], [f"kept{number}"]))
        nodes.append(helper.make_node("Add", [f"kept{number}", last], [f"s{number}_out"]))
        last = f"s{number}_out"
    nodes.append(helper.make_node("Tanh", [last], ["y"]))
    return save(
        path, nodes, [value(name, ["n", 1]) for name in ("x", *states)],
        [value("y", ["n", 1]), *(value(f"s{number}_out", ["n", 1]) for number in range(order))],
        {"factor": np.float32(factor)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("factor", "order", "grows"),
    [(0.9, 1, False), (1.0, 1, False), (1.0, 2, False), (1.0, 3, False), (0.999, 2, False), (1.01, 1, True),
     (1.1, 1, True), (2.0, 1, True), (-1.2, 1, True), (-1.0, 1, False), (0.0, 1, False)],
)  # fmt: skip
def test_sums_and_averages_do_not_count_as_growth(tmp_path: Path, factor: float, order: int, grows: bool) -> None:
    file = accumulator(tmp_path / "a.onnx", factor=factor, order=order)
    import_model(file, out=tmp_path / "m.onnx", allow_growth=True)
    step = OnnxStep(load_model(tmp_path / "m.onnx"), device="cpu")
    for events in (512, 2048):
        found = find_growth(step, events=events)
        assert (found is not None) == grows, found
    if grows:
        assert "the state part 's0_in' grows without bound" in refusal(file)
        assert "--mode window" not in refusal(file)  # a file with states has no windows


def test_the_walk_for_growth_takes_no_longer_than_it_may(tmp_path: Path) -> None:
    import_model(cell(tmp_path / "a.onnx"), out=tmp_path / "m.onnx")
    seen: list[int] = []
    assert find_growth(OnnxStep(load_model(tmp_path / "m.onnx")), seconds=0, on_event=seen.append) is None
    assert len(seen) < 512


# --- progress and words ----------------------------------------------------------------------------------------------


def test_a_long_import_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with ImportProgress("big.onnx", silent_s=0, interval_s=0.01) as shown:
        shown.stage("compares it with the original")
        until = time.monotonic() + 120
        text = ""
        while "compares it with the original" not in text and time.monotonic() < until:
            text += capsys.readouterr().err
    assert "import big.onnx: compares it with the original" in text


def test_a_terminal_shows_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True)
    monkeypatch.setattr(importer_progress, "Console", lambda **_: console)
    with ImportProgress("big.onnx", silent_s=0) as shown:
        shown.stage("compares")
        until = time.monotonic() + 120
        while "compares" not in screen.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert "import big.onnx: compares" in screen.getvalue()


def test_a_short_import_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ImportProgress("small.onnx", silent_s=60):
        pass
    assert capsys.readouterr().err == ""
    import_model(keras_file(tmp_path / "a.keras"), out=tmp_path / "out.onnx")
    assert "its state is never reset" in capsys.readouterr().out


def test_the_optional_inputs_of_old_files_are_weights(tmp_path: Path) -> None:
    """Files before IR 4 list every weight as an input."""

    def old(model: Any) -> None:
        model.ir_version = 3
        for tensor in model.graph.initializer:
            shape = numpy_helper.to_array(tensor).shape
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))

    for file in (lstm_file(tmp_path / "a.onnx"), cell(tmp_path / "b.onnx")):
        assert import_model(edited(file, old), out=tmp_path / "m.onnx") == 0
